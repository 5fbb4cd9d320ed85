"""The layout of MatMulNBits and GatherBlockQuantized, held to onnxruntime's own operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeft.converters.onnx import matmul_nbits as nbits
from edgeft.quantization.group_codes import nearest_codes
from edgeft.weights import gptq_layout
from helpers.tiny import some_codes

ROWS, COLUMNS = 24, 192


def run(op: str, feeds: dict[str, Any], constants: dict[str, Any], **attributes: Any) -> Any:
    """One operator of onnxruntime's, in float32."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    (name, given), *_ = feeds.items()
    kind = TensorProto.INT64 if given.dtype == np.int64 else TensorProto.FLOAT
    order = {"MatMulNBits": [name, *constants]}.get(
        op, [*constants][:1] + [name, *[*constants][1:]]
    )
    node = helper.make_node(op, order, ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info(name, kind, given.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def product(codes: gptq_layout.Codes, block: int) -> Any:
    """The transposed matrix, as MatMulNBits sees it: a product with the identity."""
    arrays = zip("bsz", nbits.pack(codes, block), strict=True)
    columns = codes.codes.shape[1]
    return run(
        "MatMulNBits", {"x": np.eye(columns, dtype=np.float32)},
        {key: array for key, array in arrays if array is not None},
        K=columns, N=len(codes.codes), bits=nbits.stored_bits(codes.bits), block_size=block,
    )  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_have_the_values_of_matmulnbits(bits: int, group: int, symmetric: bool) -> None:
    codes = some_codes(ROWS, COLUMNS, bits, group, symmetric)
    block = nbits.largest_block(codes.groups)
    assert block == group
    if bits == 3:  # its zero of 4 is not the middle of 4 bits: it has to be told
        assert nbits.pack(codes, block)[2] is not None
    np.testing.assert_allclose(product(codes, block).T, codes.values(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_have_the_values_of_gatherblockquantized(bits: int) -> None:
    codes = some_codes(ROWS, COLUMNS, bits, 32, True)
    blobs, scales, zeros = nbits.pack(codes, 32)
    assert zeros is None
    ids = np.array([3, 0, 23, 3])
    got = run(
        "GatherBlockQuantized", {"ids": ids}, {"q": blobs.reshape(ROWS, -1), "s": scales},
        bits=bits, block_size=32, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    np.testing.assert_array_equal(got, codes.values()[ids])


def test_largest_block_is_within_one_group() -> None:
    assert nbits.largest_block(np.arange(256, dtype=np.int32) // 96) == 32
    assert nbits.largest_block(np.zeros(192, np.int32)) == 64
    assert nbits.largest_block(np.zeros(512, np.int32)) == 256
    assert nbits.largest_block(np.arange(64, dtype=np.int32) % 2) is None, "activation order"


@pytest.fixture
def values() -> Any:
    values = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    values[3, 32:64] = 0
    values[5, :32] = 2.5  # one-sided
    return values


@pytest.mark.parametrize("bits", [4, 8])
def test_largest_weight_of_a_block_is_not_clipped(values: Any, bits: int) -> None:
    found = nearest_codes(values, bits, 32)
    blocks = values.reshape(ROWS, -1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(2, keepdims=True), 2)
    step = -largest / 2 ** (bits - 1)
    error = np.abs(found.values().reshape(blocks.shape) - blocks)
    # Half a step, but at the end that has one code less.
    assert (error <= np.abs(step) * 1.0001).all() and error[error > np.abs(step) / 1.999].size < 200
    np.testing.assert_allclose(found.scales, step[..., 0])
    assert not found.values()[3, 32:64].any() and (found.zeros == 2 ** (bits - 1)).all()
    np.testing.assert_allclose(product(found, 32).T, found.values(), rtol=1e-6, atol=1e-6)


def test_codes_are_those_of_q4_0(values: Any) -> None:
    from gguf import GGMLQuantizationType, quants

    stored = quants.quantize(values, GGMLQuantizationType.Q4_0).reshape(ROWS, -1, 18)
    fours = stored[:, :, 2:]
    wanted = np.concatenate([fours & 15, fours >> 4], axis=2).reshape(ROWS, COLUMNS)
    found = nearest_codes(values, 4, 32).codes
    assert (found == wanted).mean() > 0.999  # ggml's way to round differs at exact halves
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_columns_are_padded_to_whole_blocks() -> None:
    values = np.random.default_rng(2).standard_normal((8, 80)).astype(np.float32)
    codes = nearest_codes(values, 4, 64)
    assert codes.codes.shape == (8, 128) and not codes.values()[:, 80:].any()
    got = run(
        "MatMulNBits", {"x": np.eye(80, dtype=np.float32)},
        dict(zip("bs", nbits.pack(codes, 64), strict=False)), K=80, N=8, bits=4, block_size=64,
    )  # fmt: skip
    np.testing.assert_allclose(got.T, codes.values()[:, :80], rtol=1e-6)
