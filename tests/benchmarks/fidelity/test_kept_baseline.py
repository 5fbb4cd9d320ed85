"""A kept baseline against the model itself, and llama-perplexity's figures against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.benchmarks.fidelity import kept_baseline
from edgeft.benchmarks.fidelity.compare import Measured, compare, file_chunks
from edgeft.benchmarks.fidelity.kept_baseline import Stored, save
from edgeft.benchmarks.fidelity.llama_perplexity import Tokens, statistics
from edgeft.errors import InputError
from helpers.paths import ROOT

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
def sequences(draw: np.random.Generator) -> list[Measured]:
    return [Measured(draw.integers(0, WORDS, 40).tolist(), np.arange(5, 39)) for _ in range(4)]


def test_a_kept_baseline_tells_nearly_what_the_model_does(
    models: tuple[Any, Any], sequences: list[Measured], tmp_path: Path
) -> None:
    reference, model = models
    file = tmp_path / "f16.logprobs"
    save(file, reference, sequences, "f16.gguf")
    stored = Stored(file, sequences)
    (true,) = compare(reference, [model], sequences)
    (found,) = compare(stored, [model], sequences)
    assert found.bound and not true.bound and stored.name == "f16.gguf"
    assert 0.98 * true.kl.value < found.kl.value <= true.kl.value
    assert found.top1 == true.top1
    assert found.surprise.value == pytest.approx(true.surprise.value, abs=1e-5)
    (same,) = compare(stored, [reference], sequences)
    assert abs(same.kl.value) < 1e-6 and same.top1.value == 1
    tokens = sum(len(item.rows) for item in sequences)
    assert file.stat().st_size < tokens * (256 * 6 + 4) + 1000


def test_a_small_vocabulary_is_kept_whole(draw: np.random.Generator, tmp_path: Path) -> None:
    table = draw.normal(0, 2, (30, 30))
    reference, model = Steps(table), Steps(table + draw.normal(0, 1, table.shape))
    items = [Measured(draw.integers(0, 30, 20).tolist(), np.arange(19)) for _ in range(2)]
    save(tmp_path / "b.logprobs", reference, items)  # type: ignore[arg-type]
    (true,) = compare(reference, [model], items)  # type: ignore[arg-type, list-item]
    (found,) = compare(Stored(tmp_path / "b.logprobs", items), [model], items)  # type: ignore[list-item]
    assert found.kl.value == pytest.approx(true.kl.value, abs=1e-5)


def test_what_is_no_kept_baseline(
    models: tuple[Any, Any], sequences: list[Measured], tmp_path: Path
) -> None:
    file = tmp_path / "f16.logprobs"
    save(file, models[0], sequences)
    with pytest.raises(InputError, match="made of other texts"):
        Stored(file, sequences[:3])
    with pytest.raises(InputError, match="no such file"):
        Stored(tmp_path / "none.logprobs", sequences)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="is no kept baseline"):
        Stored(file, sequences)
    file.write_text("something else")
    with pytest.raises(InputError, match="is no kept baseline"):
        Stored(file, sequences)
    assert kept_baseline.fingerprint(sequences) != kept_baseline.fingerprint(sequences[::-1])


def test_statistics_by_hand() -> None:
    nll, base = np.array([1.0, 2.0, 3.0, 2.0]), np.array([1.0, 1.0, 3.0, 3.0])
    kl, same = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 1.0, 0.0, 1.0])
    found = statistics(Tokens(kl, nll, base, same))
    assert found["mean PPL(Q)"][0] == pytest.approx(np.exp(2))
    assert found["mean PPL(base)"] == pytest.approx((np.exp(2), np.exp(2) * 1 / 3**0.5))
    assert found["mean ln(PPL(Q)/PPL(base))"] == pytest.approx((0, (0.5 / 3) ** 0.5))
    assert found["mean KLD"] == pytest.approx((0.25, (0.0125 / 3) ** 0.5))
    assert found["maximum KLD"][0] == 0.4 and found["median KLD"][0] == pytest.approx(0.25)
    assert found["same top p"] == pytest.approx((0.75, (0.75 * 0.25 / 3) ** 0.5))
    apart = np.exp(-nll) - np.exp(-base)
    assert found["mean Δp"][0] == pytest.approx(apart.mean())
    assert found["RMS Δp"][0] == pytest.approx((apart**2).mean() ** 0.5)
    assert found["cor(ln(PPL(Q)), ln(PPL(base)))"][0] == pytest.approx(np.corrcoef(nll, base)[0, 1])
    unequal = found["mean PPL(Q)-PPL(base)"]
    assert unequal[0] == pytest.approx(0) and unequal[1] == pytest.approx(
        np.exp(2) * found["mean ln(PPL(Q)/PPL(base))"][1]
    ), "to first order, where both are alike"


@pytest.mark.slow
def test_a_real_q4_k_m_against_an_independent_computation_in_torch(tmp_path: Path) -> None:
    """llama-cpp-python's own class reads the same chunks; torch computes in double precision."""
    import torch
    from llama_cpp import Llama

    from edgeft.export.pipeline import ExportOptions, export
    from edgeft.runtimes.protocol import open_runtime

    text = ROOT / "benchmarks" / "studies" / "LOG.md"
    made = export(ExportOptions(out=tmp_path, base="smollm2-135m", quants=("f16", "q4_k_m")))
    paths = [artifact.path for artifact in made]
    with open_runtime(paths[0]) as reference, open_runtime(paths[1]) as model:
        items = file_chunks(text, reference, chunks=6)
        (found,) = compare(reference, [model], items)
    assert found.each is not None
    rows: list[list[Any]] = []
    for path in paths:
        llama = Llama(str(path), n_ctx=512, n_batch=512, logits_all=True, flash_attn=True,
                      verbose=False)  # fmt: skip
        own = []
        for item in items:
            llama.reset()
            llama.eval(list(item.ids))
            scores = torch.from_numpy(np.array(llama.scores[item.rows], np.float64))
            own.append(torch.log_softmax(scores, dim=-1))
        rows.append(own)
    p, q = (torch.cat(own) for own in rows)
    true = torch.tensor(np.concatenate([item.next_ids for item in items]))
    kl = (p.exp() * (p - q)).sum(-1)
    nll, base = (-one.gather(1, true[:, None])[:, 0] for one in (q, p))
    told = statistics(found.each)
    for name, wanted in (
        ("mean KLD", kl.mean()), ("99% KLD", kl.quantile(0.99)), ("median KLD", kl.median()),
        ("mean PPL(Q)", nll.mean().exp()), ("mean PPL(base)", base.mean().exp()),
        ("mean ln(PPL(Q)/PPL(base))", (nll - base).mean()),
        ("RMS Δp", ((-nll).exp() - (-base).exp()).square().mean().sqrt()),
        ("same top p", (p.argmax(-1) == q.argmax(-1)).double().mean()),
    ):  # fmt: skip
        # ggml's 4-bit products of another number of rows differ in their last bits.
        assert told[name][0] == pytest.approx(float(wanted), rel=5e-3), name
    assert told["mean KLD"][0] == pytest.approx(float(kl.mean()), rel=5e-4)
    assert told["mean PPL(base)"][0] == pytest.approx(float(base.mean().exp()), rel=1e-6)
    assert 0.01 < told["mean KLD"][0] < 0.5
