"""What the tests share: a cache folder of their own, the tiny model, and the command line."""

from __future__ import annotations

import gc
import importlib.abc
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.families import TINY, make_tiny
from helpers.tiny import make_base, make_chats

# Threads that spin at barriers fight on two cores; before anything loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# bitsandbytes compiles at its import what only devices without kernels of its own run: 2 s a process.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# A shell lets what it starts with & ignore Ctrl-C, which tests send to themselves and to others.
signal.signal(signal.SIGINT, signal.default_int_handler)


class NoEngines(importlib.abc.MetaPathFinder):
    """Refuses to import what the unit tier does without."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in ("torch", "llama_cpp", "transformers", "onnxruntime"):
            raise ModuleNotFoundError(f"a unit test imports {name}", name=name)


def offline(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: tests, and so edgeft in them, reach no other machine."""
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        return
    place = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
    host = place[0] if isinstance(place, tuple) and place else place
    if event != "socket.getaddrinfo" and not isinstance(place, tuple):
        return  # a path of a Unix socket
    host = host.decode() if isinstance(host, bytes) else host
    if host in (
        None,
        "",
        "localhost",
        "::1",
        "0.0.0.0",
        "::",
        socket.gethostname(),
    ) or not isinstance(host, str):
        return
    if not host.startswith("127."):
        raise PermissionError(f"a test opens the network: {host}")


sys.addaudithook(offline)


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # collecting the tests makes no garbage, and a third of its time goes into looking
    if config.getoption("markexpr").startswith("unit"):
        sys.meta_path.insert(0, NoEngines())


def pytest_collection_finish() -> None:
    gc.enable()


FREEZE_AFTER_MODULES = 200
frozen_modules = 0


def pytest_runtest_setup() -> None:
    """What pytest and torch keep in memory is left out of the searches for garbage.

    Every training starts one, and it takes 0.4 s for their 750 000 objects.
    """
    global frozen_modules
    if len(sys.modules) > frozen_modules + FREEZE_AFTER_MODULES:
        gc.collect()
        gc.freeze()
        frozen_modules = len(sys.modules)


Family = Callable[[str], tuple[Path, Path, Any]]
"""case of `families.TINY` -> (base folder, adapter folder, the live model)"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    os.environ["EDGEFT_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def small_buffer() -> Iterator[None]:
    """`bench` reads four times the last caches, some GB on a server, to know the memory's speed."""
    from edgeft.benchmarks.performance import roofline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "MIN_BUFFER_BYTES", 1 << 22)
        patch.setattr(roofline, "CACHES", Path("/nowhere"))
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chats(tmp_path_factory.mktemp("tiny") / "chats.jsonl")


@pytest.fixture
def edgeft(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command as the console script does: `edgeft("bench", path, "--json")`."""
    from edgeft.cli import main

    def run(*args: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Ran(int(exit_.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The tiny model of a family and its adapter; each made once."""
    made: dict[str, tuple[Path, Path, Any]] = {}

    def build(case: str) -> tuple[Path, Path, Any]:
        if case not in made:
            made[case] = make_tiny(tmp_path_factory.mktemp(case), TINY[case])
        return made[case]

    return build


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium that asks nobody but the pages' own hosts: `browser.new_page()`.

    The headless shell draws no window around a page, which costs a third of the time of one that does.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium-headless-shell", "chromium", "chromium-browser")
    path = next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip("there is no chromium")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(quiet))
        yield running
        running.close()
