"""The graph of an ONNX folder, without its weights: checked before any engine reads it.

graph = ONNXGraph(Path("onnx-int4"))            # InputError for what is not whole
graph.operators()                               # {"MatMulNBits": 121, …}
graph.session(threads=2)                        # onnxruntime's, with the logits of all tokens
"""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

from edgeft.errors import InputError, require
from edgeft.files import read_json

CONFIG = "genai_config.json"
CUT = "/lm_head/prune/"
"""names of the nodes that take the last token's state"""
FATAL = 4
"""what onnxruntime logs; its errors are raised, too"""
WIDTHS = {"bits": "bits", "block_size": "columns"}
KNOWN = {
    "": ("model", "search"),
    "model": ("decoder", "type", "eos_token_id"),
    "decoder": ("filename", "inputs", "outputs", "session_options"),
    "session_options": ("log_id",),
    "search": (),
}
"""part of the settings -> what may be more than a number in it; whatever else onnxruntime-genai
knows may load code or other weights, or write files"""


class ONNXGraph:
    """model.onnx without its weights, checked before any engine reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_json(folder / CONFIG)
        self._check_settings(config)
        try:
            model = config["model"]
            decoder = model["decoder"]
            self.context, self.vocabulary = int(model["context_length"]), int(model["vocab_size"])
            self.head = int(decoder["head_size"])
            stops = model["eos_token_id"]
            self.stops = {int(stop) for stop in (stops if isinstance(stops, list) else [stops])}
            self.file = folder / decoder["filename"]
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / CONFIG} says nothing of a decoder: {error!r}", "export it again"
            ) from None
        if not all(0 <= stop < self.vocabulary for stop in self.stops):
            raise InputError(
                f"{folder / CONFIG}: a vocabulary of {self.vocabulary} has not all of its stops",
                "export it again",
            )
        if self.file.parent != folder or not self.file.is_file():
            raise InputError(f"{folder} lacks {self.file.name}", "export it again")
        self._proto = self._parsed()
        self._check_data()

    def _check_settings(self, config: dict[str, Any]) -> None:
        """InputError for what the engine should not be given."""
        path = self.folder / CONFIG

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            """The engine heeds every one of several entries of a name, Python only the last."""
            found = dict(pairs)
            if len(found) < len(pairs):
                raise InputError(f"{path} has an entry twice", "export it again")
            return found

        if path.is_file():
            json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
        parts = [("", config)]
        for part, settings in parts:
            for name, value in settings.items():
                if isinstance(value, dict) and name in KNOWN:
                    parts.append((name, value))
                elif value and isinstance(value, (str, list, dict)) and name not in KNOWN[part]:
                    raise InputError(
                        f"{path} has {name}", "code that comes with a model is never run"
                    )

    def _parsed(self) -> Any:
        onnx = require("onnx", "onnx")
        try:
            proto = onnx.load(self.file, load_external_data=False)
        except Exception as error:  # noqa: BLE001 - protobuf's own, of no common kind
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{self.file} is not an ONNX model: {reason}", "export it again"
            ) from None
        known = onnx.defs.onnx_opset_version()
        found = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
        opset = found.get("ai.onnx", 0)
        if not 1 <= opset <= known:
            raise InputError(
                f"{self.file} has opset {opset}, this onnxruntime knows 1 to {known}",
                "export it again, or update onnxruntime",
            )
        return proto

    def _check_data(self) -> None:
        """InputError where the graph's weights do not lie where it says."""
        for tensor in self._proto.graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if not place:
                continue
            file = self.folder / place.get("location", "")
            if file.parent != self.folder or not file.is_file():
                raise InputError(f"{self.file}: its weights lack {place.get('location')!r}",
                                 "keep all files of the folder together")  # fmt: skip
            try:
                start, length = int(place.get("offset", 0)), int(place.get("length", 0))
            except ValueError:
                start = length = -1
            if min(start, length) < 0:
                raise InputError(
                    f"{self.file} does not say where {tensor.name} lies", "export it again"
                )
            end = start + length
            if end > file.stat().st_size:
                raise InputError(
                    f"{file} is truncated: {file.stat().st_size} of at least {end} bytes",
                    "export it again",
                )

    def operators(self) -> dict[str, int]:
        """How many nodes of each kind there are, the most frequent first; of products on codes with
        their bits and block."""
        count: collections.Counter[str] = collections.Counter()
        for node in self._proto.graph.node:
            told = {entry.name: entry.i for entry in node.attribute}
            named = [f"{told[key]} {unit}" for key, unit in WIDTHS.items() if key in told]
            count[f"{node.op_type} ({', '.join(named)})" if named else node.op_type] += 1
        return dict(count.most_common())

    @property
    def opset(self) -> int:
        entries = self._proto.opset_import
        return next(int(entry.version) for entry in entries if entry.domain in ("", "ai.onnx"))

    @property
    def size(self) -> int:
        """Bytes of the graph and of its weights."""
        files = {self.file, *(self.folder / name for name in self._locations())}
        return sum(file.stat().st_size for file in files)

    def bytes_per_token(self, context: int) -> int:
        """That are read to write one: all constants but those that only a look-up reads, of experts
        the share that a token is sent to, and keys and values of `context` tokens."""
        graph = self._proto.graph
        used: dict[str, float] = {}
        for node in graph.node:
            for name in node.input:
                share = 0.0 if node.op_type.startswith("Gather") else 1.0
                used[name] = max(used.get(name, 0.0), share)
        sent = {entry.i for node in graph.node if node.op_type in ("MoE", "QMoE")
                for entry in node.attribute if entry.name == "k"}  # fmt: skip
        experts = {name for node in graph.node if node.op_type in ("MoE", "QMoE")
                   for name in node.input[2:]}  # fmt: skip
        total = 0.0
        for tensor in graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            size = int(place.get("length", 0)) or len(tensor.raw_data)
            if tensor.name in experts and sent:
                size = size * max(sent) // tensor.dims[0]
            total += used.get(tensor.name, 0.0) * size
        for value in graph.output[1:]:
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            total += 4 * dims[1] * dims[3] * context
        return int(total)

    def _locations(self) -> set[str]:
        return {entry.value for tensor in self._proto.graph.initializer
                for entry in tensor.external_data if entry.key == "location"}  # fmt: skip

    def session(self, threads: int) -> Any:
        """onnxruntime's session of the graph that gives the logits after every token."""
        ort = require("onnxruntime", "onnx")
        graph = self._proto.graph
        cut = {node.name: node for node in graph.node if node.name.startswith(CUT)}
        if cut:
            before = cut[f"{CUT}Gather"].input[0]
            after = cut[f"{CUT}Unsqueeze"].output[0]
            for node in graph.node:
                for i, name in enumerate(node.input):
                    if name == after:
                        node.input[i] = before
            for node in cut.values():
                graph.node.remove(node)
            for value in (*graph.output, *graph.value_info):
                dims = value.type.tensor_type.shape.dim
                if len(dims) == 3 and dims[1].dim_value == 1:
                    dims[1].dim_param = "sequence_length"
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = FATAL
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, str(self.folder.absolute()))
        try:
            return ort.InferenceSession(
                self._proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - onnxruntime's own, of no common kind
            raise unloadable(self.folder, error) from None


def unloadable(path: Path, error: Exception) -> InputError:
    reason = str(error).strip().partition("\n")[0]
    return InputError(f"cannot load {path}: {reason}", "export it again")
