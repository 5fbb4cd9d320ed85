"""The vocabulary of a GGUF file in llama.cpp: text -> token ids, token ids -> text, chat template."""

from __future__ import annotations

import codecs
import ctypes
import functools
import itertools
import re
from collections.abc import Callable

from edgeft.errors import InputError
from edgeft.runtimes.llama_context import LlamaModel
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate

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
        self.eos_ids = frozenset(itertools.compress(range(self.size), is_end))
        """ids that end a turn: all that llama.cpp calls end of generation"""

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

    def chat_template(self) -> ChatTemplate:
        """The file's template (Alpaca where it has none) and special tokens."""
        lib, vocab = self._lib, self._model.vocab

        def text(token: int) -> str:
            return self.piece(token).decode("utf-8", "replace") if 0 <= token < self.size else ""

        source = lib.llama_model_chat_template(self._model.pointer, None)
        eos = text(lib.llama_vocab_eos(vocab))
        stops = dict.fromkeys([eos, *map(text, sorted(self.eos_ids))])
        unknown = self._model.metadata("tokenizer.ggml.unknown_token_id")
        return ChatTemplate(
            source=source.decode("utf-8", "replace") if source else ALPACA,
            bos_token=text(lib.llama_vocab_bos(vocab)),
            eos_token=eos,
            stops=tuple(stop for stop in stops if stop),
            unk_token=text(int(unknown)) if unknown else "",
            pad_token=text(lib.llama_vocab_pad(vocab)),
        )
