"""Who may import whom: a module imports only from lower layers, at any depth of its code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOTS = {
    "edgeft": "edgeft",
    "converters": "edgeft.converters",
    "benchmarks": "edgeft.benchmarks",
    "models": "edgeft.models",
}

LAYERS: tuple[tuple[str, ...], ...] = (
    ("edgeft.errors",),
    (
        "edgeft.formats",
        "edgeft.records",
        "edgeft.models",
        "edgeft.progress",
        "edgeft.sentencepiece",
        "edgeft.gguf_header",
        "edgeft.generation",
        "edgeft.webpage",
    ),
    (
        "edgeft.stage",
        "edgeft.packed",
        "edgeft.solver",
        "edgeft.coded",
        "edgeft.checkpoint",
        "edgeft.template",
        "edgeft.dataset",
        "edgeft.nf4",
        "edgeft.merge_base",
        "edgeft.changes",
        "edgeft.adapter_config",
        "edgeft.adapter_tensors",
        "edgeft.adapter_tokenizer",
        "edgeft.adapter",
        "edgeft.imatrix",
        "edgeft.ggml",
        "edgeft.grids",
        "edgeft.vocabulary",
        "edgeft.onnx_graph",
        "edgeft.chatglm",
    ),
    (
        "edgeft.train",
        "edgeft.merge",
        "edgeft.blockwise",
        "edgeft.gptq",
        "edgeft.deferred",
        "edgeft.base",
        "edgeft.converters",
        "edgeft.runtimes",
        "edgeft.modelfile",
    ),
    ("edgeft.benchmarks", "edgeft.activations", "edgeft.server"),
    (
        "edgeft.export",
        "edgeft.report",
        "edgeft.describe",
        "edgeft.decide",
        "edgeft.checks",
        "edgeft.release",
        "edgeft.human",
        "edgeft.search",
        "edgeft.conversation",
    ),
    ("edgeft.cli",),
    ("edgeft.__main__",),
)
"""from the lowest; a name stands for its whole package"""

LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

INSIDE = {
    "edgeft.train": "its files are one stage",
    "edgeft.server": "its files are one program",
    "edgeft.human": "votes, their count and the page are one thing",
    "edgeft.benchmarks": "the measurements build on each other and on the suites",
    "edgeft.report": "the page is made of the tables and the plots",
}
"""packages whose files may import each other freely -> why"""

ALLOWED = {
    ("edgeft.converters", "edgeft.merge"): "a converter consumes the Merged view",
    ("edgeft.dataset", "edgeft.template"): "examples become ids through the one chat template",
    ("edgeft.converters.gguf", "edgeft.converters._blocks"): "its writer, private to it",
    ("edgeft.converters.hf", "edgeft.converters._folder"): "what folders have in common",
    ("edgeft.converters.gptq", "edgeft.converters._folder"): "likewise",
    ("edgeft.converters._blocks", "edgeft.converters._tensors"): "a block is a part of a tensor",
    ("edgeft.converters.gguf", "edgeft.converters._tensors"): "its tensors, private to it",
    ("edgeft.converters.gguf", "edgeft.converters._metadata"): "its header, private to it",
    ("edgeft.checkpoint", "edgeft.packed"): "layers of GPTQ are tensors like others",
    ("edgeft.checkpoint", "edgeft.template"): "config.json says how they are stored",
    ("edgeft.solver", "edgeft.ggml"): "ggml's kernels find the scales of the K-quants",
    ("edgeft.solver", "edgeft.grids"): "and codes go into its blocks",
    ("edgeft.blockwise", "edgeft.merge"): "the Merged view, run block by block",
    ("edgeft.gptq", "edgeft.merge"): "the Merged view, quantized",
    ("edgeft.gptq", "edgeft.blockwise"): "block by block",
    ("edgeft.converters", "edgeft.gptq"): "two formats hold what it makes",
    ("edgeft.solver", "edgeft.packed"): "GPTQ's own grid is what its folders hold",
    ("edgeft.deferred", "edgeft.merge"): "the Merged view as transformers' modules",
    ("edgeft.deferred", "edgeft.blockwise"): "which have the same skeleton there",
    ("edgeft.deferred", "edgeft.adapter_tensors"): "names in the checkpoint",
    ("edgeft.converters", "edgeft.deferred"): "the builder arranges what is deferred",
    ("edgeft.converters.onnx", "edgeft.blockwise"): "transformers' configuration of the view",
    ("edgeft.converters.onnx", "edgeft.converters._folder"): "likewise",
    ("edgeft.converters.onnx", "edgeft.converters._nbits"): "its layout of codes, private to it",
    ("edgeft.converters.onnx", "edgeft.converters._onnx_families"): "its builders, likewise",
    ("edgeft.converters.onnx", "edgeft.converters._onnx_weights"): "its matrices, likewise",
    ("edgeft.converters._onnx_weights", "edgeft.converters._nbits"): "and their layout",
    ("edgeft.onnx_graph", "edgeft.template"): "its settings are read like every other",
    ("edgeft.merge", "edgeft.packed"): "codes that no adapter changes stay what they are",
    ("edgeft.generation", "edgeft.records"): "limits of what is written",
    ("edgeft.benchmarks.gptq_cost", "edgeft.report"): "a program of its own, likewise",
    ("edgeft.coded", "edgeft.packed"): "codes become blocks",
    ("edgeft.coded", "edgeft.checkpoint"): "of a folder of them",
    ("edgeft.runtimes.gguf", "edgeft.runtimes.sequences"): "its context for a scheduler",
    ("edgeft.runtimes.gptq", "edgeft.runtimes.gguf"): "it runs what was repacked",
    ("edgeft.runtimes.gptq", "edgeft.base"): "which is kept where imported bases are",
    ("edgeft.runtimes.gptq", "edgeft.merge"): "and is the base alone, as the converter sees it",
    ("edgeft.merge_base", "edgeft.checkpoint"): "a base is a checkpoint, seen through a type",
    ("edgeft.merge_base", "edgeft.nf4"): "which may be one of 4 bits",
    ("edgeft.changes", "edgeft.checkpoint"): "an adapter's matrices stay in its file",
    ("edgeft.adapter_config", "edgeft.template"): "it is read like every other configuration",
    ("edgeft.adapter_tokenizer", "edgeft.template"): "its files are read like every other",
    ("edgeft.adapter_tensors", "edgeft.changes"): "they stay in their file",
    ("edgeft.adapter_tensors", "edgeft.checkpoint"): "its file is a checkpoint",
    ("edgeft.adapter", "edgeft.adapter_tensors"): "an adapter is read before it is understood",
    ("edgeft.adapter", "edgeft.adapter_config"): "the configuration says what the tensors are",
    ("edgeft.adapter", "edgeft.changes"): "an adapter is a set of changes",
    ("edgeft.adapter", "edgeft.checkpoint"): "an adapter is a checkpoint of deltas",
    ("edgeft.adapter", "edgeft.stage"): "its manifest names the base it was trained on",
    ("edgeft.models", "edgeft.models"): "cards name transforms and derived values",
    ("edgeft.benchmarks.chain", "edgeft.report"): "a program of its own, which prints a table",
    ("edgeft.benchmarks.gptq", "edgeft.report"): "a program of its own, likewise",
    ("edgeft.benchmarks.onnx", "edgeft.report"): "a program of its own, likewise",
    ("edgeft.benchmarks.serving", "edgeft.report"): "a program of its own, likewise",
    ("edgeft.benchmarks.gptq", "edgeft.export"): "which exports what it compares",
    ("edgeft.benchmarks.gptq", "edgeft.decide"): "and finds the fine-tune's own chats",
    ("edgeft.converters.gguf", "edgeft.converters._mixture"): "its choice of types, likewise",
    ("edgeft.converters.gguf", "edgeft.converters._vocab"): "its vocabulary, private to it",
    ("edgeft.export", "edgeft.decide"): "what it measures before it writes",
    ("edgeft.export", "edgeft.checks"): "what it holds the finished file to",
    ("edgeft.search", "edgeft.export"): "makes what it chooses from",
    ("edgeft.search", "edgeft.release"): "by the gate",
    ("edgeft.human", "edgeft.report"): "its tables",
    ("edgeft.release", "edgeft.report"): "which machine it was decided on",
    ("edgeft.cli", "edgeft.cli._options"): "the options that commands share",
    ("edgeft.cli.chat", "edgeft.cli._prompt"): "its keyboard, private to it",
    ("edgeft.cli.chat", "edgeft.cli._chat_commands"): "its commands, likewise",
}
"""(importer, imported) inside one layer -> why"""


def modules() -> dict[str, Path]:
    """Every module by its dotted name; the links in edgeft/ are not followed."""
    found = {}
    for folder, package in ROOTS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "edgeft" and parts[0] in ROOTS:
                continue  # Python before 3.13 follows links in rglob
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def imports(name: str, path: Path, known: set[str]) -> Iterator[tuple[str, int]]:
    """(module of this project, line) of every import statement, those in functions included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, node.module or ""]).strip(".") if node.level else node.module
            assert base is not None
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in known else base), node.lineno


