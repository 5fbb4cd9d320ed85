"""llama.cpp's model and context: what is refused, and what the cache keeps."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeft.errors import InputError, ResourceError
from edgeft.runtimes.llama_context import (
    LlamaContext,
    LlamaModel,
    first_error,
    interrupts_deferred,
)

IDS = list(b"the lamp on the desk")


@pytest.fixture(scope="module")
def model(gguf: Path) -> Iterator[LlamaModel]:
    with contextlib.closing(LlamaModel(gguf, threads=1)) as model:
        yield model


@pytest.fixture
def context(model: LlamaModel) -> Iterator[LlamaContext]:
    params = model.context_params(512, sequences=2)
    with contextlib.closing(LlamaContext(model, params)) as context:
        yield context


def batch(ids: list[int], begin: int = 0, sequence: int = 0) -> list[tuple[int, int, int]]:
    return [(token, position, sequence) for position, token in enumerate(ids, begin)]


def test_a_truncated_file_is_a_user_error_with_its_cause(gguf: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(gguf.read_bytes()[: gguf.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cannot load .*cut\.gguf: .+"):
        LlamaModel(file)


def test_logits_after_the_last_tokens_only(context: LlamaContext) -> None:
    context.decode(batch(IDS), outputs=len(IDS))
    rows = context.logits(len(IDS)).copy()
    assert rows.shape == (len(IDS), 265)
    context.clear()
    context.decode(batch(IDS), outputs=3)
    np.testing.assert_allclose(context.logits(3), rows[-3:], atol=1e-5)


def test_a_truncated_sequence_continues_from_what_is_left(context: LlamaContext) -> None:
    context.decode(batch(IDS), outputs=1)
    row = context.logits(1).copy()
    assert context.truncate(0, 5) == 5
    context.decode(batch(IDS[5:], 5), outputs=1)
    np.testing.assert_allclose(context.logits(1), row, atol=1e-4)


def test_a_copied_sequence_continues_like_the_first(context: LlamaContext) -> None:
    context.decode(batch(IDS[:-1]), outputs=1)
    context.copy(0, 1)
    rows = []
    for sequence in (0, 1):
        context.decode(batch(IDS[-1:], len(IDS) - 1, sequence), outputs=1)
        rows.append(context.logits(1).copy())
    np.testing.assert_array_equal(*rows)


def test_a_batch_has_a_limit(context: LlamaContext) -> None:
    with pytest.raises(ValueError, match="513 tokens in a batch of at most 512"):
        context.decode(batch([1] * 513), outputs=1)


def test_use_after_close_is_refused(gguf: Path) -> None:
    model = LlamaModel(gguf)
    context = LlamaContext(model, model.context_params(256))
    for _ in range(2):
        context.close()
    with pytest.raises(ValueError, match="the context is closed"):
        context.decode(batch(IDS), outputs=1)
    with pytest.raises(ValueError, match="the context is closed"):
        context.truncate(0, 0)
    for _ in range(2):
        model.close()
    with pytest.raises(ValueError, match="the model is closed"):
        LlamaContext(model, model.context_params(256))


def test_a_context_beyond_the_memory_is_refused(model: LlamaModel) -> None:
    with pytest.raises(ResourceError, match="a context of 4000000000 tokens"):
        LlamaContext(model, model.context_params(4_000_000_000))


def test_metadata_is_text_or_none(model: LlamaModel) -> None:
    assert model.metadata("general.architecture") == "llama"
    assert model.metadata("llama.block_count") == "2"
    assert model.metadata("no.such.key") is None


def test_the_first_error_is_the_cause() -> None:
    assert first_error([]) == ""
    lines = ["load: error loading model: bad magic\n", "load_from_file: failed to load model\n"]
    assert first_error(lines) == "bad magic"


def test_a_deferred_interrupt_is_raised_after_the_block() -> None:
    handler, reached = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached and signal.getsignal(signal.SIGINT) is handler


def test_a_cache_type_that_the_heads_do_not_fit_is_refused(gguf: Path) -> None:
    with pytest.raises(InputError, match="heads of a multiple of 32 values, those of .* have 16"):
        LlamaModel(gguf, threads=1, kv_type="q8_0")
