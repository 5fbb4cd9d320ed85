"""The GGUF runtime on a tiny random model, compared with transformers on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import EdgeftError, InputError
from edgeft.records import Limits, Message
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.llama_context import BATCH_TOKENS
from edgeft.runtimes.protocol import open_runtime


@pytest.fixture(scope="module")
def oracle(tiny_base: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


def prompt(model: GGUFRuntime, text: str) -> list[int]:
    return model.encode(model.chat.render([Message("user", text)]))


@pytest.mark.parametrize("batch_tokens", [512, 8])
@pytest.mark.parametrize("last", [1, 4, 13, 100])
def test_the_last_logits_are_the_last_of_all(
    gguf: Path, batch_tokens: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeft.runtimes.llama_context.BATCH_TOKENS", batch_tokens)
    with GGUFRuntime(gguf) as runtime:
        runtime._conversation.reserve(BATCH_TOKENS)
        assert runtime._conversation.batch_tokens == batch_tokens
        ids = runtime.encode("the lamp on the thirty-first floor")
        every = runtime.logits(ids)
        np.testing.assert_allclose(runtime.logits(ids, last), every[-last:], atol=1e-4)


def test_logits_are_those_of_transformers(gguf_model: GGUFRuntime, oracle: Any) -> None:
    import torch

    ids = prompt(gguf_model, "the lamp on the thirty-first floor, 12 % of it")
    with torch.inference_mode():
        expected = oracle(torch.tensor([ids])).logits[0].numpy()
    logits = gguf_model.logits(ids)
    assert logits.shape == (len(ids), gguf_model.vocab_size)
    # llama.cpp keeps keys and values in half precision; logits here reach 6.
    assert np.abs(logits - expected).max() < 0.02
    assert np.abs(logits - expected).mean() < 0.005
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > 0.04
    assert clear.sum() > 30
    assert (logits.argmax(1) == expected.argmax(1))[clear].all()


def test_a_greedy_stream_is_transformers_generate(gguf_model: GGUFRuntime, oracle: Any) -> None:
    import torch

    ids = prompt(gguf_model, "one two three")
    with torch.inference_mode():
        expected = oracle.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
        )[0, len(ids) :].tolist()
    tokens = list(gguf_model.stream(ids, Limits(max_tokens=24, ignore_eos=True)))
    assert [token.id for token in tokens] == expected
    times = [token.seconds for token in tokens]
    assert times == sorted(times) and times[0] > 0


def test_a_reused_prefix_changes_no_token(gguf_model: GGUFRuntime, gguf: Path) -> None:
    limits = Limits(max_tokens=8, ignore_eos=True)
    long = prompt(gguf_model, "the lamp on the desk")
    list(gguf_model.stream(long, limits))
    list(gguf_model.stream(long[:-6], limits))
    again = [token.id for token in gguf_model.stream([*long, *long], limits)]
    with GGUFRuntime(gguf) as fresh:
        assert [token.id for token in fresh.stream([*long, *long], limits)] == again


def test_interleaved_streams_are_the_single_ones(gguf_model: GGUFRuntime) -> None:
    limits = Limits(max_tokens=8, ignore_eos=True)
    prompts = [prompt(gguf_model, "the lamp"), prompt(gguf_model, "the other lamp")]
    single = [[token.id for token in gguf_model.stream(ids, limits)] for ids in prompts]
    pairs = zip(*(gguf_model.stream(ids, limits) for ids in prompts), strict=True)
    assert [list(ids) for ids in zip(*((a.id, b.id) for a, b in pairs), strict=True)] == single


def test_a_stream_that_is_left_keeps_the_runtime_usable(gguf_model: GGUFRuntime) -> None:
    ids = prompt(gguf_model, "stop me")
    limits = Limits(max_tokens=10, ignore_eos=True)
    whole = [token.id for token in gguf_model.stream(ids, limits)]
    stream = gguf_model.stream(ids, limits)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert [token.id for token in gguf_model.stream(ids, limits)] == whole


def test_a_seed_fixes_a_sampled_reply(gguf_model: GGUFRuntime) -> None:
    ids = prompt(gguf_model, "anything")

    def draw(seed: int) -> list[int]:
        limits = Limits(max_tokens=16, temperature=1.5, seed=seed, ignore_eos=True)
        return [token.id for token in gguf_model.stream(ids, limits)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_an_embedding_has_length_one(gguf_model: GGUFRuntime) -> None:
    embedding = gguf_model.embed(prompt(gguf_model, "the lamp"))
    assert embedding.shape == (64,) and np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(embedding, gguf_model.embed(prompt(gguf_model, "the lamp")))
    texts = [prompt(gguf_model, text) for text in ("the lamp", "a", "the lamp")]
    both = gguf_model.embed_all(texts)
    np.testing.assert_array_equal(both[0], both[2])
    np.testing.assert_allclose(both[0], embedding, atol=1e-6)
    for ids in ([], [1] * (gguf_model.context + 1)):
        with pytest.raises(InputError, match=f"1 to {gguf_model.context} are possible"):
            gguf_model.embed(ids)


def test_an_embedding_may_be_of_several_batches(
    gguf_model: GGUFRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt(gguf_model, "the lamp on the desk and the boat")
    whole = gguf_model.embed(ids)
    monkeypatch.setattr("edgeft.runtimes.llama_context.BATCH_TOKENS", 8)
    first, *others = (part for part in gguf_model.embeddings([ids, ids[:3]]) if part is not None)
    np.testing.assert_allclose(first, whole, atol=1e-5)
    np.testing.assert_allclose(others[0], gguf_model.embed(ids[:3]), atol=1e-5)
    pauses = [part is None for part in gguf_model.embeddings([ids])]
    assert pauses == [True] * -(-len(ids) // 8) + [False] and len(ids) > 8


def test_bad_files_and_prompts_are_user_errors(
    gguf: Path, gguf_model: GGUFRuntime, tmp_path: Path
) -> None:
    data = gguf.read_bytes()
    cases = {"cut": data[: len(data) // 2], "header": data[:40], "noise": b"not a model" * 20}
    for name, content in cases.items():
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"cannot load .*{name}.gguf"):
            open_runtime(file)
    with pytest.raises(InputError, match="the context only"):
        gguf_model.logits([1] * (gguf_model.context + 1))
    with pytest.raises(EdgeftError, match="empty"):
        list(gguf_model.stream([], Limits()))


def test_a_closed_runtime_is_refused(gguf: Path) -> None:
    runtime = GGUFRuntime(gguf)
    stream = runtime.stream([1, 2], Limits(4, ignore_eos=True))
    next(stream)
    for _ in range(2):
        runtime.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)
    with pytest.raises(ValueError, match="closed"):
        runtime.encode("lamp")
