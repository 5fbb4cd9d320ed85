"""Who may import whom: a folder imports only from lower floors (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import ROOT

LINKS = ("benchmarks", "converters", "models")

FLOORS = (  # from the lowest; a name stands for its folder or file
    "printable",
    "errors records progress kv_cache",
    "web",
    "models files formats appended_file",
    "weights store machine cpu_products",
    "child_process",
    "quantization tokenizer",
    "adapter base data",
    "merge report train",
    "gptq",
    "converters",
    "runtimes",
    "benchmarks server",
    "export human chat sweep feedback",
    "release benchmarks.studies",
    "studio",
    "cli",
    "__main__",
)
FLOOR = {f"edgeft.{name}": floor for floor, line in enumerate(FLOORS) for name in line.split()}

ENTRY = r"edgeft(\.\w+)+:\w+"


def modules() -> dict[str, Path]:
    """Every module by its dotted name; the links in edgeft/ are not followed."""
    tops = [ROOT / "edgeft", *(ROOT / name for name in LINKS)]
    paths = [p for top in tops for p in sorted(top.rglob("*.py")) if not p.is_symlink()]
    paths = [
        p for p in paths if p.relative_to(ROOT).parts[:2] not in {("edgeft", n) for n in LINKS}
    ]
    return {dotted(path): path for path in paths}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "edgeft" else ("edgeft", *parts)
    return ".".join(parts).removesuffix(".__init__")


def room(name: str) -> str:
    """The line of FLOORS that a module belongs to, "" for none."""
    parts = name.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 1, -1))
    return next((name for name in names if name in FLOOR), "")


def imports(code: str, known: set[str]) -> Iterator[tuple[str, int]]:
    """(module of this project, line): imports at any depth, and modules named in strings.

    A string "edgeft.a.b:name" is an import at run time. `formats.py` alone holds such strings: a
    user's --format chooses among them.
    """
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "write the whole name of the module"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in known else str(node.module)), node.lineno
        elif isinstance(node, ast.Constant) and re.fullmatch(ENTRY, str(node.value)):
            yield node.value.partition(":")[0], node.lineno


def refusal(importer: str, imported: str) -> str:
    """Why `importer` may not import `imported`, "" where it may."""
    mine, other = room(importer), room(imported)
    if not imported.startswith("edgeft.") or mine == other or importer == "edgeft.formats":
        return ""
    if not other:
        return f"{imported} is on no floor"
    if FLOOR[other] < FLOOR[mine]:
        return ""
    return f"{importer} (floor {FLOOR[mine]}) may not import {imported} (floor {FLOOR[other]})"


def test_every_module_is_on_a_floor() -> None:
    names = set(modules()) - {"edgeft"}
    assert len(names) > 100, "the walk finds too little"
    assert not [name for name in names if not room(name)]


def test_imports_go_to_lower_floors() -> None:
    found = modules()
    refused = [
        f"{path.relative_to(ROOT)}:{line}: {why}"
        for name, path in found.items()
        for imported, line in imports(path.read_text(encoding="utf-8"), set(found))
        if (why := refusal(name, imported))
    ]
    assert not refused, "\n".join(refused)


def test_no_files_import_each_other_in_a_circle() -> None:
    found = modules()
    arrows = {
        name: {imported for imported, _ in imports(path.read_text(encoding="utf-8"), set(found))}
        & set(found) - {name}
        for name, path in found.items()
        if name != "edgeft.formats"  # the strings in its table are for run time
    }
    while leaves := [name for name, to in arrows.items() if not to & set(arrows)]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"these files import each other: {sorted(arrows)}"


@pytest.mark.parametrize(
    ("importer", "code", "why"),
    [
        ("edgeft.store", "def f():\n    from edgeft import merge", "may not import edgeft.merge"),
        ("edgeft.store", "from edgeft import machine", "may not import edgeft.machine"),
        ("edgeft.errors", "import edgeft.formats", "may not import edgeft.formats"),
        ("edgeft.merge.view", "x = 'edgeft.converters.gguf.convert:convert'", "may not import"),
        ("edgeft.benchmarks.bench", "import edgeft.benchmarks.studies.soak", "may not import"),
        ("edgeft.store", "import edgeft.nowhere", "on no floor"),
        ("edgeft.converters.hf", "from edgeft.merge import Merged\nimport numpy", ""),
        ("edgeft.train.run", "from edgeft.train.options import TrainOptions", ""),
    ],
)
def test_the_walk_refuses(importer: str, code: str, why: str) -> None:
    told = [refusal(importer, name) for name, _ in imports(code, set(modules()))]
    assert why in "".join(told) and bool(why) == any(told)


HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "llama_cpp", "gguf", "tokenizers")


def test_version_and_short_help_import_nothing_heavy() -> None:
    """`--help` of every command is in `cli/test_options.py`."""
    code = (
        "import sys\nfrom edgeft.cli import group\n"
        "for args in (['--version'], ['-h'], ['ab', '-h']):\n"
        "    group.main(args, prog_name='edgeft', standalone_mode=False)\n"
        f"    print('HEAVY', sorted(set(sys.modules) & set({HEAVY!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("HEAVY []") == 3 and "edgeft" in done.stdout, done.stdout
