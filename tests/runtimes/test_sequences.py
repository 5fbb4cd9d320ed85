"""Several sequences in one context: read in parts, stepped together, truncated and copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeft.errors import ResourceError
from edgeft.records import Sampling
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.sequences import Sequences, log_probabilities

IDS = list(b"turn on the lamp on the thirty-first floor")
COUNT, LENGTH = 5, 256


@pytest.fixture(scope="module", params=[True, False], ids=["isolated", "not isolated"])
def sequences(gguf: Path, request: pytest.FixtureRequest) -> Iterator[Sequences]:
    with (
        GGUFRuntime(gguf, threads=1, context=LENGTH, repack=False) as runtime,
        runtime.sequences(COUNT, isolated=request.param) as sequences,
    ):
        yield sequences


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    if "sequences" in request.fixturenames:
        sequences = request.getfixturevalue("sequences")
        for number in range(COUNT):
            sequences.truncate(number, 0)


def test_the_probe_leaves_the_sequences_empty(sequences: Sequences) -> None:
    assert sequences.tokens == [[]] * COUNT and sequences.prompt_lengths == [0] * COUNT
    assert 1 <= sequences.max_batch <= COUNT


def test_a_prompt_read_in_parts_has_the_same_logits(sequences: Sequences) -> None:
    sequences.read(0, IDS)
    whole = sequences.row(0).copy()
    for part in (IDS[:9], IDS[9:30], IDS[30:]):
        sequences.read(1, part)
    np.testing.assert_allclose(sequences.row(0), whole, atol=1e-4)
    assert sequences.tokens[:2] == [IDS, IDS] and sequences.prompt_lengths[:2] == [len(IDS)] * 2


def test_a_prompt_longer_than_a_batch_is_read_in_several(gguf_model: GGUFRuntime) -> None:
    """The runtime's own sequence holds 512 tokens, as many as a batch; here they are cut into 4."""
    conversation = gguf_model._conversation
    conversation.reserve(512)
    rows = []
    for batch_tokens in (512, 128):
        conversation._context.batch_tokens = batch_tokens
        conversation.truncate(0, 0)
        conversation.read(0, IDS * 12)
        rows.append(conversation.row(0).copy())
    conversation._context.batch_tokens = 512
    conversation.truncate(0, 0)
    np.testing.assert_allclose(*rows, atol=1e-3)


@pytest.mark.parametrize("numbers", [[0], [4], [0, 1], [0, 2], [0, 3], [1, 3], [0, 1, 2, 3, 4]])
def test_steps_together_are_steps_alone(sequences: Sequences, numbers: list[int]) -> None:
    """Bit for bit where they are isolated; padding tokens leave no trace."""
    alone = {}
    for number in range(COUNT):
        sequences.read(number, IDS[: 20 + number])
        sequences.step([(number, IDS[number])])
        alone[number] = sequences.row(0).copy()
        sequences.truncate(number, 20 + number)
    sequences.step([(number, IDS[number]) for number in numbers])
    assert sequences.rows.shape == (len(numbers), sequences._size)
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(sequences.row(row), sequences.rows[row])
        if sequences.pad_single_token:
            np.testing.assert_array_equal(sequences.row(row), alone[number])
        np.testing.assert_allclose(sequences.row(row), alone[number], atol=1e-3)
        assert sequences.tokens[number] == [*IDS[: 20 + number], IDS[number]]
        assert sequences.prompt_lengths[number] == 20 + number
    others = set(range(COUNT)) - set(numbers)
    assert all(sequences.tokens[number] == IDS[: 20 + number] for number in others)


def test_truncate_and_copy(sequences: Sequences) -> None:
    sequences.read(0, IDS)
    sequences.step([(0, 7)])
    sequences.copy(0, 3)
    assert sequences.tokens[3] == [*IDS, 7] and sequences.prompt_lengths[3] == len(IDS)
    assert sequences.truncate(3, 10) == 10
    assert sequences.tokens[3] == IDS[:10] and sequences.prompt_lengths[3] == 10
    assert sequences.tokens[0] == [*IDS, 7]
    rows = []
    for number in (0, 3):
        sequences.truncate(number, 10)
        sequences.read(number, IDS[10:])
        rows.append(sequences.row(0).copy())
    np.testing.assert_array_equal(*rows)


