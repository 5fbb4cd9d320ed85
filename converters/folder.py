"""Merged view -> parts of a Hugging Face folder: blocks of weights, config.json, the tokenizer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.adapter.tokenizer import tokenizer_files
from edgeft.errors import ProofError
from edgeft.files import read_json
from edgeft.merge.landing import LandingProof, sampled_rows
from edgeft.merge.view import Merged
from edgeft.tokenizer import training_settings
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import eos_ids, without_leftovers
from edgeft.tokenizer.stops import stop_ids
from edgeft.weights.checkpoint import Array, as_rows, stored_as

BLOCK_VALUES = 4 << 20
"""float32 values of a block of rows"""


def tensor_blocks(merged: Merged, name: str, dtype: str, landing: LandingProof) -> Iterator[Array]:
    """Blocks of rows of a merged tensor, float32; adds the sampled rows to the proof at the end.

    `dtype`: type in safetensors. ProofError where a value is infinite or NaN in that type.
    """
    shape = as_rows(merged.shapes[name])
    columns = math.prod(shape[1:])
    step = max(1, BLOCK_VALUES // columns)
    sample = sampled_rows(shape[0], columns)
    sampled = []
    for start in range(0, shape[0], step):
        values = merged.rows(name, slice(start, start + step))
        with np.errstate(over="ignore"):
            finite = np.isfinite(stored_as(values, dtype)).all()
        if not finite:
            raise ProofError(
                f"{name} cannot be stored as {dtype}: not every value is finite in it",
                "--quant f32 and bf16 hold larger values; no type can use NaN",
            )
        sampled.append(values[sample[(sample >= start) & (sample < start + step)] - start])
        yield values
    summed = np.concatenate(sampled)
    landing.add(name, *merged.addends(name, sample), summed, stored_as(summed, dtype))


def write_config_and_tokenizer(merged: Merged, out: Path, dtype: str, **entries: Any) -> None:
    """Write config.json, with `dtype` and more `entries`, and copy the tokenizer files."""
    replaced = ("torch_dtype", "quantization_config")
    config = {key: value for key, value in merged.config.items() if key not in replaced}
    config |= {"dtype": dtype, **entries}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in tokenizer_files(merged.tokenizer):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(merged.tokenizer / name, out / name)
    without_leftovers(out)
    chat = ChatTemplate.from_folder(out)
    stops = stop_ids(chat, out)
    training_settings.undo(out, merged.vocabulary, stops, chat.stops, merged.base.name)
    _complete_stops(out, stops)


def _complete_stops(folder: Path, stops: Sequence[int]) -> None:
    """Add stops to eos_token_id of both configurations, where transformers and vLLM would not stop."""
    if set(stops) == set(eos_ids(folder)):
        return
    config = read_json(folder / "config.json")
    defaults: dict[str, Any] = {
        key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config
    }
    generation = read_json(folder / "generation_config.json") or defaults
    for name, settings in (("config.json", config), ("generation_config.json", generation)):
        settings["eos_token_id"] = list(stops) if len(stops) > 1 else stops[0]
        (folder / name).write_text(json.dumps(settings, indent=1) + "\n")
