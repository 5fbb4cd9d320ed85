"""Run a folder of GPTQ on the CPU, at the speed of a GGUF: it is repacked once and kept.

    with GPTQRuntime(Path("model-4bit")) as model: ...

Nothing is quantized again: codes and scales go into ggml's blocks as they are (`edgeft.quantization.repack`), the
other weights into float16. The file lies in `edgeft.files.home`, under the folder's identity. The
float32 model on the same codes is `ReferenceRuntime`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.converters.repacked import repacked
from edgeft.runtimes.gguf import GGUFRuntime


class GPTQRuntime(GGUFRuntime):
    """Its options are those of `GGUFRuntime`."""

    def __init__(self, path: Path, threads: int | None = None, **how: Any) -> None:
        super().__init__(repacked(path, threads), threads, **how)
