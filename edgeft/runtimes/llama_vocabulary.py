"""The vocabulary of a GGUF file in llama.cpp: text -> token ids, token ids -> text, chat template."""

from __future__ import annotations

import codecs
import ctypes
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable

from edgeft.errors import InputError
from edgeft.runtimes.llama_context import LlamaModel
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate
from edgeft.tokenizer.stops import Pieces, turn_ends

MAX_WORD_CHARACTERS = 8000
"""llama.cpp's std::regex calls itself once per character of a word, with a frame on the stack"""
SPACES = r" \t\n\v\f\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WORDS = re.compile(rf"[^{SPACES}.,!?…。，、।۔،]+|(?:[^\w{SPACES}]|_)+|[{SPACES}]+")
"""superset of what a pre-tokenizer of llama.cpp may take for one word"""
PIECE_BYTES = 1024
"""room for one token; runs of spaces are the longest, with some hundred bytes"""


class LlamaVocabulary:
    def __init__(self, model: LlamaModel) -> None:
        lib, vocab = model.lib, model.vocab
        self._lib, self._model = lib, model
        self._is_bpe = model.vocab_type == lib.LLAMA_VOCAB_TYPE_BPE
        space_prefix = model.metadata("tokenizer.ggml.add_space_prefix")
        is_spm = model.vocab_type == lib.LLAMA_VOCAB_TYPE_SPM
        self._space_prefix = is_spm if space_prefix is None else space_prefix == "true"
        self.size: int = lib.llama_vocab_n_tokens(vocab)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(vocab)
        is_end = map(lib.llama_vocab_is_eog, itertools.repeat(vocab), range(self.size))
        self.file_eos_ids = frozenset(itertools.compress(range(self.size), is_end))
        """ids that llama.cpp calls end of generation: the file's, and those that it knows by name"""
        self.chat = self._chat_template()
        """the file's template (Alpaca where it has none) and special tokens"""
        if model.vocab_type != lib.LLAMA_VOCAB_TYPE_NONE:
            ends = turn_ends(self.chat, self._split)
            self.chat = dataclasses.replace(self.chat, stops=(*self.chat.stops, *ends))
        written = (token for stop in self.chat.stops for token in self.encode(stop)[:1])
        self.eos_ids = self.file_eos_ids.union(filter(self._is_added, written))
        """ids that end a turn: also those that the template writes behind an answer"""

    def encode(self, text: str) -> list[int]:
        """Text -> ids, special tokens recognised, nothing added.

        InputError for a word that is too long for llama.cpp to survive.
        """
        if (
            self._is_bpe
            and len(text) > MAX_WORD_CHARACTERS
            and any(len(word[0]) > MAX_WORD_CHARACTERS for word in WORDS.finditer(text))
        ):
            raise InputError(
                f"more than {MAX_WORD_CHARACTERS} characters without a space or a mark between them"
            )
        data = text.encode("utf-8", errors="replace")
        tokenize = functools.partial(self._lib.llama_tokenize, self._model.vocab, data, len(data))
        # Without room for the ids it returns their number, negated.
        ids = (ctypes.c_int32 * -tokenize(None, 0, False, True))()
        tokenize(ids, len(ids), False, True)
        return list(ids)

    def decoder(self) -> Callable[[int], str]:
        """A function for one answer: called with one token after the other, it returns the text that
        each completes ("" within a character).

        SentencePiece writes a space before the first word, which is not part of the answer.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        strip = itertools.chain([int(self._space_prefix)], itertools.repeat(0))
        return lambda token: utf8.decode(self.piece(token, next(strip)))

    def piece(self, token: int, strip: int = 0) -> bytes:
        """The bytes of a token, without up to `strip` spaces at their beginning.

        IndexError for an id beyond the vocabulary, which would end the process.
        """
        if not 0 <= token < self.size:
            raise IndexError(f"token {token} of {self.size}")
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        length = self._lib.llama_token_to_piece(
            self._model.vocab, token, buffer, PIECE_BYTES, strip, True
        )
        return buffer.raw[: max(length, 0)]

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Tokens that grammars take for no part of a text: control tokens, and the user's own tokens in
        angle brackets (llguidance/llamacpp.py has the same rule)."""
        lib, vocab = self._lib, self._model.vocab
        control = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN

        def is_special(token: int) -> bool:
            attributes = lib.llama_vocab_get_attr(vocab, token)
            if attributes & lib.LLAMA_TOKEN_ATTR_USER_DEFINED:
                piece = self.piece(token)
                return piece[:1] == b"<" and piece[-1:] == b">"
            return bool(attributes & control)

        return tuple(filter(is_special, range(self.size)))

    @property
    def special_tokens(self) -> dict[str, int]:
        """text -> id of each of `special_ids`."""
        return {self.piece(token).decode("utf-8", "replace"): token for token in self.special_ids}

    def _is_added(self, token: int) -> bool:
        """Whether the tokenizer takes the token's text for this token, wherever it stands."""
        added = self._lib.LLAMA_TOKEN_ATTR_CONTROL | self._lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        return bool(self._lib.llama_vocab_get_attr(self._model.vocab, token) & added)

    def _split(self, text: str) -> Pieces:
        try:
            tokens = self.encode(text)
        except InputError:  # a word that llama.cpp cannot read; then it cannot read the chat either
            return []
        return [
            (self.piece(token).decode("utf-8", "replace"), self._is_added(token))
            for token in tokens
        ]

    def _chat_template(self) -> ChatTemplate:
        lib, vocab = self._lib, self._model.vocab

        def text(token: int) -> str:
            return self.piece(token).decode("utf-8", "replace") if 0 <= token < self.size else ""

        source = lib.llama_model_chat_template(self._model.pointer, None)
        eos = text(lib.llama_vocab_eos(vocab))
        stops = dict.fromkeys([eos, *map(text, sorted(self.file_eos_ids))])
        unknown = self._model.metadata("tokenizer.ggml.unknown_token_id")
        return ChatTemplate(
            source=source.decode("utf-8", "replace") if source else ALPACA,
            bos_token=text(lib.llama_vocab_bos(vocab)),
            eos_token=eos,
            stops=tuple(stop for stop in stops if stop),
            unk_token=text(int(unknown)) if unknown else "",
            pad_token=text(lib.llama_vocab_pad(vocab)),
        )
