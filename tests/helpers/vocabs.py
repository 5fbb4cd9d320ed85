"""What the vocabulary tests share: a vocabulary-only GGUF, llama.cpp's reading of it, texts."""

from __future__ import annotations

import ctypes
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from edgeft.converters.gguf import vocabulary
from edgeft.runtimes.llama_library import load_library
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import tokenizer_json


def vocabulary_size(tokenizer: dict[str, Any]) -> int:
    ids = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
    return max(ids) + 1


def write_gguf(
    folder: Path, out: Path, size: int | None = None, name: str = "test", pre: str = ""
) -> Path:
    """A vocabulary-only GGUF; `pre` overwrites the name of the pre-tokenizer."""
    from gguf import GGUFWriter

    writer = GGUFWriter(out, "llama")
    writer.add_name(name)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_head_count(1)
    vocabulary.write(writer, folder, size or vocabulary_size(tokenizer_json(folder)))
    if pre:
        writer.kv_data[0]["tokenizer.ggml.pre"].value = pre
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return out


class LlamaCpp:
    """The vocabulary of a GGUF as llama.cpp reads it; enough of a Runtime for check_tokens."""

    def __init__(self, path: Path) -> None:
        self._lib, errors = load_library()
        errors.clear()
        params = self._lib.llama_model_default_params()
        params.vocab_only = True
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        assert self._model, errors
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocab_size = self._lib.llama_vocab_n_tokens(self._vocab)
        ends = [i for i in range(self.vocab_size) if self._lib.llama_vocab_is_eog(self._vocab, i)]
        source = self._lib.llama_model_chat_template(self._model, None)
        self.chat = ChatTemplate(
            source.decode() if source else "",
            self.text(self._lib.llama_vocab_bos(self._vocab)),
            self.text(self._lib.llama_vocab_eos(self._vocab)),
            tuple(map(self.text, ends)),
        )

    def text(self, token: int) -> str:
        if token < 0:
            return ""
        return str(self._lib.llama_vocab_get_text(self._vocab, token).decode())

    def encode(self, text: str, special: bool = True) -> list[int]:
        data = text.encode()
        count = -self._lib.llama_tokenize(self._vocab, data, len(data), None, 0, False, special)
        ids = (ctypes.c_int32 * count)()
        self._lib.llama_tokenize(self._vocab, data, len(data), ids, count, False, special)
        return list(ids)

    def adds_bos(self) -> bool:
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    def close(self) -> None:
        self._lib.llama_model_free(self._model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


WORDS = (
    "the", "Paris", "don't", "I'LL", "naïve", "größer", "мир", "МИР", "שלום", "مرحبا", "नमस्ते",
    "天气", "日本", "한국", "😀", "👩‍👧", "x=1", "foo_bar", "==>", "http://", "3.14", "2026", "½",
    "\u00a0", "\u3000", "\n", "\n\n", "\r\n", "\t", " ", "  ", "   ", "'s", "...", "€5", "é", "e\u0301",
)  # fmt: skip
BLOCKS = ((32, 127), (160, 0x24F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0x11FF),
          (0x1E00, 0x206F), (0x2190, 0x27BF), (0x3040, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
          (0x1F300, 0x1F64F))  # fmt: skip


def random_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)

    def part() -> str:
        if draw.random() < 0.6:
            return draw.choice(WORDS)
        low, high = draw.choice(BLOCKS)
        return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 4)))

    return [
        "".join(part() + draw.choice(("", " ", "")) for _ in range(draw.randint(1, 12)))
        for _ in range(count)
    ]


def trained(texts: Iterable[str], size: int, bytes_: bool = True) -> dict[str, Any]:
    """The `model` of a BPE that merges across anything, so that every cut before it shows."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE

    tokenizer: Any = Tokenizer(BPE())
    alphabet = []
    if bytes_:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    assert isinstance(model, dict)
    return model


def write_folder(folder: Path, tokenizer: dict[str, Any], **config: Any) -> Path:
    """A folder with tokenizer.json, and tokenizer_config.json from the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", **tokenizer}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def train_sentencepiece(out: Path, texts: Iterable[str], size: int, **options: Any) -> Any:
    """Write a tokenizer.model with sentencepiece's own trainer; returns its processor."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=size, minloglevel=2,
        hard_vocab_limit=False, num_threads=1, **options,
    )  # fmt: skip
    out.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