def test_an_interrupted_step_is_taken_back(
    sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        sequences.read(number, IDS)
    sequences.step([(0, 7), (1, 8)])
    rows = sequences.rows.copy()
    for number in range(2):
        sequences.truncate(number, len(IDS))
    decode = sequences._context.decode

    def interrupted(*args: object) -> None:
        decode(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sequences._context, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sequences.step([(0, 7), (1, 8)])
    assert sequences.tokens[:2] == [IDS, IDS]
    sequences.step([(0, 7), (1, 8)])
    np.testing.assert_array_equal(sequences.rows, rows)


def test_a_greedy_choice_is_the_likeliest_token(sequences: Sequences) -> None:
    sequences.read(2, IDS)
    sampler = sequences.sampler(Sampling())
    assert sequences.choose(0, sampler) == sequences.row(0).argmax()
    sampler.close()


def test_closed_sequences_are_refused(gguf: Path) -> None:
    with GGUFRuntime(gguf, threads=1, context=LENGTH) as runtime:
        sequences = runtime.sequences(2)
        sequences.close()
        with pytest.raises(ValueError, match="closed"):
            sequences.read(0, IDS)


def test_log_probabilities_are_normalized() -> None:
    row = np.log(np.array([0.1, 0.6, 0.05, 0.25], np.float32)) + 3
    chosen, top = log_probabilities(row, 3, 2)
    assert chosen == pytest.approx(np.log(0.25), abs=1e-6)
    assert [token for token, _ in top] == [1, 3]
    assert [value for _, value in top] == pytest.approx(np.log([0.6, 0.25]), abs=1e-6)
    assert log_probabilities(row, 0, 0)[1] == []


@pytest.mark.parametrize("isolated", [True, False])
def test_a_cache_that_grows_changes_no_bit(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, isolated: bool
) -> None:
    """Read, stepped together and copied, over two growths, beside a cache of the full size."""
    rows: list[list[np.ndarray]] = []
    for first_room in (256, 1024):
        monkeypatch.setattr("edgeft.runtimes.sequences.FIRST_ROOM_TOKENS", first_room)
        with (
            GGUFRuntime(gguf, threads=1, context=1024, repack=False) as runtime,
            runtime.sequences(3, isolated) as sequences,
        ):
            assert sequences.room == first_room
            came: list[np.ndarray] = []
            for number in range(2):
                sequences.read(number, IDS * (5 + number))
            sequences.copy(1, 2)
            for i in range(10):
                sequences.step([(number, 40 + i) for number in range(3)])
                came.append(sequences.rows.copy())
            sequences.read(0, IDS * 10, outputs=3)
            came.append(sequences.rows.copy())
            sequences.copy(0, 1)
            sequences.truncate(0, 300)
            sequences.step([(0, 7), (1, 8)])
            came.append(sequences.rows.copy())
            assert sequences.room == 1024
            rows.append(came)
    for grown, full in zip(*rows, strict=True):
        np.testing.assert_array_equal(grown, full)


def test_a_cache_has_room_for_what_is_used_only(gguf: Path) -> None:
    with (
        GGUFRuntime(gguf, threads=1, context=4096) as runtime,
        runtime.sequences(4) as sequences,
    ):
        rooms = []
        for tokens in (1, 256, 257, 700, 100, 4096, 9999):
            sequences.reserve(tokens)
            rooms.append(sequences.room)
            bytes_ = sequences._context.lib.llama_n_ctx(sequences._context.pointer)
            assert bytes_ == 4 * sequences.room
    assert rooms == [256, 256, 512, 1024, 1024, 4096, 4096]


def test_a_cache_that_cannot_grow_keeps_what_it_has(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        GGUFRuntime(gguf, threads=1, context=1024) as runtime,
        runtime.sequences(2) as sequences,
    ):
        sequences.read(1, IDS)
        sequences.step([(1, 7)])
        row = sequences.row(0).copy()
        sequences.truncate(1, len(IDS))
        with monkeypatch.context() as patch:
            patch.setattr(
                "edgeft.machine.available_memory", lambda: runtime._model.cache_bytes(600)
            )
            with pytest.raises(ResourceError, match="memory"):
                sequences.reserve(300)
        assert sequences.room == 256
        sequences.step([(1, 7)])
        np.testing.assert_array_equal(sequences.row(0), row)
