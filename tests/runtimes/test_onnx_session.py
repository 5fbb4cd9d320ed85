"""The graph whose output layer reads the states of all tokens."""

from __future__ import annotations

import pytest

from edgeft.runtimes.onnx_session import with_all_logits

pytestmark = pytest.mark.unit


def test_output_layer_reads_all_states() -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Gather", ["states", "last"], ["one"], name="/lm_head/prune/Gather"),
        helper.make_node("Unsqueeze", ["one", "axis"], ["cut"], name="/lm_head/prune/Unsqueeze"),
        helper.make_node("MatMul", ["cut", "head"], ["logits"]),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 10])
    model = helper.make_model(helper.make_graph(nodes, "small", [], [logits]))
    before = model.SerializeToString()
    changed = with_all_logits(model).graph
    assert [list(node.input) for node in changed.node] == [["states", "head"]]
    assert changed.output[0].type.tensor_type.shape.dim[1].dim_param == "sequence_length"
    assert model.SerializeToString() == before, "the given graph is unchanged"
