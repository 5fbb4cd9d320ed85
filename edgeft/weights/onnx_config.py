"""genai_config.json of an ONNX folder -> the settings of its decoder, checked.

    config = read_config(Path("onnx-int4"))         # InputError for a hostile or broken file
    config.file                                     # Path("onnx-int4/model.onnx")

onnxruntime-genai obeys everything in this file. Some of its settings load code, read other weights
or write files, so a file with settings that edgeft does not write is refused.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.files import is_file, read_json, read_text

CONFIG_FILE = "genai_config.json"
MAX_NUMBER = {"context": 2**31 - 1, "vocabulary": 2**24, "head_size": 2**16, "kv_heads": 2**16}
"""of tokens, rows, columns and heads: the engine allocates what the file says"""
ALLOWED = {
    "": ("model", "search"),
    "model": ("decoder", "type", "eos_token_id"),
    "decoder": ("filename", "inputs", "outputs", "session_options"),
    "session_options": ("log_id",),
    "search": (),
}
"""section of the file -> its settings that may be a text, a list or a section"""


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of genai_config.json that edgeft reads."""

    context: int
    """tokens"""
    vocabulary: int
    """rows of the embedding"""
    head_size: int
    """columns of an attention head"""
    kv_heads: int | None
    """heads of keys and values; None = not said"""
    stops: frozenset[int]
    """ids of the tokens that end a generation"""
    file: Path
    """the graph"""


def read_config(folder: Path) -> DecoderConfig:
    """InputError for a file that is not whole, or that holds settings which edgeft does not write."""
    path = folder / CONFIG_FILE
    config = read_json(path)
    _check_allowed(path, config)
    try:
        model = config["model"]
        decoder = model["decoder"]
        stops = model["eos_token_id"]
        result = DecoderConfig(
            context=int(model["context_length"]),
            vocabulary=int(model["vocab_size"]),
            head_size=int(decoder["head_size"]),
            kv_heads=int(decoder["num_key_value_heads"])
            if "num_key_value_heads" in decoder
            else None,
            stops=frozenset(int(stop) for stop in (stops if isinstance(stops, list) else [stops])),
            file=folder / decoder["filename"],
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} says nothing of a decoder: {error!r}", "export it again"
        ) from None
    for name in ("context", "vocabulary", "head_size", "kv_heads"):
        value = getattr(result, name)
        if value is not None and not 1 <= value <= MAX_NUMBER[name]:
            raise InputError(
                f"{path}: {name} is {value}, at most {MAX_NUMBER[name]}", "export it again"
            )
    if not all(0 <= stop < result.vocabulary for stop in result.stops):
        raise InputError(
            f"{path}: a vocabulary of {result.vocabulary} has not all of its stops",
            "export it again",
        )
    if result.file.parent != folder or not is_file(result.file):
        raise InputError(f"{folder} lacks {result.file.name[:100]}", "export it again")
    return result


def _check_allowed(path: Path, config: dict[str, Any]) -> None:
    if path.is_file():
        unique = functools.partial(_unique, path)
        json.loads(read_text(path), object_pairs_hook=unique)
    sections = [("", config)]
    for section, settings in sections:
        for name, value in settings.items():
            if isinstance(value, dict) and name in ALLOWED:
                sections.append((name, value))
            elif value and isinstance(value, (str, list, dict)) and name not in ALLOWED[section]:
                raise InputError(f"{path} has {name}", "code that comes with a model is never run")


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The engine obeys each of several entries with one name; Python sees only the last."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise InputError(f"{path} has an entry twice", "export it again")
    return entries