def entry(name: str) -> str | None:
    """The line of the table that `name` belongs to."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 1, -1))
    return next((prefix for prefix in prefixes if prefix in LAYER), None)


def covers(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(pattern + ".")


def refusal(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`, None where it may."""
    mine, other = entry(importer), entry(imported)
    if imported == "edgeft" or imported.partition(".")[0] != "edgeft":
        return None  # the version, or another project
    if other is None:
        return f"{imported} is in no layer"
    if mine is None or LAYER[other] < LAYER[mine]:
        return None
    if mine == other and (importer == imported or mine in INSIDE):
        return None
    if any(covers(a, importer) and covers(b, imported) for a, b in ALLOWED):
        return None
    up = LAYER[other] - LAYER[mine]
    return f"{imported} is {f'{up} layers above' if up else 'in the same layer'}"


def violations(found: dict[str, Path]) -> list[str]:
    known = set(found) | set(MODULES)
    return [
        f"{path.name}:{line}: {name} may not import {imported}: {why}"
        for name, path in found.items()
        for imported, line in imports(name, path, known)
        if (why := refusal(name, imported))
    ]


def test_every_module_has_a_layer() -> None:
    missing = [name for name in MODULES if name != "edgeft" and entry(name) is None]
    assert not missing, f"say in LAYERS (tests/test_layers.py) where {missing} belong"
    gone = [name for name in LAYER if name not in MODULES]
    assert not gone, f"LAYERS names {gone}, which do not exist"


