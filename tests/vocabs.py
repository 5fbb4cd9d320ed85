"""What the vocabulary tests share: a vocabulary-only GGUF, llama.cpp's reading of it, texts."""

from __future__ import annotations

import ctypes
import os
import random
from pathlib import Path
from typing import Any, Self

from edgeft.converters import _vocab
from edgeft.runtimes.gguf import _llama_cpp
from edgeft.template import ChatTemplate


def vocabulary_size(tokenizer: dict[str, Any]) -> int:
    ids = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
    return max(ids) + 1


def write_gguf(folder: Path, out: Path, size: int, name: str = "test") -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(out, "llama")
    writer.add_name(name)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_head_count(1)
    _vocab.write(writer, folder, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return out


class LlamaCpp:
    """The vocabulary of a GGUF as llama.cpp reads it; enough of a Runtime for check_tokens."""

    def __init__(self, path: Path) -> None:
        self._lib, errors, log = _llama_cpp()
        self._lib.llama_log_set(log, None)
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
