"""A release -> a page that needs nothing but itself, and a note in Markdown.

    html(release), markdown(release)

What models and items say is hostile text: Jinja escapes all of it, the page has no script, and its
policy lets the browser load nothing. Whatever was not measured is left out.
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
    candidates = [arm for arm in release.arms if arm.kind == "candidate"]
    baseline = next((arm for arm in release.arms if arm.kind == "baseline"), None)
    tested = [arm for arm in candidates if arm.verdict]
    shipped = next((arm for arm in tested if arm.name == release.ship), None)
    subject = shipped or next(iter(tested), None)
    others = [arm for arm in (*candidates, *release.arms) if arm is not subject]
    ordered = list(dict.fromkeys(map(id, [*filter(None, [subject]), *others])))
    by_id = {id(arm): arm for arm in release.arms}
    return _environment().get_template("page.html.j2").render(
        release=release, baseline=baseline, subject=subject, tested=tested,
        shown_first=[by_id[key] for key in ordered],
        quality_plot=_quality(tested, baseline), speed_plot=_speed(release.arms),
        memory_plot=_memory(release.arms), latency_plot=_latency(release.arms),
        forest_plot=_forest(tested), texts=_texts(release.arms), floor_kl=_floor(release.floor),
    )  # fmt: skip


def markdown(release: Release) -> str:
    """For a release note: the decision, the table, why, how to do it again."""
    ship = f": ship `{release.ship}`" if release.ship else ""
    parts = [f"**{release.outcome}{ship}**", tables.arms_table(release.arms), release.reason]
    for arm in release.arms:
        if arm.name == release.ship and arm.kind == "candidate":
            parts.append(f"`{arm.name}`: {format_bytes(arm.size)}, identity `{arm.identity}`")
    parts += ["\n".join(f"- {note}" for note in release.notes)] if release.notes else []
    if release.commands:
        parts.append("\n".join(["To reproduce:", "", "```sh", *release.commands, "```"]))
    made = f"edgeft {release.edgeft}, {release.created}, {release.machine.get('cpu', '')}"
    parts.append(f"Measured with {made.rstrip(', ')}.")
    return "\n\n".join(parts) + "\n"


def difference(before: str, after: str) -> tuple[list[Segment], list[Segment]]:
    """Both texts in pieces, with the words that only one of them has marked.

    In long texts a word that is everywhere begins no match: a reply that repeats itself to its end
    would take minutes.
    """
    one, other = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (before, after))
    left: list[Segment] = []
    right: list[Segment] = []
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=True)
    for kind, a, b, c, d in matcher.get_opcodes():
        if a < b:
            left.append((kind != "equal", "".join(one[a:b])))
        if c < d:
            right.append((kind != "equal", "".join(other[c:d])))
    return left, right


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.ChainableUndefined,
    )  # fmt: skip
    made.filters |= {
        "percent": percent, "points": _points, "size": _size, "rounded": rounded,
        "seconds": seconds, "difference": lambda pair: difference(*pair),
        "look": _look, "setting": _setting,
    }  # fmt: skip
    made.globals |= {"interval": _interval}
    return made


# Filters: anything that is no number gives "", so that the template need not ask.


def _number(value: Any) -> float | None:
    """None for what is no finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def percent(value: Any, digits: int = 1) -> str:
    """At 100 % and 0 % without digits, and never rounded to either."""
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
    """`digits` of them, without an exponent where that is readable: 0.00123, 61.2, 1,234."""
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


def _look(outcome: Any) -> str:
    """The class of an outcome."""
    known = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "inconclusive"}
    return known.get(str(outcome), "untested")


# Figures


def _tick(size: float) -> str:
    return format_bytes(size).replace(".0 ", " ") if size else "0"


def _signed(points: float) -> str:
    return f"{points:+.4g}".replace("-", "−") if round(points, 6) else "0"


