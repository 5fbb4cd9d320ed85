"""A padded model answers as before, and 256 divides all that it multiplies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.benchmarks.studies.padded_llama import MULTIPLE, pad
from edgeft.errors import FormatError
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.weights.checkpoint import Checkpoint


def test_zeros_beside_a_model_change_nothing(
    make: Callable[[str], tuple[Path, Path, Any]], tmp_path: Path
) -> None:
    base = make("llama")[0]
    padded = pad(base, tmp_path / "padded")
    ids = list(range(5, 60))
    with ReferenceRuntime(base) as before, ReferenceRuntime(padded) as after:
        wanted, found = before.logits(ids), after.logits(ids)
    assert np.abs(wanted - found).max() < 1e-4 * wanted.std()
    for name, info in Checkpoint(padded).tensors.items():
        if name.startswith("model.layers.") and len(info.shape) == 2:
            assert info.shape[1] % MULTIPLE == 0, name


def test_another_family_is_refused(
    make: Callable[[str], tuple[Path, Path, Any]], tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match="only a Llama"):
        pad(make("qwen2")[0], tmp_path / "padded")
