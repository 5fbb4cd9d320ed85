"""A Release -> one self-contained HTML page, and a note in Markdown.

    html(release), markdown(release)

The texts of models and items are hostile: Jinja escapes all of them, the page has no script, and its
content policy lets the browser load nothing. Values that were not measured are left out.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from edgeft.files import format_bytes
from edgeft.records import Arm, Release
from edgeft.report import plots, tables

Segment = tuple[bool, str]
"""(differs, text)"""


def html(release: Release) -> str:
    """The shipped candidate, or else the first that was tested, is the subject of the page's top."""
    candidates = [arm for arm in release.arms if arm.kind == "candidate"]
    baseline = next((arm for arm in release.arms if arm.kind == "baseline"), None)
    tested = [arm for arm in candidates if arm.verdict]
    shipped = next((arm for arm in tested if arm.name == release.ship), None)
    subject = shipped or next(iter(tested), None)
    others = [arm for arm in (*candidates, *release.arms) if arm is not subject]
    ordered = list(dict.fromkeys(map(id, [*filter(None, [subject]), *others])))
    by_id = {id(arm): arm for arm in release.arms}
    return environment().get_template("page.html.j2").render(
        release=release, baseline=baseline, subject=subject, tested=tested,
        shown_first=[by_id[key] for key in ordered],
        quality_plot=_quality(tested, baseline), speed_plot=_speed(release.arms),
        memory_plot=_memory(release.arms), latency_plot=_latency(release.arms),
        forest_plot=_forest(tested), texts=_texts(release.arms), floor_kl=_floor(release.floor),
    )  # fmt: skip


def markdown(release: Release) -> str:
    """For a release note: the decision, the table, the reason, the commands that reproduce it."""
    ship = f": ship `{release.ship}`" if release.ship else ""
    parts = [f"**{release.outcome}{ship}**", tables.arms_table(release.arms), release.reason]
    if release.forgetting:
        parts.append("\n".join(tables.forgetting_lines(release)).strip())
    for arm in release.arms:
        if arm.name == release.ship and arm.kind == "candidate":
            parts.append(f"`{arm.name}`: {format_bytes(arm.size)}, identity `{arm.identity}`")
    parts += ["\n".join(f"- {note}" for note in release.notes)] if release.notes else []
    if release.commands:
        parts.append("\n".join(["To reproduce:", "", "```sh", *release.commands, "```"]))
    origin = f"edgeft {release.edgeft}, {release.created}, {release.machine.get('cpu', '')}"
    parts.append(f"Measured with {origin.rstrip(', ')}.")
    return "\n\n".join(parts) + "\n"


def difference(before: str, after: str) -> tuple[list[Segment], list[Segment]]:
    """Both texts in pieces; a piece is marked if only one text has it.

    In long texts a very frequent word begins no match (difflib's autojunk), because a reply that repeats
    itself to its end would take minutes.
    """
    one, other = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (before, after))
    left: list[Segment] = []
    right: list[Segment] = []
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=True)
    for tag, a, b, c, d in matcher.get_opcodes():
        if a < b:
            left.append((tag != "equal", "".join(one[a:b])))
        if c < d:
            right.append((tag != "equal", "".join(other[c:d])))
    return left, right


@functools.cache
def environment() -> jinja2.Environment:
    """Jinja with the filters of every page: it escapes what it inserts."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.ChainableUndefined,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "points": _points, "size": _size, "rounded": rounded,
        "seconds": seconds, "difference": lambda pair: difference(*pair),
        "look": _css_class, "setting": _setting,
    }  # fmt: skip
    environment.globals |= {"interval": _interval}
    return environment


# Filters: a value that is no number gives "", so that the template need not check.


def _number(value: Any) -> float | None:
    """The value as a float; None if it is no finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def percent(value: Any, digits: int = 1) -> str:
    """With `digits` decimals, more if it would round to 0 or 100 %; exactly 0 and 100 % have none."""
    number = _number(value)
    if number is None:
        return ""
    text = f"{number * 100:.{digits}f}"
    if number in (0, 1):
        return f"{number:.0%}".replace("%", " %")
    while digits < 6 and float(text) in (0, 100):
        digits += 1
        text = f"{number * 100:.{digits}f}"
    return f"{text} %"


def rounded(value: Any, digits: int = 3) -> str:
    """With so many significant digits, and no exponent from 0.0001 on: 0.00123, 61.2, 1,234."""
    number = _number(value)
    if number is None:
        return ""
    if number == 0:
        return "0"
    if abs(number) < 1e-4:
        return f"{number:.{digits - 1}g}".replace("e-0", "e-")
    whole = len(str(int(abs(number)))) if abs(number) >= 1 else 0
    if not whole:
        return f"{number:#.{digits}g}"
    return f"{number:,.{max(digits - whole, 0)}f}"


def seconds(value: Any) -> str:
    number = _number(value)
    if number is None:
        return ""
    return f"{rounded(number * 1000)} ms" if number < 1 else f"{rounded(number)} s"


def _points(value: Any) -> str:
    return tables.points(value).replace("-", "−") if _number(value) is not None else ""


def _size(value: Any) -> str:
    return format_bytes(value) if _number(value) is not None else ""


def _setting(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else str(value)


def _css_class(outcome: Any) -> str:
    """The CSS class of an outcome."""
    known = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "inconclusive"}
    return known.get(str(outcome), "untested")


# Figures


def _tick(size: float) -> str:
    return format_bytes(size).replace(".0 ", " ") if size else "0"


