"""Points, bars and samples -> figures as inline SVG.

    scatter("speed", "Speed against size", points, format_bytes, str, "size", "tokens per second")

The figures have no script and no colours: the page's style sheet has those, for light and dark. Every
figure is 340 units wide, about the width of a phone. Names are escaped. Each figure has a title and a
description for screen readers, and its numbers are in the page's tables, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 340
"""units"""
STANDALONE_CSS = (
    "svg{background:#fff;font:10px sans-serif}text{fill:#545d68}.grid{stroke:#d5dae0}"
    ".axis{stroke:#545d68}.curve{fill:none;stroke:#0a55a5;stroke-width:1.4}"
    ".curve.validation{stroke:#7a5200}.validation:not(.curve){fill:#7a5200}"
    ".training:not(.curve){fill:#0a55a5}.reference{stroke:#545d68;stroke-dasharray:4 3}"
    ".front,.limit{fill:none;stroke:#0a55a5}.whisker{stroke:#545d68;fill:none}.pass{fill:#1a6b2d}"
    ".fail{fill:none;stroke:#a8201a;stroke-width:2}.inconclusive{fill:#7a5200}.baseline{fill:#0a55a5}"
)
"""of a figure that is a file of its own: its elements' classes are those of page.css"""
LETTER_WIDTH = 6.0
"""units; an upper estimate for the letters of a label"""

Box = tuple[float, float, float, float]
"""left, top, right, bottom"""
Format = Callable[[float], str]
"""a number -> its text"""


@dataclass(frozen=True)
class Point:
    name: str
    x: float
    y: float
    look: str
    """CSS class: baseline, pass, fail, inconclusive or untested"""
    low: float | None = None
    high: float | None = None
    """ends of the whisker, in units of y"""
    joined: bool = False
    """whether the Pareto line passes through it"""


@dataclass(frozen=True)
class Bar:
    name: str
    parts: tuple[tuple[str, float], ...]
    """(CSS class, length), from the left"""
    label: str
    marks: tuple[tuple[str, float], ...] = ()
    """(CSS class, place) of lines across the bar"""


@dataclass(frozen=True)
class Strip:
    name: str
    label: str
    samples: tuple[float, ...]
    quantiles: tuple[float, ...]
    """50, 95 and 99 %"""


@dataclass(frozen=True)
class Line:
    name: str
    look: str
    """CSS class: training, or validation, whose points have dots"""
    points: Sequence[tuple[float, float]]
    """(x, y), in the order of x; at least one"""


def element(name: str, *children: object, **attributes: object) -> Markup:
    """An SVG element: `class_` becomes class, stroke_width stroke-width; floats get one decimal."""
    parts = []
    for key, value in attributes.items():
        text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
        parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), text))
    body = Markup("").join(escape(part) for part in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(parts), body)


