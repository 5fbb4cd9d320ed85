"""The figures that llama-perplexity prints for --kl-divergence, from those of each token.

    statistics(tokens)["mean KLD"]                     # (0.0713, 0.0009), value and its standard error

Formulas and names as in llama.cpp's tools/perplexity/perplexity.cpp (`kl_divergence`), for comparison
with that tool. Its errors take the tokens as independent, which those of one text are not: for decisions
use the errors over sequences of `edgeft.benchmarks.fidelity.compare`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HIGH = {"99.9%": 0.999, "99%": 0.99, "95%": 0.95, "90%": 0.90}
LOW = {"10%": 0.10, "5%": 0.05, "1%": 0.01, "0.1%": 0.001}


@dataclass(frozen=True)
class Tokens:
    """One number per token that counts."""

    kl: Floats
    nll: Floats
    """of the true token by the model, nats"""
    base_nll: Floats
    same: Floats
    """1 where both find the same token the likeliest"""


def statistics(tokens: Tokens) -> dict[str, tuple[float, float | None]]:
    """Name -> (value, standard error, None for a quantile); probabilities are shares, not percent."""
    ppl, base = (_perplexity(nll) for nll in (tokens.nll, tokens.base_nll))
    ratio = _mean(tokens.nll - tokens.base_nll)
    together = float(np.cov(tokens.nll, tokens.base_nll)[0, 1]) / len(tokens.nll)
    difference = ppl[0] - base[0]
    spread = ppl[1] ** 2 + base[1] ** 2 - 2 * ppl[0] * base[0] * together
    apart = np.exp(-tokens.nll) - np.exp(-tokens.base_nll)
    square = _mean(apart**2)
    root = square[0] ** 0.5
    found: dict[str, tuple[float, float | None]] = {
        "mean PPL(Q)": ppl,
        "mean PPL(base)": base,
        "cor(ln(PPL(Q)), ln(PPL(base)))": (_correlation(tokens.nll, tokens.base_nll), None),
        "mean ln(PPL(Q)/PPL(base))": ratio,
        "mean PPL(Q)/PPL(base)": (float(np.exp(ratio[0])), float(np.exp(ratio[0])) * ratio[1]),
        "mean PPL(Q)-PPL(base)": (difference, max(spread, 0.0) ** 0.5),
        "mean KLD": _mean(tokens.kl),
        "maximum KLD": (float(tokens.kl.max()), None),
        **_quantiles(tokens.kl, HIGH, "KLD"),
        "median KLD": (float(np.median(tokens.kl)), None),
        **_quantiles(tokens.kl, LOW, "KLD"),
        "minimum KLD": (float(tokens.kl.min()), None),
        "mean Δp": _mean(apart),
        "maximum Δp": (float(apart.max()), None),
        **_quantiles(apart, HIGH | {"75%": 0.75}, "Δp"),
        "median Δp": (float(np.median(apart)), None),
        **_quantiles(apart, {"25%": 0.25} | LOW, "Δp"),
        "minimum Δp": (float(apart.min()), None),
        "RMS Δp": (root, 0.5 * square[1] / root if root else 0.0),
        "same top p": _share(tokens.same),
    }
    return found


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
