"""Measurements and verdicts -> tables and a page for people, JSON for programs.

    print(table(["artifact", "size"], [["q4_k_m", "105.5 MB"]]))
    write(release, Path("report"))              # report.html, report.json, report.md
    read(Path("report/report.json"))            # the release again

The tables are aligned Markdown: readable in a terminal, and in a README as they are.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.records import SCHEMA, Arm, Release
from edgeft.stage import human, write_text

JSON = "report.json"
ISA = ("fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
       "asimddp", "i8mm", "sve")  # fmt: skip
"""instructions that kernels of 4 and 8 bits are chosen by"""
ENGINES = ("llama-cpp-python", "onnxruntime", "onnxruntime-genai", "torch", "transformers")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown: the first column to the left, the others to the right."""
    head, *rows = ([_cell(text) for text in row] for row in (head, *rows))
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join(
        [f"{'-' * (widths[0] + 2)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    ) + "|"  # fmt: skip
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def release_text(release: Release) -> str:
    """The decision first, then the arms, for a terminal."""
    ship = f": ship {release.ship}" if release.ship else ""
    notes = [f"  {note}" for note in release.notes]
    return "\n".join(
        [f"{release.outcome}{ship}", f"  {release.reason}", "", arms_table(release.arms), *notes]
    )


def arms_table(arms: Sequence[Arm]) -> str:
    """What was measured of any arm."""
    head = ["model", "accuracy", "size", "peak memory", "prefill t/s", "decode t/s", "lost", "won",
            "difference", "gain left", "verdict"]  # fmt: skip
    rows = [_arm_row(arm) for arm in arms]
    used = [i for i in range(len(head)) if i < 3 or any(row[i] for row in rows)]
    return table([head[i] for i in used], [[row[i] for i in used] for row in rows])


def _arm_row(arm: Arm) -> list[str]:
    speed, memory, verdict, kept = (
        part or {} for part in (arm.speed, arm.memory, arm.verdict, arm.retention)
    )
    return [
        arm.name,
        f"{arm.accuracy:.1%}" if arm.accuracy is not None else "",
        human(arm.size),
        human(memory["peak"]) if memory.get("peak") else "",
        f"{speed['prefill_tps']:.0f}" if speed.get("prefill_tps") else "",
        f"{speed['decode_tps']:.0f}" if speed.get("decode_tps") else "",
        str(verdict.get("lost", "")),
        str(verdict.get("won", "")),
        _difference(verdict) if verdict else "",
        f"{kept['value']:.0%}" if kept.get("value") is not None else "",
        verdict.get("outcome", ""),
    ]


def _difference(verdict: dict[str, Any]) -> str:
    lower = verdict.get("lower")
    bound = f" (≥ {points(lower)})" if lower is not None else ""
    return points(verdict["difference"]) + bound


def points(share: float) -> str:
    return f"{share * 100:+.1f} points"


def machine() -> dict[str, Any]:
    """What must be the same before two figures may be compared."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {
        "cpu": platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
    }
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name == "model name":
                found["cpu"] = value
            elif name in ("flags", "Features"):
                flags = set(value.split())
    found["isa"] = " ".join(name for name in ISA if name in flags)
    with contextlib.suppress(OSError):
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        found["governor"] = governor.read_text().strip()
    for package in ENGINES:
        with contextlib.suppress(PackageNotFoundError):
            found[package.replace("-", "_")] = version(package)
    return found


def write(release: Release, folder: Path) -> Path:
    """report.json, report.md and report.html in `folder`, each whole; returns the page.

    The JSON (SCHEMA.md says what is in it) comes first: hours of measuring outlive whatever keeps
    the others from being made. They show what it says and nothing else.
    """
    from edgeft.report.page import html, markdown

    raw = _plain(release.to_json())
    release = Release.from_json(raw)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(raw, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / JSON, text + "\n")
    write_text(folder / "report.md", markdown(release))
    write_text(folder / "report.html", html(release))
    return folder / "report.html"


def read(file: Path) -> Release:
    """A release from its report.json; InputError for anything else."""
    import jinja2

    from edgeft.report.page import html, markdown

    hint = f"--report of edgeft ab or edgeft search writes {JSON}"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {file}", hint) from None
    except IsADirectoryError:
        raise InputError(f"{file} is a folder", f"name the {JSON} in it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}", hint) from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if type(schema) is not int or schema < 1:
        raise InputError(f"{file} is no report: it has no schema", hint)
    if schema > SCHEMA:
        raise InputError(f"{file} was written by a newer edgeft", "upgrade edgeft")
    wrong = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
             jinja2.TemplateError)  # fmt: skip
    try:
        release = Release.from_json(_plain(raw))
        html(release)  # what the parts hold is seen by making something of them
        markdown(release)
    except wrong as error:
        raise InputError(f"{file} is no report: {_cell(str(error))}", hint) from None
    return release


def _plain(value: Any) -> Any:
    """What JSON and UTF-8 can say: no number that is not finite, no half of a surrogate pair."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