def test_modules_import_only_from_lower_layers() -> None:
    assert len(MODULES) > 25, "the walk finds too little"
    found = violations(MODULES)
    assert not found, "\n".join(["import from a lower layer, or move the function:", *found])


def test_every_allowance_is_used() -> None:
    """An allowance that nobody needs any more would hide the next violation."""
    used = {
        pair
        for name, path in MODULES.items()
        for imported, _ in imports(name, path, set(MODULES))
        for pair in ALLOWED
        if covers(pair[0], name) and covers(pair[1], imported)
    }
    assert used == set(ALLOWED)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("edgeft.stage", "from edgeft.checkpoint import Checkpoint", "in the same layer"),
        ("edgeft.stage", "def f():\n    from edgeft import merge", "1 layers above"),
        ("edgeft.errors", "import edgeft.records", "1 layers above"),
        ("edgeft.report", "if TYPE_CHECKING:\n    from edgeft.export import x", "the same layer"),
        ("edgeft.merge", "from .train import sft", "in the same layer"),
        ("edgeft.converters.hf", "from . import gguf", "in the same layer"),
        ("edgeft.converters.hf", "from edgeft.converters._mixture import x", "the same layer"),
        ("edgeft.train.sft", "from edgeft.merge import open_merged", "in the same layer"),
        ("edgeft.cli.bench", "from edgeft.cli import ab", "in the same layer"),
        ("edgeft.benchmarks.speed", "from ..cli import _options", "2 layers above"),
        ("edgeft.stage", "import edgeft.nowhere", "in no layer"),
        ("edgeft.cli.bench", "from edgeft.cli._options import x\nfrom edgeft import report", ""),
        ("edgeft.converters.hf", "from edgeft.merge import Merged\nimport numpy", ""),
        ("edgeft.train.sft", "from edgeft.train.trainer import x\nfrom edgeft import stage", ""),
        ("edgeft.dataset", "from edgeft.template import spans", ""),
        ("edgeft.template", "from edgeft.dataset import split", "in the same layer"),
    ],
)
def test_the_walk_can_tell(tmp_path: Path, name: str, code: str, says: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(code)
    found = violations({name: file})
    assert len(found) == (1 if says else 0), found
    assert says in "".join(found)


HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "llama_cpp", "gguf", "tokenizers")


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["bench", "--help"], ["ab", "-h"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom edgeft.cli import group\n"
        f"group.main({args!r}, prog_name='edgeft', standalone_mode=False)\n"
        f"print('HEAVY', sorted(set(sys.modules) & set({HEAVY!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert "edgeft" in done.stdout