def _signed(points: float) -> str:
    return f"{points:+.4g}".replace("-", "−") if round(points, 6) else "0"


def _short(name: str) -> str:
    return name.removesuffix(".gguf")


def _arm_css_class(arm: Arm) -> str:
    return "baseline" if arm.kind == "baseline" else _css_class((arm.verdict or {}).get("outcome"))


def _quality(tested: Sequence[Arm], baseline: Arm | None) -> Markup | None:
    """Difference of each candidate from the baseline in points, against its size.

    The whiskers are the bounds of the paired test: a candidate passes if its lower end is above the lower
    edge of the band. Intervals of each accuracy alone would be far wider, because the items are the same.
    """
    shown = _differences(tested)
    if not shown:
        return None
    margin = _margin(tested)
    if baseline and baseline.size > 0:
        point = plots.Point(
            _short(baseline.name), baseline.size, 0, "baseline", joined=baseline.pareto
        )
        shown.append(point)
    return plots.scatter(
        "quality", "Quality against size", shown, _tick, _signed, "size on disk",
        "accuracy against the baseline, points", line=0.0,
        band=(-margin, 0.0) if margin else None,
    )  # fmt: skip


def _differences(tested: Sequence[Arm]) -> list[plots.Point]:
    def in_points(value: Any) -> float | None:
        number = _number(value)
        return None if number is None else 100 * number

    return [plots.Point(_short(arm.name), arm.size, 100 * verdict["difference"], _arm_css_class(arm),
                        in_points(verdict.get("lower")), in_points(verdict.get("upper")), arm.pareto)
            for arm in tested
            if (verdict := arm.verdict) and _number(verdict.get("difference")) is not None
            and arm.size > 0]  # fmt: skip


def _margin(tested: Sequence[Arm]) -> float:
    """Largest margin of the verdicts, in points."""
    return 100 * max((arm.verdict or {}).get("margin") or 0 for arm in tested)


def _forest(tested: Sequence[Arm]) -> Markup | None:
    rows = _differences(tested)
    if not rows or not _margin(tested):
        return None
    return plots.forest("forest", "Difference from the baseline", rows, _margin(tested), _signed)


def _speed(arms: Sequence[Arm]) -> Markup | None:
    shown = [plots.Point(_short(arm.name), arm.size, arm.speed["decode_tps"], _arm_css_class(arm))
             for arm in arms if arm.speed and arm.speed.get("decode_tps") and arm.size > 0]  # fmt: skip
    if not shown:
        return None
    bandwidth = [arm.speed["roofline"]["bandwidth_gbs"] for arm in arms
                 if arm.speed and (arm.speed.get("roofline") or {}).get("bandwidth_gbs")]  # fmt: skip
    limit = max(bandwidth, default=0) * 1e9
    return plots.scatter(
        "speed", "Speed against size", shown, _tick, lambda v: f"{v:.4g}", "size on disk",
        "decoding, tokens per second", curve=(lambda size: limit / size) if limit else None,
        from_zero=True,
    )  # fmt: skip


def _memory(arms: Sequence[Arm]) -> Markup | None:
    rows = []
    for arm in arms:
        memory = arm.memory or {}
        if not memory.get("peak"):
            continue
        anonymous = memory.get("anonymous") or 0
        file = memory["file"] if memory.get("file") is not None else memory["peak"] - anonymous
        marks = tuple((key, memory[key]) for key in ("pss", "smallest") if memory.get(key))
        parts = (("anonymous", anonymous), ("file", max(file, 0)))
        rows.append(plots.Bar(arm.name, parts, format_bytes(memory["peak"]), marks))
    return plots.bars("memory", "Peak memory", rows, _tick) if rows else None


def _latency(arms: Sequence[Arm]) -> Markup | None:
    """Quantiles of the time between two tokens, in milliseconds."""
    rows = []
    for arm in arms:
        speed = arm.speed or {}
        samples = tuple(speed.get("itl_ms") or ())
        if len(samples) > 1:
            cuts = statistics.quantiles(samples, n=100, method="inclusive")
            quantiles = cuts[49], cuts[94], cuts[98]
        elif cells := [cell for cell in speed.get("cells") or () if cell.get("itl")]:
            quantiles = tuple(cells[0]["itl"])
        else:
            continue
        named = zip(("p50", "p95", "p99"), quantiles, strict=True)
        label = " · ".join(f"{name} {rounded(value)}" for name, value in named)
        rows.append(plots.Strip(arm.name, f"{label} ms", samples, quantiles))
    if not rows:
        return None
    return plots.strips("latency", "Time between tokens", rows, lambda v: f"{v:.3g} ms")


def _interval(tag_slice: dict[str, Any], start: float) -> Markup:
    """The small figure in the table row of a slice."""
    if not tag_slice.get("interval"):
        return Markup("")
    low, high = tag_slice["interval"]
    return plots.interval(tag_slice["accuracy"], low, high, tag_slice.get("baseline"), start)


def _texts(arms: Sequence[Arm]) -> dict[str, list[tuple[Arm, dict[str, Any]]]]:
    """name of a text -> (arm, its fidelity on the text)"""
    texts: dict[str, list[tuple[Arm, dict[str, Any]]]] = {}
    for arm in arms:
        for name, fidelity in (arm.fidelity or {}).items():
            texts.setdefault(name, []).append((arm, fidelity))
    return texts


def _floor(floor: dict[str, Any] | None) -> Any:
    """KL divergence of the baseline from itself; the report has a number or an estimate."""
    kl = (floor or {}).get("kl")
    return kl.get("value") if isinstance(kl, dict) else kl
