"""The servers that run stages with faults, and their inputs, once for all tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.faults import STAGES, Place, Server, fast_folder, make_material

Placed = Callable[[str], Place]


@pytest.fixture(scope="session")
def fault_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="edgeft-faults-", dir=fast_folder()))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def core() -> Iterator[Server]:
    with Server("core") as server:
        yield server


@pytest.fixture(scope="session")
def torch_server() -> Iterator[Server]:
    with Server("all") as server:
        yield server


@pytest.fixture(scope="session")
def material(core: Server, fault_folder: Path) -> Path:
    return make_material(fault_folder / "material", core)


@pytest.fixture(scope="session")
def place(
    request: pytest.FixtureRequest, core: Server, material: Path, fault_folder: Path
) -> Placed:
    """The name of a stage -> the stage with a folder of its own, made once."""
    places: dict[str, Place] = {}

    def placed(name: str) -> Place:
        if name not in places:
            stage = STAGES[name]
            server = core if stage.needs == "core" else request.getfixturevalue("torch_server")
            places[name] = Place(server, stage, material, fault_folder / name.replace(" ", "-"))
        return places[name]

    return placed
