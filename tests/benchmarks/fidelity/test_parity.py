"""The finished file against the live adapter: what landed, what did not, and what was doubled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.adapter.deltas import LoRA
from edgeft.benchmarks.fidelity.parity import PROMPTS, Expected, check_live, expect
from edgeft.errors import ProofError
from edgeft.merge.view import Merged, open_merged
from edgeft.records import Message
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.reference import ReferenceRuntime
from helpers.converting import convert
from helpers.families import TINY, make_tiny

Made = tuple[Path, Path, Expected]


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    base, adapter, _ = make_tiny(tmp_path_factory.mktemp("live"), TINY[request.param])
    plain = open_merged(base, None)
    weights = ((name, plain.tensor(name)) for name in plain.shapes)
    with ReferenceRuntime(base, weights=weights, adapters=[(adapter, 1.0)]) as live:
        texts = [live.chat.render([Message("user", prompt)]) for prompt in PROMPTS]
        expected = expect(live, texts, context=256)
    assert len(expected.prompts) == 32
    return base, adapter, expected


def checked(made: Made, folder: Path, quant: str, exact: bool) -> dict[str, Any]:
    base, adapter, expected = made
    convert(open_merged(base, adapter), folder / "x.gguf", quant, threads=2)
    with GGUFRuntime(folder / "x.gguf", context=256) as model:
        return check_live(model, expected, exact)


@pytest.mark.parametrize("quant", ["f32", "f16", "q8_0", "q4_k_m"])
def test_a_merge_answers_as_the_live_adapter(made: Made, tmp_path: Path, quant: str) -> None:
    facts = checked(made, tmp_path, quant, exact=quant in ("f32", "f16"))
    assert facts["prompts"] == 32
    rounding = {"f32": 1e-3, "f16": 0.01, "q8_0": 0.05, "q4_k_m": 0.2}
    assert facts["beta"] == pytest.approx(1, abs=rounding[quant])
    assert facts["kl"] < (1e-4 if quant in ("f32", "f16") else 0.5)


@pytest.fixture
def factor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """A merge that adds the change so many times, unnoticed by its own bookkeeping."""

    plain = Merged.rows

    def wrong(self: Merged, name: str, rows: Any) -> Any:
        if not self.adapted(name):
            return plain(self, name, rows)
        before, delta = self.addends(name, rows)
        return before + np.float32(request.param) * delta

    monkeypatch.setattr(Merged, "rows", wrong)
    yield request.param


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.9, 2.0], indirect=True)
def test_a_wrong_merge_is_refused(made: Made, tmp_path: Path, factor: float) -> None:
    with pytest.raises(ProofError, match="does not answer as the live adapter does"):
        checked(made, tmp_path, "f16", exact=True)


@pytest.mark.parametrize("factor", [0.0], indirect=True)
@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_a_lost_adapter_is_refused_in_coarse_types(
    made: Made, tmp_path: Path, factor: float, quant: str
) -> None:
    with pytest.raises(ProofError, match="1 = landed, 0 = lost"):
        checked(made, tmp_path, quant, exact=False)


@pytest.mark.parametrize("wrong", ["doubled", "other rows"])
def test_what_the_landing_proof_cannot_see_the_live_model_does(
    made: Made, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change itself is wrong, and arrives as it is."""
    right = LoRA.delta

    def delta(self: LoRA, rows: Any, before: Any, read: Any) -> Any:
        found = right(self, rows, before, read)
        return 2 * found if wrong == "doubled" else found[::-1]

    monkeypatch.setattr(LoRA, "delta", delta)
    with pytest.raises(ProofError, match="does not answer as the live adapter does"):
        checked(made, tmp_path, "f16", exact=True)


def test_logits_that_are_no_numbers_are_refused(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        GGUFRuntime,
        "logits",
        lambda self, ids, last=None: np.full((len(ids), self.vocab_size), np.nan),
    )
    with pytest.raises(ProofError, match="no numbers"):
        checked(made, tmp_path, "q8_0", exact=False)
