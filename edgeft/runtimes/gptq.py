"""Run a folder of GPTQ on the CPU, at the speed of a GGUF: it is repacked once and kept.

    with GPTQRuntime(Path("model-4bit")) as model: ...

Nothing is quantized again: codes and scales go into ggml's blocks as they are (`edgeft.coded`), the
other weights into float16. The file lies in `edgeft.base.home`, under the folder's identity. The
float32 model on the same codes is `ReferenceRuntime`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from edgeft import __version__, stage
from edgeft.base import home
from edgeft.checkpoint import Checkpoint
from edgeft.coded import Repacked
from edgeft.formats import format_named, load
from edgeft.merge import open_merged
from edgeft.progress import say
from edgeft.runtimes.gguf import GGUFRuntime


class GPTQRuntime(GGUFRuntime):
    """Its options are those of `GGUFRuntime`."""

    def __init__(self, path: Path, threads: int | None = None, **how: Any) -> None:
        super().__init__(repacked(path, threads), threads, **how)


def repacked(folder: Path, threads: int | None = None) -> Path:
    """The GGUF of a folder of GPTQ, made where it is not there yet."""
    identity = stage.identity(folder)
    target = home() / "repacked" / f"{identity[:20]}.gguf"
    options, parents = {"edgeft": __version__}, {"model": identity}
    if stage.finished(target, "repacked", options, parents):
        return target
    merged, codes = open_merged(folder, None), Repacked(Checkpoint(folder))
    size = sum(
        math.prod(shape) * (codes.bits(name) or 16) / 8 for name, shape in merged.shapes.items()
    )
    stage.preflight(target, f"repacking {folder}", disk=int(size) + 16_000_000)
    with stage.writing(
        target, kind="repacked", options=options, parents=parents, overwrite=True
    ) as work:
        convert = load(format_named("gguf").converter)
        threads = threads or len(os.sched_getaffinity(0))
        work.facts |= convert(merged, work.path, "f16", threads, coded=codes)
        work.facts["inexact"] = len(codes.inexact)
    if codes.inexact:
        say(
            f"{len(codes.inexact)} layers of {folder} have no place in ggml's blocks: their values "
            "were rounded to float16"
        )
    return target
