"""What runtimes that write token by token have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeft.records import Limits


def choose(logits: npt.NDArray[np.float32], limits: Limits, draw: np.random.Generator) -> int:
    """One token by the logits of the vocabulary: greedy, or nucleus sampling (arXiv 1904.09751)."""
    if limits.temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)
    scaled = (logits[order] - logits[order[0]]) / limits.temperature
    share = np.exp(scaled) / np.exp(scaled).sum()
    keep = int(np.searchsorted(np.cumsum(share), limits.top_p)) + 1
    return int(draw.choice(order[:keep], p=share[:keep] / share[:keep].sum()))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
