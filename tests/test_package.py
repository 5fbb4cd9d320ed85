"""pyproject.toml, the links, the changelog and the pins agree with the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
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
    return {name for name in names if not is_left_out(name)}


def is_left_out(package: str) -> bool:
    return f"{package}.".startswith(f"{NOT_IN_THE_WHEEL}.")


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
        folder = file.parent  # one without code belongs to the package above it
        while not (ROOT / folder / "__init__.py").is_file() and len(folder.parts) > 1:
            folder = folder.parent
        package = ".".join(folder.parts)
        package = package if package.startswith("edgeft") else f"edgeft.{package}"
        if is_left_out(package):
            continue
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


PROGRAMS = {"codespell", "lm-eval", "mypy", "pytest-xdist", "ruff"}
"""dependencies that are run, never imported"""
LM_EVAL_API = {"aiohttp", "tenacity", "tiktoken"}
"""what lm-eval imports when it asks a server, from its extra `api`"""
IMPORT_NAMES = {"llama-cpp-python": "llama_cpp", "pyyaml": "yaml"}
"""distribution -> import name, where they differ by more than - and _"""

CALLED = ("require", "importorskip", "import_module")
CALL = (
    rf"(?:[\w.]+\.)?(?:{'|'.join(CALLED)})"
    r"\('(?P<name>\w+)[\w.]*'(?:, '(?P<extra>[\w-]+)')?.*\)"
)
"""an import of a module named by a literal string, as `require("torch", "train")`"""


CLIENTS = ROOT / "tests" / "server" / "clients"
"""scripts that run in an environment of their own, which they install"""


def test_dependencies_are_imported_and_imports_are_declared() -> None:
    def modules(*folders: str) -> tuple[set[str], set[tuple[str, str]]]:
        """(top-level names imported at any depth, (name, extra) of each `require`)."""
        names, required = set(), set()
        paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
        for path in paths:
            if path.is_relative_to(CLIENTS):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add(str(node.module).partition(".")[0])
                elif (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "attr", getattr(node.func, "id", "")) in CALLED
                ):
                    call = re.fullmatch(CALL, ast.unparse(node), re.DOTALL)
                    if call:
                        names.add(call["name"])
                    if call and call["extra"]:
                        required.add((call["name"], call["extra"]))
        return names - set(sys.stdlib_module_names) - {"edgeft"}, required

    def import_names(entries: list[str]) -> set[str]:
        dists = {normal(re.split(r"[>\[]", entry)[0]) for entry in entries} - {"edgeft"}
        dists -= PROGRAMS | LM_EVAL_API
        return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in dists}

    extras = PYPROJECT["project"]["optional-dependencies"]
    core = import_names(PYPROJECT["project"]["dependencies"])
    declared = {extra: import_names(entries) for extra, entries in extras.items()}
    for_users = core.union(*(names for extra, names in declared.items() if extra != "dev"))
    imported, required = modules("edgeft", *LINKS)
    assert not imported - for_users, "imported and not declared"
    assert not for_users - imported, "declared and never imported"
    for name, extra in required:
        assert name in core | declared[extra], f"the extra {extra} does not install {name}"
    helpers = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"helpers"}
    of_tests = modules("tests")[0] - helpers
    of_tests = {name for name in of_tests if not name.startswith("edgeft_")}
    assert not of_tests - for_users - declared["dev"], "a test imports what is not declared"
    assert not declared["dev"] - of_tests - imported, "declared for developers and never imported"
