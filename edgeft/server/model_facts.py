"""Takes an artifact, gives what the API tells about a served model: /v1/models, /props, Ollama's /api/show."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft import __version__
from edgeft.errors import InputError
from edgeft.files import read_json
from edgeft.formats import format_of
from edgeft.quantization.tensor_types import FILE_TYPE
from edgeft.weights import gguf_reader


@dataclass(frozen=True)
class ModelFacts:
    """What is known without the engine. The defaults are those of an artifact that says nothing."""

    file: str = ""
    """its name, without the folder it is in"""
    size: int = 0
    """bytes"""
    modified: int = 0
    """Unix time in seconds"""
    format: str = ""
    architecture: str = ""
    parameters: int = 0
    """weights; 0 = unknown"""
    quantization: str = ""
    """such as Q4_K_M"""
    training_context: int = 0
    """tokens; 0 = unknown"""
    metadata: dict[str, Any] = field(default_factory=dict)
    """GGUF key -> a single value"""

    @property
    def fingerprint(self) -> str:
        """Changes with the artifact and with edgeft's version: OpenAI's `system_fingerprint`."""
        text = f"{__version__} {self.file} {self.size} {self.modified}"
        return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:10]


def model_facts(path: Path) -> ModelFacts:
    """Of an artifact that an engine has opened; only headers are read."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    model_format = format_of(path).name
    common: dict[str, Any] = {
        "file": path.name.encode("utf-8", "replace").decode(),
        "size": sum(file.stat().st_size for file in files),
        "modified": int(path.stat().st_mtime),
        "format": model_format,
    }
    if path.is_file():
        return ModelFacts(**common, **_gguf_facts(path))
    config = read_json(path / "config.json")
    context = config.get("max_position_embeddings")
    return ModelFacts(
        **common,
        architecture=str(config.get("model_type", "")),
        quantization=model_format.upper(),
        training_context=context if isinstance(context, int) else 0,
    )


def _gguf_facts(path: Path) -> dict[str, Any]:
    try:
        header = gguf_reader.read(path, errors="replace")
    except InputError:  # llama.cpp has read it
        return {}
    single = {key: value for key, value in header.meta.items() if not isinstance(value, list)}
    architecture = str(single.get("general.architecture", ""))
    names = {number: name.upper() for name, number in FILE_TYPE.items()}
    file_type = single.get("general.file_type")
    context = single.get(f"{architecture}.context_length")
    return {
        "architecture": architecture,
        "parameters": sum(tensor.count for tensor in header.tensors.values()),
        "quantization": names.get(file_type, "") if isinstance(file_type, int) else "",
        "training_context": context if isinstance(context, int) else 0,
        "metadata": {
            key: value for key, value in single.items() if key != "tokenizer.chat_template"
        },
    }