def _short(name: str) -> str:
    return name.removesuffix(".gguf")


def _arm_look(arm: Arm) -> str:
    return "baseline" if arm.kind == "baseline" else _look((arm.verdict or {}).get("outcome"))


def _quality(tested: Sequence[Arm], baseline: Arm | None) -> Markup | None:
    """By how many points each differs from the baseline: what the test is about.

    The whiskers are the paired test's bounds: a candidate passes where its lower end is above the
    band's. Intervals of each accuracy alone would be far wider, as the items are the same.
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
    def hundredfold(value: Any) -> float | None:
        number = _number(value)
        return None if number is None else 100 * number

    return [plots.Point(_short(arm.name), arm.size, 100 * own["difference"], _arm_look(arm),
                        hundredfold(own.get("lower")), hundredfold(own.get("upper")), arm.pareto)
            for arm in tested
            if (own := arm.verdict) and _number(own.get("difference")) is not None
            and arm.size > 0]  # fmt: skip


def _margin(tested: Sequence[Arm]) -> float:
    """In points."""
    return 100 * max((arm.verdict or {}).get("margin") or 0 for arm in tested)


def _forest(tested: Sequence[Arm]) -> Markup | None:
    rows = _differences(tested)
    if not rows or not _margin(tested):
        return None
    return plots.forest("forest", "Difference from the baseline", rows, _margin(tested), _signed)


def _speed(arms: Sequence[Arm]) -> Markup | None:
    shown = [plots.Point(_short(arm.name), arm.size, arm.speed["decode_tps"], _arm_look(arm))
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
        own = arm.memory or {}
        if not own.get("peak"):
            continue
        anonymous = own.get("anonymous") or 0
        file = own["file"] if own.get("file") is not None else own["peak"] - anonymous
        marks = tuple((key, own[key]) for key in ("pss", "smallest") if own.get(key))
        parts = (("anonymous", anonymous), ("file", max(file, 0)))
        rows.append(plots.Bar(arm.name, parts, format_bytes(own["peak"]), marks))
    return plots.bars("memory", "Peak memory", rows, _tick) if rows else None


def _latency(arms: Sequence[Arm]) -> Markup | None:
    """Of the time between two tokens, in milliseconds."""
    rows = []
    for arm in arms:
        own = arm.speed or {}
        samples = tuple(own.get("itl_ms") or ())
        if len(samples) > 1:
            cuts = statistics.quantiles(samples, n=100, method="inclusive")
            known = cuts[49], cuts[94], cuts[98]
        elif cells := [cell for cell in own.get("cells") or () if cell.get("itl")]:
            known = tuple(cells[0]["itl"])
        else:
            continue
        named = zip(("p50", "p95", "p99"), known, strict=True)
        says = " · ".join(f"{name} {rounded(value)}" for name, value in named)
        rows.append(plots.Strip(arm.name, f"{says} ms", samples, known))
    if not rows:
        return None
    return plots.strips("latency", "Time between tokens", rows, lambda v: f"{v:.3g} ms")


def _interval(one: dict[str, Any], start: float) -> Markup:
    """The cell of a slice."""
    if not one.get("interval"):
        return Markup("")
    low, high = one["interval"]
    return plots.interval(one["accuracy"], low, high, one.get("baseline"), start)


def _texts(arms: Sequence[Arm]) -> dict[str, list[tuple[Arm, dict[str, Any]]]]:
    """name of a text -> (arm, how far it is from the baseline there)"""
    found: dict[str, list[tuple[Arm, dict[str, Any]]]] = {}
    for arm in arms:
        for name, one in (arm.fidelity or {}).items():
            found.setdefault(name, []).append((arm, one))
    return found


def _floor(floor: dict[str, Any] | None) -> Any:
    """KL of the baseline from itself: a number, or an estimate of one."""
    kl = (floor or {}).get("kl")
    return kl.get("value") if isinstance(kl, dict) else kl
