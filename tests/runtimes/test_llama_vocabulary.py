"""The vocabulary of a GGUF file: ids, bytes, characters, and the chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgeft.errors import InputError
from edgeft.records import Limits, Message
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.llama_vocabulary import MAX_WORD_CHARACTERS
from edgeft.runtimes.protocol import open_runtime


def token_bytes(token: int) -> bytes:
    """The bytes of a token of `tiny.make_base`."""
    if token < 256:
        return bytes([token])
    longer = ["on", " t", " th", " the", "la", "lam", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return longer[token - 256].encode()


def test_the_chat_template_has_the_special_tokens_of_the_folder(
    tiny_base: Path, tmp_path: Path
) -> None:
    from edgeft.export.pipeline import ExportOptions, export
    from edgeft.tokenizer.chat_template import ChatTemplate

    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["unk_token"] = "<|endoftext|>"
    config["chat_template"] = "{{ unk_token }} {{ pad_token }} {{ bos_token }} {{ eos_token }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    chat = ChatTemplate.from_folder(folder)
    (exported,) = export(ExportOptions(out=tmp_path / "o", base=str(folder), quants=("f32",)))
    with open_runtime(exported.path) as runtime:
        assert runtime.chat.render([]) == chat.render([])
        assert chat.render([]).split()[:2] == ["<|endoftext|>", "<|im_end|>"]


def test_ids_are_the_bytes_of_the_text(gguf_model: GGUFRuntime) -> None:
    for text in ("the lamp", "é 日本語", "😀\n\n12 %", "<|im_start|>a<|im_end|>"):
        ids = gguf_model.encode(text)
        assert b"".join(map(token_bytes, ids)) == text.encode()
        assert b"".join(map(gguf_model.piece, ids)) == text.encode()


def test_end_of_turn_is_an_eos_id(gguf_model: GGUFRuntime) -> None:
    assert gguf_model.encode("<|im_end|>")[0] in gguf_model.eos_ids
    assert not gguf_model.eos_ids & set(range(256))


def test_a_word_that_llama_cpp_would_not_survive_is_refused(gguf_model: GGUFRuntime) -> None:
    word = "a" * MAX_WORD_CHARACTERS
    assert len(gguf_model.encode(f"{word} {word}.{word}")) > 2 * MAX_WORD_CHARACTERS
    for text in (word + "a", "!" * 30_000, f"short {word}_a"):
        with pytest.raises(InputError, match="more than 8000 characters without a space"):
            gguf_model.encode(text)


def test_a_character_of_several_tokens_comes_as_a_whole(gguf_model: GGUFRuntime) -> None:
    """Random bytes, characters of two bytes among them: no piece holds a part of one."""
    characters = 0
    ids = gguf_model.encode(gguf_model.chat.render([Message("user", "é😀")]))
    for seed in range(20):
        limits = Limits(max_tokens=60, temperature=3.0, seed=seed, ignore_eos=True)
        tokens = list(gguf_model.stream(ids, limits))
        assert len(tokens) == 60
        data = b"".join(token_bytes(token.id) for token in tokens)
        expected = data.decode("utf-8", "replace")
        streamed = "".join(token.text for token in tokens)
        # Of what the last token left unfinished, decoding all at once makes one U+FFFD.
        assert expected in (streamed, streamed + "\N{REPLACEMENT CHARACTER}")
        characters += sum("\x7f" < letter < "\N{REPLACEMENT CHARACTER}" for letter in streamed)
    assert characters > 5
