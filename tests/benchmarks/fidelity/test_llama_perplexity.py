"""The figures of llama-perplexity, by hand and against torch on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.benchmarks.fidelity.compare import compare_fidelity, file_chunks
from edgeft.benchmarks.fidelity.llama_perplexity import TokenScores, statistics
from helpers.paths import ROOT

pytestmark = pytest.mark.unit


def test_statistics_by_hand() -> None:
    nll, base = np.array([1.0, 2.0, 3.0, 2.0]), np.array([1.0, 1.0, 3.0, 3.0])
    kl, same = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 1.0, 0.0, 1.0])
    figures = statistics(TokenScores(kl, nll, base, same))
    assert figures["mean PPL(Q)"][0] == pytest.approx(np.exp(2))
    assert figures["mean PPL(base)"] == pytest.approx((np.exp(2), np.exp(2) * 1 / 3**0.5))
    assert figures["mean ln(PPL(Q)/PPL(base))"] == pytest.approx((0, (0.5 / 3) ** 0.5))
    assert figures["mean KLD"] == pytest.approx((0.25, (0.0125 / 3) ** 0.5))
    assert figures["maximum KLD"][0] == 0.4 and figures["median KLD"][0] == pytest.approx(0.25)
    assert figures["same top p"] == pytest.approx((0.75, (0.75 * 0.25 / 3) ** 0.5))
    apart = np.exp(-nll) - np.exp(-base)
    assert figures["mean Δp"][0] == pytest.approx(apart.mean())
    assert figures["RMS Δp"][0] == pytest.approx((apart**2).mean() ** 0.5)
    assert figures["cor(ln(PPL(Q)), ln(PPL(base)))"][0] == pytest.approx(
        np.corrcoef(nll, base)[0, 1]
    )
    unequal = figures["mean PPL(Q)-PPL(base)"]
    assert unequal[0] == pytest.approx(0) and unequal[1] == pytest.approx(
        np.exp(2) * figures["mean ln(PPL(Q)/PPL(base))"][1]
    ), "to first order, where both are alike"


@pytest.mark.slow
def test_a_real_q4_k_m_against_an_independent_computation_in_torch(tmp_path: Path) -> None:
    """llama-cpp-python's own class reads the same chunks; torch computes in double precision."""
    import torch
    from llama_cpp import Llama

    from edgeft.export.pipeline import ExportOptions, export
    from edgeft.runtimes.protocol import open_runtime

    text = ROOT / "benchmarks" / "studies" / "LOG.md"
    artifacts = export(ExportOptions(out=tmp_path, base="smollm2-135m", quants=("f16", "q4_k_m")))
    paths = [artifact.path for artifact in artifacts]
    with open_runtime(paths[0]) as reference, open_runtime(paths[1]) as model:
        items = file_chunks(text, reference, chunks=6)
        (fidelity,) = compare_fidelity(reference, [model], items)
    assert fidelity.per_token is not None
    rows: list[list[Any]] = []
    for path in paths:
        llama = Llama(str(path), n_ctx=512, n_batch=512, logits_all=True, flash_attn=True,
                      verbose=False)  # fmt: skip
        own = []
        for item in items:
            # As many rows as edgeft computes: ggml's 4-bit products of other batches differ.
            llama.reset()
            llama.eval(list(item.ids[: item.rows[-1] + 1]))
            scores = torch.from_numpy(np.array(llama.scores[item.rows], np.float64))
            own.append(torch.log_softmax(scores, dim=-1))
        rows.append(own)
    p, q = (torch.cat(own) for own in rows)
    true = torch.tensor(np.concatenate([item.next_ids for item in items]))
    kl = (p.exp() * (p - q)).sum(-1)
    nll, base = (-one.gather(1, true[:, None])[:, 0] for one in (q, p))
    figures = statistics(fidelity.per_token)
    for name, expected in (
        ("mean KLD", kl.mean()), ("99% KLD", kl.quantile(0.99)), ("median KLD", kl.median()),
        ("mean PPL(Q)", nll.mean().exp()), ("mean PPL(base)", base.mean().exp()),
        ("mean ln(PPL(Q)/PPL(base))", (nll - base).mean()),
        ("RMS Δp", ((-nll).exp() - (-base).exp()).square().mean().sqrt()),
        ("same top p", (p.argmax(-1) == q.argmax(-1)).double().mean()),
    ):  # fmt: skip
        assert figures[name][0] == pytest.approx(float(expected), rel=1e-3), name
    assert figures["mean KLD"][0] == pytest.approx(float(kl.mean()), rel=5e-5)
    assert figures["mean PPL(base)"][0] == pytest.approx(float(base.mean().exp()), rel=1e-6)
    assert 0.01 < figures["mean KLD"][0] < 0.5
