"""pyproject.toml, the links, the changelog and the pins agree with the tree."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import edgeft
from helpers.paths import ROOT

LINKS = ("converters", "benchmarks", "models")
NOT_IN_THE_WHEEL = "edgeft.benchmarks.studies"
"""developers' comparisons"""
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages() -> set[str]:
    """Every package of the tree that a wheel holds."""
    names = set()
    for folder in ("edgeft", *LINKS):
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.relative_to(ROOT).parent.parts
            if folder == "edgeft" and parts[1:2] and parts[1] in LINKS:
                continue  # the same file through a link
            names.add(".".join(parts if folder == "edgeft" else ("edgeft", *parts)))
    assert NOT_IN_THE_WHEEL in names
    return names - {NOT_IN_THE_WHEEL}


def test_pyproject_names_every_package() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages())
    assert listed == sorted(listed)
    assert not [name for name in listed if name.startswith(NOT_IN_THE_WHEEL)]
    folders = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert folders == {f"edgeft.{name}": name for name in LINKS}


def test_every_folder_with_python_is_a_package() -> None:
    for folder in ("edgeft", *LINKS):
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks an __init__.py"


@pytest.mark.parametrize("name", LINKS)
def test_the_links_are_relative(name: str) -> None:
    link = ROOT / "edgeft" / name
    assert link.is_symlink() and str(link.readlink()) == f"../{name}"
    assert link.resolve() == ROOT / name and (link / "__init__.py").is_file()


def test_data_files_are_packaged() -> None:
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    for file in tracked():
        if file.suffix in (".py", ".png") or file.name == "LOG.md":
            continue
        package = ".".join(file.parts[:-1])
        package = package if package.startswith("edgeft") else f"edgeft.{package}"
        patterns = data.get(package, [])
        assert any(file.match(pattern) for pattern in patterns), f"{file} is not in package-data"


def test_one_version() -> None:
    """`edgeft.__version__`, which setuptools reads without importing anything."""
    assert "version" not in PYPROJECT["project"] and PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "edgeft.__version__"}
    init = (ROOT / "edgeft" / "__init__.py").read_text(encoding="utf-8")
    assert re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', init, re.MULTILINE), "not a literal"


def test_the_changelog_has_an_unreleased_section_and_dated_versions() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", changes, re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    versions = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", title) for title in titles[1:]
    ]
    assert all(versions), titles
    assert versions[0] and versions[0][1] == edgeft.__version__
    kinds = set(re.findall(r"^### (.+)$", changes, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def tracked() -> list[Path]:
    """The committed files of the package, as paths from the root."""
    done = subprocess.run(
        ["git", "ls-files", "edgeft", *LINKS],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [Path(line) for line in done.stdout.splitlines() if not (ROOT / line).is_symlink()]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_constraints_pin_every_dependency() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, pinned = line.partition("==")
            assert re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", pinned), f"not an exact pin: {line}"
            pins[normal(name)] = pinned
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [entry for group in groups for entry in group if not entry.startswith("edgeft")]
    assert len(wanted) > 15
    for entry in wanted:
        match = re.fullmatch(r"([\w.-]+)>=(\d+(?:\.\d+)*)", entry)
        assert match, f"not of the form name>=version: {entry}"
        assert normal(match[1]) in pins, f"constraints.txt does not pin {match[1]}"
        assert version(pins[normal(match[1])]) >= version(match[2]), entry
