"""What is read of a small graph; broken folders are in tests/runtimes/test_onnx.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.weights.onnx_graph import ONNXGraph

pytestmark = pytest.mark.unit

VOCABULARY, HIDDEN, EXPERTS, HEADS, HEAD_SIZE = 10, 4, 8, 2, 3


def small_graph() -> Any:
    """A look-up, two experts of eight, a cut to the last token, a product, and a cache."""
    from onnx import TensorProto, helper, numpy_helper

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(np.zeros(shape, np.float32), name)

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["states"]),
        helper.make_node(
            "MoE", ["states", "router", "experts"], ["mixed"], domain="com.microsoft", k=2
        ),
        helper.make_node("Gather", ["mixed", "last"], ["one"], name="/lm_head/prune/Gather"),
        helper.make_node("Unsqueeze", ["one", "axis"], ["cut"], name="/lm_head/prune/Unsqueeze"),
        helper.make_node(
            "MatMulNBits",
            ["cut", "head"],
            ["logits"],
            domain="com.microsoft",
            bits=4,
            block_size=32,
        ),
    ]
    float32 = TensorProto.FLOAT
    outputs = [
        helper.make_tensor_value_info("logits", float32, ["batch", 1, VOCABULARY]),
        helper.make_tensor_value_info("keys", float32, ["batch", HEADS, "tokens", HEAD_SIZE]),
    ]
    weights = [
        weight("table", VOCABULARY, HIDDEN),
        weight("experts", EXPERTS, HIDDEN, HIDDEN),
        weight("head", VOCABULARY, HIDDEN),
    ]
    graph = helper.make_graph(nodes, "small", [], outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture
def graph(tmp_path: Path) -> ONNXGraph:
    import onnx

    decoder = {"filename": "model.onnx", "head_size": HEAD_SIZE}
    model = {"context_length": 64, "vocab_size": VOCABULARY, "eos_token_id": 9, "decoder": decoder}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": model}))
    onnx.save(small_graph(), tmp_path / "model.onnx")
    return ONNXGraph(tmp_path)


def test_settings_and_operators(graph: ONNXGraph) -> None:
    assert (graph.context, graph.vocabulary, graph.head_size) == (64, VOCABULARY, HEAD_SIZE)
    assert graph.stops == {9} and graph.opset == 21
    assert graph.operators()["MatMulNBits (4 bits, 32 columns)"] == 1
    assert graph.operators()["Gather"] == 2
    assert graph.size == (graph.folder / "model.onnx").stat().st_size


def test_bytes_per_token_leave_out_look_ups_and_idle_experts(graph: ONNXGraph) -> None:
    experts, head = 4 * EXPERTS * HIDDEN * HIDDEN, 4 * VOCABULARY * HIDDEN
    cache = 4 * HEADS * HEAD_SIZE * 5
    assert graph.bytes_per_token(context=5) == experts * 2 // EXPERTS + head + cache
