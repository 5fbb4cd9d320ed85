"""An artifact, model folder or adapter -> its metadata, tensor types, template, stops and lineage.

    facts = describe(Path("out/q4_k_m.gguf"))       # {"model": {…}, "tensors": {…}, …}
    print(as_text(facts))

Only headers are read, so the size of the file does not matter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeft import files, store
from edgeft.adapter.config import read_adapter_config
from edgeft.adapter.folder import weight_files
from edgeft.errors import InputError, TemplateError
from edgeft.files import read_json
from edgeft.formats import format_of, load
from edgeft.printable import one_printable_line
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate
from edgeft.tokenizer.template_lock import check_template_lock
from edgeft.weights import gguf_reader
from edgeft.weights.checkpoint import Checkpoint, quantization
from edgeft.weights.gguf_check import problems
from edgeft.weights.onnx_graph import ONNXGraph

PROBLEMS = "problems"
"""section of a file that its engine would not survive"""
MAX_PROBLEMS = 10
MAX_VALUE_CHARACTERS = 60
"""characters of a value that `as_text` shows"""


def describe(path: Path) -> dict[str, Any]:
    """section -> {name: value}; InputError if `path` is none of the three."""
    if (path / "adapter_config.json").is_file():
        return _adapter(path) | _lineage(path)
    try:
        row = format_of(path)
    except InputError:
        if not path.exists():
            raise
        raise InputError(
            f"{path} is no .gguf file, no model folder and no adapter",
            "such as out/q4_k_m.gguf, or a folder with config.json or adapter_config.json",
        ) from None
    facts: dict[str, Any] = load(row.inspect)(path)
    return facts | _lineage(path)


def as_text(facts: dict[str, Any]) -> str:
    """A heading per section, one fact per line, long values cut."""
    lines = []
    for section, entries in facts.items():
        lines.append(section)
        width = max(map(len, entries), default=0)
        for name, value in entries.items():
            key = one_printable_line(name)
            parts = value if isinstance(value, list) else [value]
            text = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in parts)
            text = one_printable_line(text, MAX_VALUE_CHARACTERS)
            lines.append(f"  {key:<{width}}  {text}")
    return "\n".join(lines)


def describe_gguf(path: Path) -> dict[str, Any]:
    """Of a GGUF file."""
    header = gguf_reader.read(path)
    wrong = list(itertools.islice(problems(header), MAX_PROBLEMS))
    values = {key: _value(value) for key, value in header.meta.items()}
    tokens = header.meta.get("tokenizer.ggml.tokens")
    vocabulary = tokens if isinstance(tokens, list) else []
    template = values.pop("tokenizer.chat_template", None)

    def token(name: str) -> str:
        number = values.get(f"tokenizer.ggml.{name}_token_id")
        if not isinstance(number, int) or not 0 <= number < len(vocabulary):
            return ""
        return str(vocabulary[number])

    bos, eos, unknown, padding = map(token, ("bos", "eos", "unknown", "padding"))
    stops = filter(None, (eos, token("eot"), token("eom")))
    chat = ChatTemplate(template or ALPACA, bos, eos, (), unknown, padding)
    by_type: dict[str, list[int]] = {}
    for tensor in header.tensors.values():
        sizes = by_type.setdefault(tensor.type.name, [0, 0, 0])
        for i, count in enumerate((1, tensor.count, tensor.size)):
            sizes[i] += count
    weights = sum(sizes[1] for sizes in by_type.values())
    stored = sum(sizes[2] for sizes in by_type.values())
    shown = {k: v for k, v in values.items() if not k.startswith("tokenizer.")}
    return {
        "model": {"format": "gguf", "size": files.format_bytes(path.stat().st_size), **shown},
        "tensors": _tensor_types(by_type)
        | {"weights": f"{weights:,}", "bits per weight": round(8 * stored / max(weights, 1), 2)},
        "tokenizer": {
            "kind": values.get("tokenizer.ggml.model"),
            "pre-tokenizer": values.get("tokenizer.ggml.pre"),
            "tokens": len(vocabulary),
            "adds bos": values.get("tokenizer.ggml.add_bos_token"),
            "stops": list(dict.fromkeys(stops)),
        },
        "template": _template(template) | _lock(path, chat),
        **({PROBLEMS: {str(i): text for i, text in enumerate(wrong, 1)}} if wrong else {}),
    }


def describe_folder(
    path: Path, tensors: Iterable[tuple[str, tuple[int, ...]]] | None = None
) -> dict[str, Any]:
    """Of a Hugging Face folder; `tensors`: (type, shape) of each, default those of its safetensors."""
    if tensors is None:
        tensors = [(info.dtype, info.shape) for info in Checkpoint(path).tensors.values()]
    config = read_json(path / "config.json")
    by_type: dict[str, list[int]] = {}
    for dtype, shape in tensors:
        sizes = by_type.setdefault(dtype, [0, 0, 0])
        for i, count in enumerate((1, math.prod(shape), 0)):
            sizes[i] += count
    chat = ChatTemplate.from_folder(path)
    plain = {k: v for k, v in config.items() if isinstance(v, (int, float, str))}
    stored = {k: v for k, v in quantization(path).items() if isinstance(v, (int, float, str))}
    return {
        "model": {
            "format": format_of(path).name,
            "architectures": config.get("architectures", []),
            **plain,
        },
        **({"gptq": stored} if stored else {}),
        "tensors": _tensor_types(by_type)
        | {"weights": f"{sum(sizes[1] for sizes in by_type.values()):,}"},
        "tokenizer": {"stops": list(chat.stops)},
        "template": _template(chat.source) | {"edgeft": chat.fingerprint[:16]},
    }


def describe_onnx(path: Path) -> dict[str, Any]:
    """Of a folder for ONNX Runtime."""
    graph, chat = ONNXGraph(path), ChatTemplate.from_folder(path)
    config = read_json(path / "config.json")
    return {
        "model": {
            "format": "onnx",
            "architectures": config.get("architectures", []),
            "opset": graph.opset,
            "size": files.format_bytes(graph.size),
            "context": graph.context,
            "vocabulary": graph.vocabulary,
        },
        "operators": graph.operators(),
        "tokenizer": {"stops": list(chat.stops)},
        "template": _template(chat.source) | {"edgeft": chat.fingerprint[:16]},
    }


def _adapter(path: Path) -> dict[str, Any]:
    config = read_adapter_config(path, reward=True)
    infos = [info for file in weight_files(path) for info in Checkpoint(file).tensors.values()]
    count = sum(math.prod(info.shape) for info in infos)
    shown = {k: v for k, v in config.items() if v not in (None, False, [], {}, "")}
    return {"adapter": {"tensors": len(infos), "weights": f"{count:,}", **shown}}


def _lineage(path: Path) -> dict[str, Any]:
    manifest = store.read_manifest(path)
    if manifest is None:
        return {"lineage": {"manifest": "none: not made by edgeft, or moved without it"}}
    facts: dict[str, Any] = {}
    for key, value in manifest.facts.items():
        if isinstance(value, dict):
            facts |= {f"{key} {inner}": entry for inner, entry in value.items()}
        elif not isinstance(value, list):  # curves are long
            facts[key] = value
    parents = {f"from {name}": value[:16] for name, value in manifest.parents.items()}
    origin = {"made": manifest.created, "by": f"edgeft {manifest.edgeft}"}
    options = {k: v for k, v in manifest.options.items() if v is not None}
    return {"lineage": origin | options | parents, "facts": facts}


def _tensor_types(by_type: dict[str, list[int]]) -> dict[str, Any]:
    """`by_type`: type -> [tensors, weights, bytes]."""
    ordered = sorted(by_type.items(), key=lambda item: -item[1][1])
    return {name: f"{count} tensors, {size:,} weights" for name, (count, size, _) in ordered}


def _template(source: Any) -> dict[str, Any]:
    if not source or not isinstance(source, str):
        return {"source": "none"}
    return {"sha256": files.text_sha256(source)[:16], "source": source}


def _lock(path: Path, chat: ChatTemplate) -> dict[str, Any]:
    """The error that `open_runtime` would raise for the file's template and eos, if any."""
    try:
        check_template_lock(path, chat, whole=False)
    except TemplateError as error:
        return {"lock": f"chat refuses it: {error.message}"}
    return {}


def _value(value: Any) -> Any:
    """A long array's length in its place; vocabularies have 100,000 entries."""
    return len(value) if isinstance(value, list) and len(value) > 16 else value
