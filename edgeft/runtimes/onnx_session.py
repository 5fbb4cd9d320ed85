"""An ONNX graph -> onnxruntime's session that gives the logits after every token.

    session = open_session(ONNXGraph(Path("onnx-int4")), threads=2)

The exported graph keeps the last token's state alone before its output layer. The session is opened
on a copy of the graph without those nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.errors import InputError, require
from edgeft.weights.onnx_graph import ONNXGraph

LAST_TOKEN_NODES = "/lm_head/prune/"
"""start of the names of the nodes that keep the last token's state alone"""
LOG_FATAL = 4
"""onnxruntime's log level; it raises its errors as well, and those are reported"""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""setting of a session on a graph in memory: where the files of its weights are"""


def open_session(graph: ONNXGraph, threads: int) -> Any:
    """onnxruntime.InferenceSession; InputError where onnxruntime cannot load the graph."""
    ort = require("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_FATAL
    options.add_session_config_entry(WEIGHTS_FOLDER, str(graph.folder.absolute()))
    model = with_all_logits(graph.proto).SerializeToString()
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no class
        raise unloadable(graph.folder, error) from None


def with_all_logits(proto: Any) -> Any:
    """A copy of onnx.ModelProto whose output layer reads the states of all tokens."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    graph = copy.graph
    last = {node.name: node for node in graph.node if node.name.startswith(LAST_TOKEN_NODES)}
    if not last:
        return copy
    all_states = last[f"{LAST_TOKEN_NODES}Gather"].input[0]
    last_state = last[f"{LAST_TOKEN_NODES}Unsqueeze"].output[0]
    for node in last.values():
        graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == last_state:
                node.input[i] = all_states
    for value in (*graph.output, *graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 3 and dims[1].dim_value == 1:
            dims[1].dim_param = "sequence_length"
    return copy


def unloadable(path: Path, error: Exception) -> InputError:
    """The engine's error in one line."""
    reason = str(error).strip().partition("\n")[0]
    return InputError(f"cannot load {path}: {reason}", "export it again")
