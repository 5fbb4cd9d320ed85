"""A checkout -> the figures of its structure: modules, imports, circles, branches.

    python -m edgeft.benchmarks.studies.structure [CHECKOUT]

Reads the source as text and imports nothing of it, so that two commits can be compared. A room is a
folder of the package, or a file in its root. Branches are counted over a whole definition: if, for,
while, except, and, or, conditional expressions, conditions of comprehensions. Ends in one JSON line.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LINKS = ("benchmarks", "converters", "models")
BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.BoolOp, ast.ExceptHandler)


def modules(root: Path) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree, of every module of the package."""
    trees = {}
    for top in ("edgeft", *LINKS):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] == "edgeft" and parts[1] in LINKS:
                continue  # the same file through a link
            name = ".".join(parts if parts[0] == "edgeft" else ("edgeft", *parts))
            trees[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, at any depth of its code."""
    arrows: dict[str, set[str]] = {}
    for name, tree in trees.items():
        targets = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    targets.add(full if full in trees else node.module)
        arrows[name] = (targets & trees.keys()) - {name, "edgeft"}
    return arrows


def room(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[1:3] == ["benchmarks", "studies"] else 2])


def in_circles(arrows: dict[str, set[str]]) -> list[str]:
    """Names that import each other, directly or through others."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while gone := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in gone:
            del left[name]
    while gone := [n for n in left if not any(n in targets for targets in left.values())]:
        for name in gone:
            del left[name]
    return sorted(left)


def branches(node: ast.AST) -> int:
    """Branches of a definition, those of definitions inside it included."""
    conditions = sum(len(n.ifs) for n in ast.walk(node) if isinstance(n, ast.comprehension))
    return conditions + sum(isinstance(n, BRANCHES) for n in ast.walk(node))


def definitions(trees: dict[str, ast.Module]) -> Iterator[tuple[str, ast.stmt]]:
    """Every function, and every class that no function holds, by its full name."""
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield f"{name}:{node.name}", node


def figures(root: Path) -> dict[str, Any]:
    trees = modules(root)
    arrows = imports(trees)
    rooms = {room(name) for name in trees}
    between: dict[str, set[str]] = {name: set() for name in rooms}
    for name, targets in arrows.items():
        if name != "edgeft":
            between[room(name)] |= {room(target) for target in targets} - {room(name)}
    files = [p for top in ("edgeft", *LINKS) for p in (root / top).rglob("*.py")]
    sizes = {p.resolve(): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    functions = {n: d for n, d in definitions(trees) if not isinstance(d, ast.ClassDef)}
    classes = {n: d for n, d in definitions(trees) if isinstance(d, ast.ClassDef)}
    loose = [
        n for n in trees if n.count(".") == 1 and not any(o.startswith(n + ".") for o in trees)
    ]

    def largest(nodes: Mapping[str, ast.stmt]) -> dict[str, int]:
        counts = {name: branches(node) for name, node in nodes.items()}
        return dict(sorted(counts.items(), key=lambda item: -item[1])[:10])

    return {
        "modules": len(trees),
        "loose_modules": len([n for n in loose if n != "edgeft.__main__"]),
        "rooms": len(rooms),
        "room_arrows": sum(map(len, between.values())),
        "file_arrows": sum(map(len, arrows.values())),
        "rooms_in_circles": in_circles(between),
        "files_in_circles": in_circles(arrows),
        "median_module_lines": statistics.median(sizes.values()),
        "largest_module_lines": max(sizes.values()),
        "functions": len(functions),
        "median_function_lines": statistics.median(
            (d.end_lineno or d.lineno) - d.lineno + 1 for d in functions.values()
        ),
        "most_branches_functions": largest(functions),
        "most_branches_classes": largest(classes),
        "readme_lines": len((root / "README.md").read_text(encoding="utf-8").splitlines()),
    }


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    result = figures(root)
    for name, value in result.items():
        print(f"{name}: {json.dumps(value, indent=1) if isinstance(value, dict) else value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
