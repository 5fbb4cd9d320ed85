"""Run a GPTQ folder on the CPU at the speed of a GGUF: the folder is repacked once, then kept.

    with GPTQRuntime(Path("model-4bit")) as model: ...

Nothing is quantized again: codes and scales are copied into ggml's blocks
(`edgeft.quantization.repack`), the other weights become float16. The GGUF file lies in
`edgeft.files.home`, under the identity of the folder. `ReferenceRuntime` runs the same codes in
float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeft.converters.repacked import repacked_gguf
from edgeft.runtimes.gguf import GGUFRuntime


class GPTQRuntime(GGUFRuntime):
    """The options are those of `GGUFRuntime`."""

    def __init__(self, path: Path, threads: int | None = None, **options: Any) -> None:
        super().__init__(repacked_gguf(path, threads), threads, **options)
