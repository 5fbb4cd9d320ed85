"""The nouns of a workspace -> a picture of what was made from what, as SVG.

What is made stands to the right of all that it was made from. Parents that lie outside of the workspace are
drawn, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from markupsafe import Markup

from edgeft.report.plots import element
from edgeft.studio.nouns import Noun

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 160, 38, 44, 14, 4
MAX_NODES, MAX_COLUMNS = 150, 12
NAME_CHARS, FOLDER_CHARS = 22, 28


@dataclass(frozen=True)
class Node:
    """A box: a noun, or a parent from elsewhere."""

    key: str
    name: str
    kind: str
    path: str = ""
    """"" = outside of the workspace"""


def graph(nouns: Sequence[Noun]) -> tuple[list[Node], list[tuple[Node, Node]]]:
    """(nodes, arrows from parent to child). What is neither parent nor child is left out."""
    nodes = {noun.path: Node(noun.path, noun.name, noun.kind, noun.path) for noun in nouns}
    by_identity = {noun.identity: nodes[noun.path] for noun in nouns if noun.identity}
    for noun in nouns:  # a base without a manifest is known by its place
        for role, identity in noun.parents.items():
            if identity not in by_identity and noun.names.get(role) in nodes:
                by_identity[identity] = nodes[noun.names[role]]
    arrows: list[tuple[Node, Node]] = []
    for noun in nouns:
        for role, identity in noun.parents.items():
            parent = by_identity.get(identity)
            if parent is None and noun.kind != "report":
                kinds = {"adapter": "adapter", "base": "base", "ship_from": "artifact"}
                kind = kinds.get(role.partition(" ")[0], "data")
                name = PurePosixPath(noun.names.get(role) or role).name
                parent = by_identity[identity] = Node(identity, name, kind)
            if parent and parent.key != noun.path:
                arrows.append((parent, nodes[noun.path]))
    used = list(dict.fromkeys(node for arrow in arrows for node in arrow))[:MAX_NODES]
    return used, [(a, b) for a, b in arrows if a in used and b in used]


def lineage_svg(nouns: Sequence[Noun], title: str, outside: str) -> Markup:
    """ "" where nothing was made from anything."""
    nodes, arrows = graph(nouns)
    if not nodes:
        return Markup("")
    columns: dict[int, list[Node]] = {}
    for node, number in _columns(nodes, arrows).items():
        columns.setdefault(number, []).append(node)
    numbers = sorted(columns)
    places: dict[Node, tuple[float, float]] = {}
    for x, number in enumerate(numbers):
        # In the order of the rows of their parents, so that few arrows cross.
        heights = {
            node: [places[a][1] for a, b in arrows if b == node and a in places]
            for node in sorted(columns[number], key=lambda node: (node.kind, node.key))
        }
        ordered = sorted(heights, key=lambda node: sum(heights[node]) / max(1, len(heights[node])))
        for y, node in enumerate(ordered):
            places[node] = float(MARGIN + x * (WIDTH + GAP_X)), float(MARGIN + y * (HEIGHT + GAP_Y))
    rows = max(len(column) for column in columns.values())
    width = 2 * MARGIN + len(numbers) * (WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + rows * (HEIGHT + GAP_Y) - GAP_Y
    return element(
        "svg",
        element("title", title),
        *(_arrow(places[parent], places[child]) for parent, child in arrows),
        *(_box(node, places[node], outside) for node in nodes),
        viewBox=f"0 0 {width} {height}", width=width, height=height, role="group", class_="lineage",
        aria_label=title,
    )  # fmt: skip


def _columns(nodes: Sequence[Node], arrows: Sequence[tuple[Node, Node]]) -> dict[Node, int]:
    """Each node's column: right of its parents; what has none stands beside its first child."""
    column = dict.fromkeys(nodes, 0)
    for _ in range(
        MAX_COLUMNS
    ):  # more than any chain has; a circle, which no hash can make, ends here
        for parent, child in arrows:
            column[child] = min(MAX_COLUMNS, max(column[child], column[parent] + 1))
    children = {child for _, child in arrows}
    for node in nodes:
        if node not in children:
            column[node] = min(column[child] for parent, child in arrows if parent == node) - 1
    return column


def _arrow(parent: tuple[float, float], child: tuple[float, float]) -> Markup:
    x1, y1 = parent[0] + WIDTH, parent[1] + HEIGHT / 2
    x2, y2 = child[0], child[1] + HEIGHT / 2
    middle = (x1 + x2) / 2
    path = f"M{x1:.0f} {y1:.0f}C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
    return element("path", d=path, class_="arrow")


def _box(node: Node, place: tuple[float, float], outside: str) -> Markup:
    x, y = place
    name = node.name if len(node.name) <= NAME_CHARS else f"{node.name[: NAME_CHARS - 1]}…"
    folder = str(PurePosixPath(node.path).parent) if node.path else outside
    folder = "" if folder == "." else folder[-FOLDER_CHARS:]
    box = element(
        "g",
        element("title", node.path or f"{node.name} ({outside})"),
        element("rect", x=x, y=y, width=WIDTH, height=HEIGHT, rx=7),
        element("text", name, x=x + 10, y=y + (16 if folder else 23)),
        *([element("text", folder, x=x + 10, y=y + 30, class_="folder")] if folder else []),
        class_=f"box-{node.kind}{'' if node.path else ' outside'}",
    )
    return element("a", box, href=f"/file/{quote(node.path)}") if node.path else box
