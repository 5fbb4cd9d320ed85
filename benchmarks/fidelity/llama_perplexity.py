"""Scores of each token -> the figures that llama-perplexity prints for --kl-divergence.

    statistics(scores)["mean KLD"]                     # (0.0713, 0.0009), value and its standard error

Formulas and names are those of llama.cpp's tools/perplexity/perplexity.cpp (`kl_divergence`), so that
the two can be compared. Its errors assume independent tokens, which those of one text are not; decisions
should rest on the errors over sequences of `edgeft.benchmarks.fidelity.compare`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HIGH = {"99.9%": 0.999, "99%": 0.99, "95%": 0.95, "90%": 0.90}
LOW = {"10%": 0.10, "5%": 0.05, "1%": 0.01, "0.1%": 0.001}


@dataclass(frozen=True)
class TokenScores:
    """One number per scored token, each of shape (tokens,)."""

    kl: Floats
    """divergence from the reference, nats"""
    nll: Floats
    """negative log-likelihood of the true token, nats"""
    base_nll: Floats
    """the same by the reference"""
    same: Floats
    """1 where both models have the same likeliest token"""


def statistics(scores: TokenScores) -> dict[str, tuple[float, float | None]]:
    """Name -> (value, standard error; None for a quantile); probabilities are shares, not percent."""
    ppl, base = (_perplexity(nll) for nll in (scores.nll, scores.base_nll))
    ratio = _mean(scores.nll - scores.base_nll)
    covariance = float(np.cov(scores.nll, scores.base_nll)[0, 1]) / len(scores.nll)
    difference = ppl[0] - base[0]
    spread = ppl[1] ** 2 + base[1] ** 2 - 2 * ppl[0] * base[0] * covariance
    change = np.exp(-scores.nll) - np.exp(-scores.base_nll)
    square = _mean(change**2)
    root = square[0] ** 0.5
    return {
        "mean PPL(Q)": ppl,
        "mean PPL(base)": base,
        "cor(ln(PPL(Q)), ln(PPL(base)))": (_correlation(scores.nll, scores.base_nll), None),
        "mean ln(PPL(Q)/PPL(base))": ratio,
        "mean PPL(Q)/PPL(base)": (float(np.exp(ratio[0])), float(np.exp(ratio[0])) * ratio[1]),
        "mean PPL(Q)-PPL(base)": (difference, max(spread, 0.0) ** 0.5),
        "mean KLD": _mean(scores.kl),
        "maximum KLD": (float(scores.kl.max()), None),
        **_quantiles(scores.kl, HIGH, "KLD"),
        "median KLD": (float(np.median(scores.kl)), None),
        **_quantiles(scores.kl, LOW, "KLD"),
        "minimum KLD": (float(scores.kl.min()), None),
        "mean Δp": _mean(change),
        "maximum Δp": (float(change.max()), None),
        **_quantiles(change, HIGH | {"75%": 0.75}, "Δp"),
        "median Δp": (float(np.median(change)), None),
        **_quantiles(change, {"25%": 0.25} | LOW, "Δp"),
        "minimum Δp": (float(change.min()), None),
        "RMS Δp": (root, 0.5 * square[1] / root if root else 0.0),
        "same top p": _share(scores.same),
    }


def _mean(values: Floats) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / np.sqrt(max(len(values) - 1, 1)))


def _share(values: Floats) -> tuple[float, float]:
    p = float(values.mean())
    return p, float(np.sqrt(p * (1 - p) / max(len(values) - 1, 1)))


def _perplexity(nll: Floats) -> tuple[float, float]:
    value, error = _mean(nll)
    return float(np.exp(value)), float(np.exp(value)) * error


def _correlation(one: Floats, other: Floats) -> float:
    if one.std() == 0 or other.std() == 0:
        return 1.0
    return float(np.corrcoef(one, other)[0, 1])


def _quantiles(
    values: Floats, shares: dict[str, float], name: str
) -> dict[str, tuple[float, float | None]]:
    return {f"{share} {name}": (float(np.quantile(values, at)), None)
            for share, at in shares.items()}  # fmt: skip
