"""A padded model answers as before, and all its widths are multiples of 256."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.benchmarks.studies.padded_llama import WIDTH_MULTIPLE, pad
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.weights.checkpoint import Checkpoint


def test_padding_changes_no_answer(
    make: Callable[[str], tuple[Path, Path, Any]], tmp_path: Path
) -> None:
    base = make("llama")[0]
    padded = pad(base, tmp_path / "padded")
    ids = list(range(5, 60))
    with ReferenceRuntime(base) as before, ReferenceRuntime(padded) as after:
        expected, got = before.logits(ids), after.logits(ids)
    assert np.abs(expected - got).max() < 1e-4 * expected.std()
    for name, info in Checkpoint(padded).tensors.items():
        if name.startswith("model.layers.") and len(info.shape) == 2:
            assert info.shape[1] % WIDTH_MULTIPLE == 0, name
