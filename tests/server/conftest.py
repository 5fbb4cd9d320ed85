"""What the tests of the engines share: the tiny model in three types, and an engine on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeft.server.batching_engine import BatchingEngine
from helpers.engines import open_engine
from helpers.serving import exported
from helpers.tiny import make_base


@pytest.fixture(scope="module")
def artifacts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    quants = ("f32", "f16", "q8_0")
    return dict(
        zip(quants, exported(tiny_base, tmp_path_factory.mktemp("q"), *quants), strict=True)
    )


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model whose heads have 32 values, which a quantized cache needs."""
    folder = tmp_path_factory.mktemp("wide")
    quants = ("f16", "q8_0")
    made = exported(make_base(folder / "base", hidden=128), folder, *quants)
    return dict(zip(quants, made, strict=True))


@pytest.fixture(scope="module")
def engine(artifacts: dict[str, Path]) -> Iterator[BatchingEngine]:
    engine = open_engine(artifacts["f32"])
    yield engine
    engine.close()
