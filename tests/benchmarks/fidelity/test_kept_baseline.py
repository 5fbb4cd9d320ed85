"""A kept baseline against the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.benchmarks.fidelity import kept_baseline
from edgeft.benchmarks.fidelity.compare import ScoredSequence, compare_fidelity
from edgeft.benchmarks.fidelity.kept_baseline import KeptBaseline, save
from edgeft.errors import InputError

pytestmark = pytest.mark.unit

WORDS = 600


class Steps:
    """A runtime whose logits depend on the last token alone."""

    def __init__(self, table: Any) -> None:
        self.table = np.asarray(table, np.float32)
        self.vocab_size = self.table.shape[1]

    def logits(self, ids: Any, last: int | None = None) -> Any:
        return self.table[list(ids)][-(last or len(ids)) :]


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def models(draw: np.random.Generator) -> tuple[Any, Any]:
    table = draw.normal(0, 3, (WORDS, WORDS))
    return Steps(table), Steps(table + draw.normal(0, 0.4, table.shape))


@pytest.fixture
def sequences(draw: np.random.Generator) -> list[ScoredSequence]:
    return [
        ScoredSequence(draw.integers(0, WORDS, 40).tolist(), np.arange(5, 39)) for _ in range(4)
    ]


def test_a_kept_baseline_tells_nearly_what_the_model_does(
    models: tuple[Any, Any], sequences: list[ScoredSequence], tmp_path: Path
) -> None:
    reference, model = models
    file = tmp_path / "f16.logprobs"
    save(file, reference, sequences, "f16.gguf")
    stored = KeptBaseline(file, sequences)
    (true,) = compare_fidelity(reference, [model], sequences)
    (kept,) = compare_fidelity(stored, [model], sequences)
    assert kept.bound and not true.bound and stored.name == "f16.gguf"
    assert 0.98 * true.kl.value < kept.kl.value <= true.kl.value
    assert kept.top1 == true.top1
    assert kept.log_ppl_ratio.value == pytest.approx(true.log_ppl_ratio.value, abs=1e-5)
    (same,) = compare_fidelity(stored, [reference], sequences)
    assert abs(same.kl.value) < 1e-6 and same.top1.value == 1
    tokens = sum(len(item.rows) for item in sequences)
    assert file.stat().st_size < tokens * (256 * 6 + 4) + 1000


def test_a_small_vocabulary_is_kept_whole(draw: np.random.Generator, tmp_path: Path) -> None:
    table = draw.normal(0, 2, (30, 30))
    reference, model = Steps(table), Steps(table + draw.normal(0, 1, table.shape))
    items = [ScoredSequence(draw.integers(0, 30, 20).tolist(), np.arange(19)) for _ in range(2)]
    save(tmp_path / "b.logprobs", reference, items)  # type: ignore[arg-type]
    (true,) = compare_fidelity(reference, [model], items)  # type: ignore[arg-type, list-item]
    (kept,) = compare_fidelity(KeptBaseline(tmp_path / "b.logprobs", items), [model], items)  # type: ignore[list-item]
    assert kept.kl.value == pytest.approx(true.kl.value, abs=1e-5)


def test_what_is_no_kept_baseline(
    models: tuple[Any, Any], sequences: list[ScoredSequence], tmp_path: Path
) -> None:
    file = tmp_path / "f16.logprobs"
    save(file, models[0], sequences)
    with pytest.raises(InputError, match="made of other texts"):
        KeptBaseline(file, sequences[:3])
    with pytest.raises(InputError, match="no such file"):
        KeptBaseline(tmp_path / "none.logprobs", sequences)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="is no kept baseline"):
        KeptBaseline(file, sequences)
    file.write_text("something else")
    with pytest.raises(InputError, match="is no kept baseline"):
        KeptBaseline(file, sequences)
    assert kept_baseline.fingerprint(sequences) != kept_baseline.fingerprint(sequences[::-1])
