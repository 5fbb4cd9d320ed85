"""Quantized checkpoints are read bit for bit as the programs that wrote them read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.weights.checkpoint import Checkpoint
from edgeft.weights.compressed_tensors_layout import unpacked
from edgeft.weights.dtypes import float8_values

ROWS, COLUMNS = 48, 128
NAME = "model.layers.0.mlp.up_proj"
SOME = np.array([47, 3, 3, 20])
"""rows in any order"""


def write(folder: Path, tensors: dict[str, Any], quantization_config: dict[str, Any]) -> Checkpoint:
    from safetensors.torch import save_file

    save_file({f"{NAME}.{part}": t.contiguous() for part, t in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    config = {"quantization_config": quantization_config}
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder)


def check(weights: Checkpoint, want: Any, dtype: str) -> None:
    """All rows, a range and a choice of rows equal `want`; no other tensor is left."""
    name, want = f"{NAME}.weight", want.float().numpy()
    assert {n: i.dtype for n, i in weights.tensors.items()} == {name: dtype}
    assert weights.tensors[name].shape == want.shape
    np.testing.assert_array_equal(weights.read(name), want)
    np.testing.assert_array_equal(weights.rows(name, slice(5, 31)), want[5:31])
    np.testing.assert_array_equal(weights.rows(name, SOME), want[SOME])


def some(seed: int = 0) -> Any:
    import torch

    return torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("dtype", "block", "storage"),
    [("float32", 64, "uint8"), ("bfloat16", 64, "uint8"), ("float16", 128, "uint8"),
     ("bfloat16", 32, "bfloat16"), ("float16", 64, "float32")],
)  # fmt: skip
def test_bitsandbytes_4_bit(
    tmp_path: Path, quant_type: str, nested: bool, dtype: str, block: int, storage: str
) -> None:
    import torch
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        some().to(getattr(torch, dtype)), blocksize=block, compress_statistics=nested,
        quant_type=quant_type, quant_storage=getattr(torch, storage),
    )  # fmt: skip
    want = functional.dequantize_4bit(packed, state)
    parts = {f"weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    assert ("weight.nested_absmax" in parts) == nested
    weights = write(tmp_path, {"weight": packed} | parts, {"quant_method": "bitsandbytes"})
    check(weights, want, quant_type.upper())


@pytest.mark.parametrize("columns", [96, 33])
def test_blocks_of_bitsandbytes_cross_the_ends_of_rows(tmp_path: Path, columns: int) -> None:
    import torch
    from bitsandbytes import functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    packed, state = functional.quantize_4bit(some()[:, :columns].contiguous(), quant_type="nf4")
    with torch.compiler.set_stance("force_eager"):  # compiling it takes 12 s
        want = _dequantize_4bit_compute(
            packed.reshape(-1), state.absmax, state.code, state.blocksize, state.shape, state.dtype
        )
    parts = {f"weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    weights = write(tmp_path, {"weight": packed} | parts, {"load_in_4bit": True})
    check(weights, want, "NF4")


def test_bitsandbytes_8_bit(tmp_path: Path) -> None:
    import torch
    from bitsandbytes import functional

    codes, maxima, _ = functional.int8_vectorwise_quant(some().half())
    want = functional.int8_vectorwise_dequant(codes, maxima)
    tensors = {"weight": codes, "SCB": maxima, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    check(write(tmp_path, tensors, config), want, "INT8")
    tensors["weight_format"] = torch.tensor(2, dtype=torch.uint8)
    with pytest.raises(InputError, match="ordered for one kind of GPU"):
        write(tmp_path, tensors, config)


def test_a_damaged_layer_of_bitsandbytes_is_an_input_error(tmp_path: Path) -> None:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(some(), quant_type="nf4")
    parts = {f"weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    parts["weight.absmax"] = parts["weight.absmax"][:-1]
    with pytest.raises(InputError, match="is no weight of bitsandbytes"):
        write(tmp_path, {"weight": packed} | parts, {"quant_method": "bitsandbytes"})


def awq(scale_dtype: str) -> tuple[dict[str, Any], Any]:
    """Tensors of a layer of AutoAWQ, groups of 32, and its values, by the definition."""
    import torch

    draw = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (COLUMNS, ROWS), generator=draw, dtype=torch.int32)
    zeros = torch.randint(0, 16, (COLUMNS // 32, ROWS), generator=draw, dtype=torch.int32)
    scales = torch.rand((COLUMNS // 32, ROWS), generator=draw).to(getattr(torch, scale_dtype)) / 8
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word holds row order[i] of its eight

    def pack(values: Any) -> Any:
        words = torch.zeros((len(values), ROWS // 8), dtype=torch.int32)
        for i, row in enumerate(order):
            words |= values[:, row::8] << (4 * i)
        return words

    step = codes - zeros.repeat_interleave(32, 0)
    want = step.to(torch.int8) * scales.repeat_interleave(32, 0)
    return {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}, want.T


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "config",
    [{"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32},
     {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4}],
)  # fmt: skip
def test_awq(tmp_path: Path, scale_dtype: str, config: dict[str, Any]) -> None:
    tensors, want = awq(scale_dtype)
    check(write(tmp_path, tensors, config), want, "AWQ")


def test_early_awq_has_its_settings_in_a_file_of_its_own(tmp_path: Path) -> None:
    tensors, want = awq("float16")
    write(tmp_path, tensors, {"quant_method": "awq"})
    (tmp_path / "config.json").write_text("{}")
    settings = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(settings))
    check(Checkpoint(tmp_path), want, "AWQ")


@pytest.mark.parametrize("changed", [{"version": "gemv"}, {"bits": 8}, {"version": "marlin"}])
def test_other_layouts_of_awq_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    tensors, _ = awq("float16")
    with pytest.raises(InputError, match="cannot be read") as no:
        write(tmp_path, tensors, {"quant_method": "awq"} | changed)
    assert "unquantized" in no.value.hint


def test_auto_round_in_the_layout_of_gptq_is_read_as_gptq(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from edgeft.weights import gptq_layout
    from helpers.tiny import some_codes

    codes = some_codes(64, 128, 4, 32, sym=True)
    save_file({f"{NAME}.{n}": a for n, a in gptq_layout.pack(codes).items()},
              tmp_path / "model.safetensors")  # fmt: skip
    config = {
        "quant_method": "intel/auto-round",
        "packing_format": "auto_round:auto_gptq",
        "bits": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    np.testing.assert_array_equal(Checkpoint(tmp_path).read(f"{NAME}.weight"), codes.values())


@pytest.mark.parametrize(
    ("name", "shape", "scale_dtype"),
    [("weight_scale_inv", (3, 4), "float32"), ("weight_scale_inv", (3, 4), "bfloat16"),
     ("weight_scale_inv", (), "float32"), ("weight_scale", (1,), "float32"),
     ("weight_scale", (ROWS, 1), "float32"), ("weight_scale_inv", (ROWS, 4), "uint8"),
     ("weight_scale_inv", (3, 4), "float8_e8m0fnu")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8(
    tmp_path: Path, name: str, shape: tuple[int, ...], scale_dtype: str, dtype: str
) -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    draw = torch.Generator().manual_seed(2)
    weight = (some() * 20).to(getattr(torch, dtype))
    scale = torch.rand(shape, generator=draw) + 0.01
    if scale_dtype == "uint8":
        scale = torch.randint(100, 130, shape, generator=draw)
    scale = scale.to(getattr(torch, scale_dtype))
    want = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    tensors = {"weight": weight, name: scale, "input_scale": torch.ones(1)}
    check(write(tmp_path, tensors, {"quant_method": "fp8"}), want, "FP8")


def test_the_last_block_of_fp8_may_be_cut_off(tmp_path: Path) -> None:
    import torch

    weight, scale = some().to(torch.float8_e4m3fn), torch.rand((2, 4)) + 0.1
    config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    grown = scale.repeat_interleave(32, 0)[:ROWS].repeat_interleave(32, 1)
    weights = write(tmp_path, {"weight": weight, "weight_scale_inv": scale}, config)
    check(weights, weight.float() * grown, "FP8")
    with pytest.raises(InputError, match="weight_scale_inv is"):
        write(tmp_path, {"weight": weight, "weight_scale_inv": torch.ones(5, 4)}, config)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_the_values_of_eight_bits_are_torchs(dtype: str) -> None:
    import torch

    want = torch.arange(256, dtype=torch.uint8).view(getattr(torch, dtype)).float().numpy()
    name = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}.get(dtype, "F8_E8M0")
    np.testing.assert_array_equal(float8_values(name), want)


def compressed(
    bits: int, groups: int, symmetric: bool, scale_dtype: str, packed: bool
) -> tuple[dict[str, Any], Any]:
    """Tensors of a layer of compressed-tensors, and its values, by the definition."""
    import torch

    draw = torch.Generator().manual_seed(3)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (ROWS, COLUMNS), generator=draw, dtype=torch.int8)
    scale = (torch.rand((ROWS, groups), generator=draw) / 8).to(getattr(torch, scale_dtype))
    zero = torch.randint(low, high, (ROWS, groups), generator=draw, dtype=torch.int8)

    def grown(values: Any) -> Any:
        return values.repeat_interleave(COLUMNS // groups, 1)

    step = codes.to(scale.dtype)
    if not symmetric:
        step = step - grown(zero).to(scale.dtype)
    tensors = {"weight_scale": scale} | ({} if symmetric else {"weight_zero_point": zero})
    if not packed:
        return tensors | {"weight": codes}, step * grown(scale)
    if not symmetric:
        tensors["weight_zero_point"] = dense(zero.T, bits).T
    shape = torch.tensor([ROWS, COLUMNS])
    return tensors | {"weight_packed": dense(codes, bits), "weight_shape": shape}, step * grown(
        scale
    )


def dense(values: Any, bits: int) -> Any:
    """Rows of signed codes as one stream of bits, in words of 32."""
    import torch

    rows = []
    for row in (values.long() + 2 ** (bits - 1)).tolist():
        stream = sum(code << (bits * i) for i, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
        rows.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def settings(format: str, bits: int, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int"} | weights}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": group},
    }


@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("bits", "groups", "packed"), [(4, 4, True), (8, 1, True), (3, 4, True), (8, 1, False)]
)
def test_compressed_tensors(
    tmp_path: Path, bits: int, groups: int, packed: bool, symmetric: bool, scale_dtype: str
) -> None:
    tensors, want = compressed(bits, groups, symmetric, scale_dtype, packed)
    format = "pack-quantized" if packed else "int-quantized"
    check(write(tmp_path, tensors, settings(format, bits)), want, f"INT{bits}")


@pytest.mark.parametrize("shape", [(1,), (ROWS, 1), (3, 4)])
def test_compressed_tensors_in_8_bit_floating_point(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import torch

    weight, scale = some().to(torch.float8_e4m3fn), (torch.rand(shape) + 0.1).bfloat16()
    grown = scale.reshape(1, 1) if shape == (1,) else scale
    grown = grown.repeat_interleave(ROWS // grown.shape[0], 0)
    grown = grown.repeat_interleave(COLUMNS // grown.shape[1], 1)
    tensors = {"weight": weight, "weight_scale": scale, "input_scale": torch.ones(1)}
    weights = write(tmp_path, tensors, settings("float-quantized", 8, type="float"))
    check(weights, weight.bfloat16() * grown, "FP8")


def test_columns_of_compressed_tensors_may_choose_their_groups(tmp_path: Path) -> None:
    import torch

    tensors, _ = compressed(4, 4, True, "float32", packed=True)
    index = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(4)).int() % 4
    codes = torch.from_numpy(unpacked(tensors["weight_packed"].numpy(), 4, COLUMNS))
    want = codes * tensors["weight_scale"][:, index]
    weights = write(tmp_path, tensors | {"weight_g_idx": index}, settings("pack-quantized", 4))
    check(weights, want, "INT4")


@pytest.mark.parametrize(
    "changed",
    [{"format": "marlin-24"}, {"format": "nvfp4-pack-quantized"},
     {"sparsity_config": {"format": "sparse-24-bitmask"}}],
)  # fmt: skip
def test_other_formats_of_compressed_tensors_are_refused(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    tensors, _ = compressed(4, 4, True, "float32", packed=True)
    with pytest.raises(InputError, match="cannot be read") as no:
        write(tmp_path, tensors, settings("pack-quantized", 4) | changed)
    assert "unquantized" in no.value.hint


def test_a_layer_of_compressed_tensors_must_fit_together(tmp_path: Path) -> None:
    tensors, _ = compressed(4, 4, True, "float32", packed=True)
    tensors["weight_scale"] = tensors["weight_scale"][:, :3]
    with pytest.raises(InputError, match="is no layer of compressed-tensors"):
        write(tmp_path, tensors, settings("pack-quantized", 4))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_mlx(tmp_path: Path, bits: int, scale_dtype: str) -> None:
    import torch

    draw = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 2**bits, (ROWS, COLUMNS), generator=draw, dtype=torch.int32)
    dtype = getattr(torch, scale_dtype)
    scales = (torch.rand((ROWS, 2), generator=draw) / 8).to(dtype)
    biases = torch.randn((ROWS, 2), generator=draw).to(dtype)
    grown = (values.repeat_interleave(64, 1) for values in (scales, biases))
    want = codes.to(dtype) * next(grown) + next(grown)
    words = dense(codes - 2 ** (bits - 1), bits).view(torch.uint32)
    write(tmp_path, {"weight": words, "scales": scales, "biases": biases}, {})
    settings = {"group_size": 32, "bits": 8, NAME: {"group_size": 64, "bits": bits}}
    both = {"quantization": settings, "quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(both))
    check(Checkpoint(tmp_path), want, f"INT{bits}")
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization": settings | {"mode": "mxfp4"}})
    )
    with pytest.raises(InputError, match="MLX's mode 'mxfp4' cannot be read"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors"])
def test_a_weight_of_8_bits_without_a_scale_is_refused(tmp_path: Path, method: str) -> None:
    import torch

    with pytest.raises(InputError, match=r"no scale|is no layer of compressed-tensors"):
        write(tmp_path, {"weight": some().to(torch.float8_e4m3fn)}, {"quant_method": method})


@pytest.mark.parametrize(
    "changed",
    [{"weight_block_size": ["a", {}]}, {"sparsity_config": "dense"}, {"config_groups": {"g": {"weights": 3}}},
     {"config_groups": [1]}],
)  # fmt: skip
@pytest.mark.parametrize("method", ["fp8", "compressed-tensors"])
def test_damaged_settings_are_an_input_error(
    tmp_path: Path, method: str, changed: dict[str, Any]
) -> None:
    import torch

    tensors = {"weight": some().to(torch.float8_e4m3fn), "weight_scale": torch.ones(2, 4)}
    try:
        write(tmp_path, tensors, {"quant_method": method} | changed)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "key", ["nested_blocksize", "nested_offset", "blocksize", "shape", "dtype"]
)
@pytest.mark.parametrize("value", [None, 0, "a", [], 10**30])
def test_a_damaged_state_of_bitsandbytes_is_an_input_error(
    tmp_path: Path, key: str, value: Any
) -> None:
    import torch
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(some(), compress_statistics=True, quant_type="nf4")
    parts = {f"weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    name = "weight.quant_state.bitsandbytes__nf4"
    settings = json.loads(parts[name].numpy().tobytes()) | {key: value}
    parts[name] = torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8)
    try:
        weights = write(tmp_path, {"weight": packed} | parts, {"quant_method": "bitsandbytes"})
        assert key == "nested_offset", "a number is all that an offset must be"
        weights.read(f"{NAME}.weight")
    except InputError as error:
        assert "is no weight of bitsandbytes" in str(error)
