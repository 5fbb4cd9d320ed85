"""The GGUF runtime on a tiny random model, held to transformers with the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import EdgeftError, InputError
from edgeft.records import Limits, Message
from edgeft.runtimes.protocol import Runtime, open_runtime


@pytest.fixture(scope="module")
def artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export.pipeline import ExportOptions, export

    out = tmp_path_factory.mktemp("runtime")
    return export(ExportOptions(out=out, base=str(tiny_base), quants=("f32",)))[0].path


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Runtime]:
    with open_runtime(artifact) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def oracle(tiny_base: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


def test_the_template_has_the_folders_tokens(tiny_base: Path, tmp_path: Path) -> None:
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


def token_bytes(token: int) -> bytes:
    """What the token of `tiny.make_base` stands for."""
    if token < 256:
        return bytes([token])
    longer = ["on", " t", " th", " the", "la", "lam", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return longer[token - 256].encode()


def prompt(model: Runtime, text: str) -> list[int]:
    return model.encode(model.chat.render([Message("user", text)]))


@pytest.mark.parametrize("batch", [512, 8])
@pytest.mark.parametrize("last", [1, 4, 13, 100])
def test_the_last_logits_are_the_last_of_all(
    artifact: Path, batch: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeft.runtimes.gguf.BATCH", batch)
    with open_runtime(artifact) as runtime:
        ids = runtime.encode("the lamp on the thirty-first floor")
        every = runtime.logits(ids)
        np.testing.assert_allclose(runtime.logits(ids, last), every[-last:], atol=1e-4)


def test_logits_are_transformers(model: Runtime, oracle: Any) -> None:
    import torch

    ids = prompt(model, "the lamp on the thirty-first floor, 12 % of it")
    with torch.inference_mode():
        wanted = oracle(torch.tensor([ids])).logits[0].numpy()
    got = model.logits(ids)
    assert got.shape == (len(ids), model.vocab_size)
    # llama.cpp keeps keys and values in half precision; logits here reach 6.
    assert np.abs(got - wanted).max() < 0.02
    assert np.abs(got - wanted).mean() < 0.005
    second, first = np.sort(wanted, axis=1)[:, -2:].T
    clear = first - second > 0.04
    assert clear.sum() > 30
    assert (got.argmax(1) == wanted.argmax(1))[clear].all()


def test_greedy_stream_is_transformers_generate(model: Runtime, oracle: Any) -> None:
    import torch

    ids = prompt(model, "one two three")
    with torch.inference_mode():
        wanted = oracle.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
        )[0, len(ids) :].tolist()
    tokens = list(model.stream(ids, Limits(max_tokens=24, ignore_eos=True)))
    assert [token.id for token in tokens] == wanted
    times = [token.seconds for token in tokens]
    assert times == sorted(times) and times[0] > 0


def test_the_reference_runtime_agrees(model: Runtime, tiny_base: Path) -> None:
    ids = prompt(model, "lamp")
    limits = Limits(max_tokens=20, ignore_eos=True)
    with open_runtime(tiny_base) as reference:
        assert reference.encode("<|im_start|>a lamp<|im_end|>") == model.encode(
            "<|im_start|>a lamp<|im_end|>"
        )
        wanted = [token.id for token in reference.stream(ids, limits)]
    assert [token.id for token in model.stream(ids, limits)] == wanted


def test_many_replies_are_the_single_ones(model: Runtime) -> None:
    prompts = [prompt(model, f"lamp {'é' * (i * 7 % 40)} {i}") for i in range(40)]
    seen: list[int] = []
    replies = model.replies(prompts, Limits(max_tokens=12), seen.append)
    assert seen == list(range(1, 41))
    for ids, reply in zip(prompts, replies, strict=True):
        tokens = list(model.stream(ids, Limits(max_tokens=12)))
        assert reply.ids == tuple(token.id for token in tokens)
        assert reply.text == "".join(token.text for token in tokens)
        assert reply.stopped == (len(tokens) < 12)


def test_a_character_of_many_tokens_comes_as_a_whole(model: Runtime) -> None:
    """Random bytes, characters of two bytes among them: no piece holds a part of one."""
    characters = 0
    for seed in range(20):
        limits = Limits(max_tokens=60, temperature=3.0, seed=seed, ignore_eos=True)
        tokens = list(model.stream(prompt(model, "é😀"), limits))
        assert len(tokens) == 60
        data = b"".join(token_bytes(token.id) for token in tokens)
        wanted = data.decode("utf-8", "replace")
        streamed = "".join(token.text for token in tokens)
        # Of what the last token left unfinished, decoding all at once makes one U+FFFD.
        assert wanted in (streamed, streamed + "\N{REPLACEMENT CHARACTER}")
        characters += sum("\x7f" < letter < "\N{REPLACEMENT CHARACTER}" for letter in streamed)
    assert characters > 5


def test_ids_stand_for_the_bytes_of_the_text(model: Runtime) -> None:
    for text in ("the lamp", "é 日本語", "😀\n\n12 %", "<|im_start|>a<|im_end|>"):
        assert b"".join(map(token_bytes, model.encode(text))) == text.encode()


def test_a_reused_prefix_changes_nothing(model: Runtime, artifact: Path) -> None:
    limits = Limits(max_tokens=8, ignore_eos=True)
    long = prompt(model, "the lamp on the desk")
    list(model.stream(long, limits))
    list(model.stream(long[:-6], limits))
    again = [token.id for token in model.stream([*long, *long], limits)]
    with open_runtime(artifact) as fresh:
        assert [token.id for token in fresh.stream([*long, *long], limits)] == again


def test_a_stopped_stream_leaves_the_runtime_usable(model: Runtime) -> None:
    ids = prompt(model, "stop me")
    limits = Limits(max_tokens=10, ignore_eos=True)
    whole = [token.id for token in model.stream(ids, limits)]
    stream = model.stream(ids, limits)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert [token.id for token in model.stream(ids, limits)] == whole


def test_a_seed_fixes_a_sampled_reply(model: Runtime) -> None:
    ids = prompt(model, "anything")

    def draw(seed: int) -> list[int]:
        limits = Limits(max_tokens=16, temperature=1.5, seed=seed, ignore_eos=True)
        return [token.id for token in model.stream(ids, limits)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_bad_files_and_prompts_are_user_errors(
    artifact: Path, model: Runtime, tmp_path: Path
) -> None:
    data = artifact.read_bytes()
    cases = {"cut": data[: len(data) // 2], "header": data[:40], "noise": b"not a model" * 20}
    for name, content in cases.items():
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"cannot load .*{name}.gguf"):
            open_runtime(file)
    with pytest.raises(InputError, match="the context only"):
        model.logits([1] * (model.context + 1))
    with pytest.raises(EdgeftError, match="empty"):
        list(model.stream([], Limits()))
