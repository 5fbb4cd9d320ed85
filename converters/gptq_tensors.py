"""Base + bits of a GPTQ folder -> how the folder rounds each weight without GPTQ, for a training with --ship.

    file_tensors(open_base(folder), "4bit")["model.layers.0.mlp.up_proj.weight"].rounding.name
    digests(Path("gptq-4bit"), merged, names)                   # of a finished folder

Linear layers of the blocks become symmetric codes, each the nearest. All other weights become float16.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from edgeft.converters.gptq import code_grid, nearest
from edgeft.errors import FormatError
from edgeft.gptq.quantize import linears
from edgeft.merge.view import Merged, open_merged
from edgeft.quantization.rounding import CodesRounding, FileTensor, rounding_named
from edgeft.weights.checkpoint import Checkpoint
from edgeft.weights.text_base import TextBase


def file_tensors(base: TextBase, quant: str) -> dict[str, FileTensor]:
    """Name in the checkpoint -> its place in the folder, with the exporter's default groups.

    FormatError for a mixture of experts, and for a model that the folder cannot hold.
    """
    if base.card.fused:
        raise FormatError(
            f"--ship: the {base.card.family} family's experts do not train for a GPTQ folder",
            "train without --ship",
        )
    merged = open_merged(base.folder, None)
    codes = nearest(code_grid(merged, quant, None, symmetric=True))
    coded, half = set(linears(merged)), rounding_named("F16")
    return {
        name: FileTensor(name, codes if name in coded else half, None) for name in merged.shapes
    }


def digests(path: Path, merged: Merged, names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Name in the checkpoint -> (rounding, hash) of those of `names` that the folder has."""
    folder, half = Checkpoint(path), rounding_named("F16")
    found: dict[str, tuple[str, str]] = {}
    for name in set(names) & set(folder.tensors):
        codes = folder.codes(name)
        if codes is not None:
            rounding = CodesRounding(codes.bits, folder.quantization["group_size"], "f16")
            found[name] = rounding.name, rounding.digest([codes])
        elif folder.tensors[name].dtype == "F16":
            found[name] = half.name, half.digest([folder.raw(name).view(np.uint8)])
    return found
