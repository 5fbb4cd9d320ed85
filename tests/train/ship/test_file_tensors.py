"""Types and rows of a file as training sees them are those of the export's plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Family

from edgeft.converters.gguf.plan import make_plan
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError
from edgeft.merge.view import open_merged
from edgeft.train.ship import check_ship, file_tensors
from edgeft.weights.text_base import open_base
from helpers.tiny import make_base


@pytest.mark.parametrize("case", ["llama", "qwen2", "pythia", "phi3-long", "gemma2"])
def test_the_tensors_are_those_of_the_exports_plan(make: Family, case: str) -> None:
    base = open_base(make(case)[0])
    for quant in ("q4_0", "q4_k_m", "q3_k_l"):
        merged = open_merged(base.folder, None)
        plan = make_plan(merged, quant, ConvertOptions(threads=1))
        tensors = file_tensors(base, quant)
        quantized = {name: q for name, q in plan.types.items() if q.name != "F32"}
        assert {file.name: file.rounding.qtype for file in tensors.values()} == quantized
        for name, file in tensors.items():
            (part,) = plan.targets[file.name].parts
            values = merged.tensor(name)
            rows = values if file.order is None else values[file.order]
            assert part.source == name
            assert np.array_equal(part.read(merged.rows, slice(None)), rows)


@pytest.mark.parametrize("case", ["mixtral", "deepseek2-lite"])
def test_weights_that_a_file_does_not_store_row_by_row_are_refused(make: Family, case: str) -> None:
    with pytest.raises(FormatError, match="is not stored row by row"):
        check_ship("q4_0", open_base(make(case)[0]))


@pytest.mark.parametrize("quant", ["f16", "gptq-int4", "q4"])
def test_what_is_no_type_that_rounds_is_refused(tiny_base: Path, quant: str) -> None:
    with pytest.raises(FormatError, match=f"--ship {quant} is no type"):
        check_ship(quant, open_base(tiny_base))


def test_a_type_without_scales_of_its_own_is_refused(tmp_path: Path) -> None:
    base = open_base(make_base(tmp_path / "base", hidden=256))
    check_ship("iq4_xs", base)
    with pytest.raises(
        FormatError, match="iq3_s: its values are too slow to compute in every step"
    ):
        check_ship("iq3_s", base)
