"""The tiny model as a GGUF file, and its runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeft.runtimes.gguf import GGUFRuntime


@pytest.fixture(scope="package")
def gguf(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export.pipeline import ExportOptions, export

    out = tmp_path_factory.mktemp("runtimes")
    return export(ExportOptions(out=out, base=str(tiny_base), quants=("f32",), compare_live=False))[
        0
    ].path


@pytest.fixture(scope="package")
def gguf_model(gguf: Path) -> Iterator[GGUFRuntime]:
    with GGUFRuntime(gguf) as runtime:
        yield runtime
