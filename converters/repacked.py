"""GPTQ folder -> a GGUF file with the same codes, in the cache folder."""

from __future__ import annotations

import math
import os
from pathlib import Path

from edgeft import __version__, machine, store
from edgeft.converters.gguf.convert import convert
from edgeft.converters.gguf.plan import make_plan
from edgeft.converters.options import ConvertOptions
from edgeft.files import home
from edgeft.merge.landing import LandingProof
from edgeft.merge.view import open_merged
from edgeft.progress import say
from edgeft.quantization.repack import RepackedGPTQ
from edgeft.weights.checkpoint import Checkpoint


def repacked_gguf(folder: Path, threads: int | None = None) -> Path:
    """Path of the GGUF file of a GPTQ folder; writes the file unless it is complete."""
    identity = store.identity(folder)
    target = home() / "repacked" / f"{identity[:20]}.gguf"
    options, parents = {"edgeft": __version__}, {"model": identity}
    with store.writing_shared(target, kind="repacked", options=options, parents=parents) as work:
        if work is None:
            return target
        merged, codes = open_merged(folder, None), RepackedGPTQ(Checkpoint(folder))
        size = sum(
            math.prod(shape) * (codes.bits(name) or 16) / 8 for name, shape in merged.shapes.items()
        )
        machine.preflight(target, f"repacking {folder}", disk=int(size) + 16_000_000)
        convert_options = ConvertOptions(threads=threads or len(os.sched_getaffinity(0)))
        plan = make_plan(merged, "f16", convert_options).with_blocks(codes)
        work.facts |= convert(merged, plan, work.path, convert_options, LandingProof(merged))
        work.facts["inexact"] = len(codes.inexact)
    if codes.inexact:
        say(
            f"{len(codes.inexact)} layers of {folder} do not fit ggml's blocks: their values "
            "were rounded to float16"
        )
    return target