def figure(
    name: str, title: str, description: str, height: float, parts: Iterable[Markup]
) -> Markup:
    """`name` is the CSS class and makes the ids, so it is unique in the page."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-told"),
        *parts,
        viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", class_=f"plot {name}",
        aria_labelledby=f"{name}-title {name}-told",
    )  # fmt: skip


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(s for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def round_sizes(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` for a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 8),
    ):
        values = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(values) > 2:
            return values
    return ticks(low, high, 3)


def scatter(
    name: str,
    title: str,
    points: Sequence[Point],
    x: Format,
    y: Format,
    x_name: str,
    y_name: str,
    line: float | None = None,
    band: tuple[float, float] | None = None,
    curve: Callable[[float], float] | None = None,
    from_zero: bool = False,
) -> Markup:
    """Points with whiskers and a line through the joined ones; the x axis is logarithmic.

    `line`: y of the baseline. `band`: accepted range of y. `curve`: a limit of y as a function of x.
    """
    top, bottom, left, right = 26, 226, 40, WIDTH - 8
    heights = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    heights += [v for v in (line, *(band or ())) if v is not None]
    low, high = min(heights), max(heights)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = (0.0, high * 1.15 or 1.0) if from_zero else (low - room, high + room)
    first, last = min(p.x for p in points) / 1.12, max(p.x for p in points) * 1.12

    def across(value: float) -> float:
        return left + (right - left) * math.log(value / first) / math.log(last / first)

    def down(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    if band:
        edges = down(band[1]), down(band[0])
        parts.append(element("rect", class_="band", x=left, y=edges[0], width=right - left,
                             height=edges[1] - edges[0]))  # fmt: skip
    for value in ticks(low, high):
        at = down(value)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=at, y2=at))
        parts.append(element("text", y(value), x=left - 5, y=at + 3.5, text_anchor="end"))
    for value in round_sizes(first, last):
        at = across(value)
        anchor = "end" if at > right - 20 else "middle"
        parts.append(element("line", class_="axis", x1=at, x2=at, y1=bottom, y2=bottom + 3))
        parts.append(element("text", x(value), x=at, y=bottom + 14, text_anchor=anchor))
    parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    parts.append(element("text", y_name, class_="name", x=2, y=12))
    parts.append(element("text", x_name, class_="name", x=right, y=bottom + 30, text_anchor="end"))
    if line is not None:
        at = down(line)
        parts.append(element("line", class_="reference", x1=left, x2=right, y1=at, y2=at))
    if curve:
        steps = (first * (last / first) ** (i / 100) for i in range(101))
        curve_points = [(v, curve(v)) for v in steps]
        path = [f"{across(v):.1f},{down(h):.1f}" for v, h in curve_points if low <= h <= high]
        parts.append(element("polyline", class_="limit", points=" ".join(path)))
    joined = sorted((p for p in points if p.joined), key=lambda p: p.x)
    path = [f"{across(p.x):.1f},{down(p.y):.1f}" for p in joined]
    parts.append(element("polyline", class_="front", points=" ".join(path)))
    occupied: list[Box] = []
    for p in points:
        cx, cy = across(p.x), down(p.y)
        occupied.append((cx - 5, cy - 5, cx + 5, cy + 5))
        if p.low is not None and p.high is not None:
            ends = down(p.high), down(p.low)
            occupied.append((cx - 4, ends[0], cx + 4, ends[1]))
            parts.append(_whisker(cx, *ends))
    parts += [_point(p, across(p.x), down(p.y), f"{x(p.x)}, {y(p.y)}") for p in points]
    for p in points:
        parts.append(_label(p, across(p.x), down(p.y), occupied, (left, top - 8, right, bottom)))
    summary = "; ".join(f"{p.name}: {x(p.x)}, {y(p.y)}" for p in points)
    return figure(name, title, f"{y_name} against {x_name}. {summary}.", bottom + 36, parts)


def curves(
    name: str,
    title: str,
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    from_zero: bool = False,
    names_at_ends: bool = False,
) -> Markup:
    """Lines over a linear x axis, such as losses against the step, named in a corner or at their ends."""
    top, bottom, left, right = 26, 226, 44, WIDTH - 8
    widths = [x for line in lines for x, _ in line.points]
    heights = [y for line in lines for _, y in line.points]
    first, last, low, high = min(widths), max(widths), min(heights), max(heights)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (0.0, high + room) if from_zero and low >= 0 else (low - room, high + room)

    def across(value: float) -> float:
        return left + (right - left) * ((value - first) / (last - first) if last > first else 0.5)

    def down(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for value in ticks(low, high):
        at = down(value)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=at, y2=at))
        label = f"{value:.3g}".replace("e-0", "e-")
        parts.append(element("text", label, x=left - 5, y=at + 3.5, text_anchor="end"))
    for value in ticks(first, last):
        at = across(value)
        anchor = "end" if at > right - 20 else "middle"
        parts.append(element("line", class_="axis", x1=at, x2=at, y1=bottom, y2=bottom + 3))
        parts.append(element("text", f"{value:,.6g}", x=at, y=bottom + 14, text_anchor=anchor))
    parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    parts.append(element("text", y_name, class_="name", x=2, y=12))
    parts.append(element("text", x_name, class_="name", x=right, y=bottom + 30, text_anchor="end"))
    for number, line in enumerate(lines):
        if names_at_ends:
            x, y = line.points[-1]
            at = min(across(x), right - 4)
            parts.append(element("text", line.name, class_=line.look, x=at, y=down(y) - 4,
                                 text_anchor="end"))  # fmt: skip
        elif len(lines) > 1:
            key = f"{'●' if line.look == 'validation' else '—'} {line.name}"
            parts.append(element("text", key, class_=line.look, x=right, y=12 + 13 * number,
                                 text_anchor="end"))  # fmt: skip
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line.points)
        tip = element("title", line.name)
        parts.append(element("polyline", tip, class_=f"curve {line.look}", points=path))
        if line.look == "validation" or len(line.points) == 1:
            for x, y in line.points:
                tip = element("title", f"{line.name} at {x:g}: {y:.4g}")
                parts.append(
                    element("circle", tip, class_=line.look, cx=across(x), cy=down(y), r=2.6)
                )
    summary = "; ".join(
        f"{line.name}: from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines
    )
    return figure(name, title, f"{y_name} against {x_name}. {summary}.", bottom + 36, parts)


def standalone(svg: Markup) -> str:
    """A figure as an SVG file of its own, in black, grey and one colour on white."""
    head, _, rest = str(svg).partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STANDALONE_CSS}</style>{rest}\n'


def forest(name: str, title: str, rows: Sequence[Point], margin: float, tick: Format) -> Markup:
    """One row per point: its difference y with its interval, against 0 and the margin (a loss)."""
    ends = [v for p in rows for v in (p.y, p.low, p.high) if v is not None]
    low, high = min(*ends, -margin), max(*ends, 0.0)
    room = (high - low) * 0.08 or 1.0
    low, high = low - room, high + room
    left, right, bottom = 92, WIDTH - 8, 22.0 * len(rows) + 22

    def across(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    parts = [element("rect", class_="band", x=across(-margin), y=16,
                     width=across(0) - across(-margin), height=bottom - 16)]  # fmt: skip
    for look, value in (("margin", -margin), ("reference", 0.0)):
        at = across(value)
        parts.append(element("line", class_=look, x1=at, x2=at, y1=16, y2=bottom))
    parts.append(element("text", f"margin {tick(-margin)}", x=across(-margin), y=11,
                         text_anchor="end" if across(-margin) > 200 else "middle"))  # fmt: skip
    for value in ticks(low, high):
        at = across(value)
        parts.append(element("text", tick(value), x=at, y=bottom + 14, text_anchor="middle"))
    parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    for number, p in enumerate(rows):
        y = 22.0 * number + 29
        label = short(p.name, 16)
        parts.append(element("text", label, element("title", p.name), class_="row", x=2, y=y + 3.5))
        if p.low is not None and p.high is not None:
            path = f"M{across(p.low):.1f} {y - 4:.1f}v8M{across(p.low):.1f} {y:.1f}"
            path += f"H{across(p.high):.1f}M{across(p.high):.1f} {y - 4:.1f}v8"
            parts.append(element("path", class_="whisker", d=path))
        parts.append(_point(p, across(p.y), y, tick(p.y)))
    summary = "; ".join(f"{p.name}: {tick(p.y)}" for p in rows)
    return figure(name, title, f"Margin {tick(-margin)}. {summary}.", bottom + 20, parts)


def bars(name: str, title: str, rows: Sequence[Bar], tick: Format) -> Markup:
    """One stacked bar per row, below its name."""
    lengths = [sum(length for _, length in row.parts) for row in rows]
    places = [place for row in rows for _, place in row.marks]
    widest = max([*lengths, *places]) * 1.02 or 1.0
    scale = (WIDTH - 8) / widest
    parts = []
    for number, row in enumerate(rows):
        y, x = 34.0 * number + 12, 2.0
        parts += _row_text(row.name, row.label, y)
        for look, length in row.parts:
            parts.append(element("rect", class_=look, x=x, y=y + 5, width=length * scale,
                                 height=12))  # fmt: skip
            x += length * scale
        for look, place in row.marks:
            at = 2 + place * scale
            parts.append(element("line", class_=look, x1=at, x2=at, y1=y + 2, y2=y + 20))
    parts += _ruler(widest, scale, 34.0 * len(rows) + 2, tick)
    summary = "; ".join(f"{row.name}: {row.label}" for row in rows)
    return figure(name, title, f"{summary}.", 34 * len(rows) + 20, parts)


def strips(name: str, title: str, rows: Sequence[Strip], tick: Format) -> Markup:
    """Per row: a thin line for every sample, a bar from median to 95 %, lines at 50, 95 and 99 %."""
    widest = max(value for row in rows for value in (*row.samples, *row.quantiles)) * 1.03 or 1.0
    scale = (WIDTH - 8) / widest
    parts = []
    for number, row in enumerate(rows):
        y = 40.0 * number + 12
        parts += _row_text(row.name, row.label, y)
        for value in row.samples:
            at = 2 + value * scale
            parts.append(element("line", class_="sample", x1=at, x2=at, y1=y + 6, y2=y + 22))
        ends = [2 + value * scale for value in row.quantiles]
        parts.append(element("rect", class_="spread", x=ends[0], y=y + 11,
                             width=max(ends[1] - ends[0], 0.5), height=6))  # fmt: skip
        for at, look in zip(ends, ("median", "tail", "tail"), strict=False):
            parts.append(element("line", class_=look, x1=at, x2=at, y1=y + 5, y2=y + 23))
    parts += _ruler(widest, scale, 40.0 * len(rows) + 2, tick)
    summary = "; ".join(f"{row.name}: {row.label}" for row in rows)
    return figure(name, title, f"{summary}.", 40 * len(rows) + 20, parts)


def interval(
    value: float, low: float, high: float, reference: float | None = None, start: float = 0.0
) -> Markup:
    """One share with its interval on an axis from `start` to 1, for a table cell."""

    def across(share: float) -> float:
        return 4 + 112 * (min(max(share, start), 1.0) - start) / (1 - start)

    parts = [element("line", class_="grid", x1=4, x2=116, y1=8, y2=8)]
    if reference is not None:
        at = across(reference)
        parts.append(element("line", class_="reference", x1=at, x2=at, y1=1, y2=15))
    parts.append(element("line", class_="whisker", x1=across(low), x2=across(high), y1=8, y2=8))
    parts.append(element("circle", class_="dot", cx=across(value), cy=8, r=3.2))
    return element("svg", *parts, viewBox="0 0 120 16", class_="plot cell", aria_hidden="true")


def short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _row_text(name: str, value: str, y: float) -> list[Markup]:
    room = int((WIDTH - len(value) * LETTER_WIDTH - 16) / LETTER_WIDTH)
    label = element(
        "text", short(name, max(room, 6)), element("title", name), class_="row", x=2, y=y
    )
    return [label, element("text", value, x=WIDTH - 6, y=y, text_anchor="end")]


def _ruler(widest: float, scale: float, y: float, tick: Format) -> list[Markup]:
    parts = [element("line", class_="axis", x1=2, x2=WIDTH - 6, y1=y, y2=y)]
    for value in ticks(0, widest):
        at = 2 + value * scale
        anchor = "start" if value == 0 else "end" if at > WIDTH - 24 else "middle"
        parts.append(element("text", tick(value), x=at, y=y + 13, text_anchor=anchor))
    return parts


def _whisker(x: float, top: float, bottom: float) -> Markup:
    path = f"M{x - 3:.1f} {top:.1f}h6M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 3:.1f} {bottom:.1f}h6"
    return element("path", class_="whisker", d=path)


def _point(p: Point, x: float, y: float, value: str) -> Markup:
    """Each outcome has its own shape, because not everybody sees the colours."""
    tip = element("title", f"{p.name}: {value}")
    if p.look == "baseline":
        return element("rect", tip, class_=p.look, x=x - 4, y=y - 4, width=8, height=8)
    outline = {
        "fail": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8",
        "inconclusive": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
    }
    if p.look in outline:
        return element("path", tip, class_=p.look, d=outline[p.look])
    return element("circle", tip, class_=p.look, cx=x, cy=y, r=4.4)


def _label(p: Point, x: float, y: float, occupied: list[Box], area: Box) -> Markup:
    """The point's name, at the place where it covers least of the boxes in `occupied`; added to them."""
    text = short(p.name, 24)
    width = len(text) * LETTER_WIDTH
    spots = [(x + 8, y), (x - 8 - width, y), (x + 6, y - 11), (x + 6, y + 11),
             (x - 6 - width, y - 11), (x - 6 - width, y + 11), (x - width / 2, y - 13),
             (x - width / 2, y + 14), (x + 6, y - 22), (x + 6, y + 22),
             (x - 6 - width, y - 22), (x - 6 - width, y + 22)]  # fmt: skip

    def cost(spot: tuple[float, float]) -> float:
        box = _text_box(*spot, width)
        outside = sum(max(0.0, gap) for gap in (area[0] - box[0], area[1] - box[1],
                                                box[2] - area[2], box[3] - area[3]))  # fmt: skip
        return outside * 40 + sum(_overlap(box, other) for other in occupied)

    spot = min(spots, key=cost)
    occupied.append(_text_box(*spot, width))
    return element("text", text, class_="label", x=spot[0], y=spot[1] + 3.5)


def _text_box(x: float, y: float, width: float) -> Box:
    return x - 2, y - 5, x + width + 2, y + 5


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
