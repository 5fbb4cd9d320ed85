"""What the tests share: the tiny model in three types, an engine on it, and the chat page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.server.batching_engine import BatchingEngine
from helpers.chat_browser import Chat, Opened
from helpers.chat_stub import Stub
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


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def shared_chat(browser: Any) -> Iterator[Chat]:
    """One page for tests that leave it as it was."""
    with Stub() as server:
        context = browser.new_context()
        yield Chat(server, context.new_page())
        context.close()
        server.shutdown()


@pytest.fixture
def chat(browser: Any, stub: Stub) -> Iterator[Opened]:
    contexts = []

    def start(width: int = 1280, dark: bool = False) -> Chat:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        contexts.append(context)
        return Chat(stub, context.new_page())

    yield start
    for context in contexts:
        context.close()
