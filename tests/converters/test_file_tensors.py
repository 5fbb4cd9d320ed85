"""Where a training with --ship says that a folder has each weight, the finished folder has it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Family

from edgeft.errors import FormatError
from edgeft.formats import load, nearest_format
from edgeft.merge.view import open_merged
from edgeft.train.ship import check_ship, file_tensors
from edgeft.weights.text_base import open_base
from helpers.converting import convert


@pytest.mark.parametrize(
    ("case", "quant"),
    [("llama", "int4"), ("qwen2", "3bit"), ("pythia", "int8"), ("phi3", "int4-mixed")],
)
def test_a_folder_has_the_tensors_as_they_are_rounded(
    make: Family, tmp_path: Path, case: str, quant: str
) -> None:
    base, adapter, _ = make(case)
    row = nearest_format(quant)
    assert row
    merged, out = open_merged(base, adapter), tmp_path / "out"
    out.mkdir()
    convert(merged, out, quant, format=row.name)
    tensors = file_tensors(open_base(base), quant)
    stored = load(row.digests)(out, merged, tensors)
    for name, file in tensors.items():
        values = np.atleast_2d(merged.tensor(name))
        rows = values if file.order is None else values[file.order]
        expected = file.rounding.digest([file.rounding.store(rows)])
        assert stored[name] == (file.rounding.name, expected), name
    matrices = {name for name, shape in merged.shapes.items() if len(shape) == 2}
    assert matrices <= set(tensors)


def test_phi3s_fused_matrices_keep_more_bits_as_a_whole(make: Family) -> None:
    tensors = file_tensors(open_base(make("phi3")[0]), "int4-mixed")
    bits = {name.split(".")[-2]: file.rounding.name for name, file in tensors.items()}
    assert (
        bits["qkv_proj"] == bits["lm_head"] == "int8_g32_f32" and bits["o_proj"] == "int4_g32_f32"
    )


@pytest.mark.parametrize("quant", ["4bit", "int4"])
def test_experts_are_refused(make: Family, quant: str) -> None:
    with pytest.raises(FormatError, match="experts"):
        check_ship(quant, open_base(make("mixtral")[0]))


def test_a_family_without_the_format_is_refused(make: Family) -> None:
    with pytest.raises(FormatError, match="--ship int4: the .* family cannot be exported as onnx"):
        check_ship("int4", open_base(make("deepseek2-lite")[0]))


def test_a_damaged_folder_is_not_what_was_trained(make: Family, tmp_path: Path) -> None:
    """One code of a matrix is another one."""
    base = make("llama")[0]
    merged, out = open_merged(base, None), tmp_path / "out"
    out.mkdir()
    convert(merged, out, "int4", format="onnx")
    row = nearest_format("int4")
    assert row
    tensors = file_tensors(open_base(base), "int4")
    before = load(row.digests)(out, merged, tensors)
    other = tmp_path / "other"
    shutil.copytree(out, other)
    data = bytearray((other / "model.onnx.data").read_bytes())
    data[0] ^= 1
    (other / "model.onnx.data").write_bytes(data)
    after = load(row.digests)(other, merged, tensors)
    assert before != after and sum(before[name] != after[name] for name in before) == 1
