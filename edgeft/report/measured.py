"""Measurements of `edgeft bench` -> tables for a terminal.

print(bench_text(rows))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeft.files import format_bytes
from edgeft.records import LatencyPoint, Measurement
from edgeft.report.tables import table


def bench_text(rows: Sequence[Measurement]) -> str:
    """An overview, then a table for each kind of measurement that was made."""
    parts = [
        _overview(rows),
        _titled("Against the first, median and 95 % interval", _ratios(rows)),
        _titled("Latency: 50th, 95th and 99th percentile", _grid(rows)),
        _titled("Memory", _memory(rows)),
        _titled("Next tokens against the baseline's, ± one standard error", _fidelity(rows)),
    ]
    return "\n\n".join(part for part in parts if part)


def _titled(title: str, body: str) -> str:
    return f"{title}:\n\n{body}" if body else ""


def _overview(rows: Sequence[Measurement]) -> str:
    head = ["artifact", "size", "load cold", "warm", "TTFT", "prefill t/s", "decode t/s",
            "of the ceiling", "peak memory", "accuracy"]  # fmt: skip
    body = []
    for row in rows:
        speed, memory, score = row.speed, row.memory, row.score
        top = speed.roofline if speed else None
        cold = speed.load_cold_s if speed else None
        body.append([
            row.name,
            format_bytes(row.size),
            f"{cold:.2f} s" if cold is not None else "",
            f"{speed.load_s:.2f} s" if speed else "",
            f"{speed.ttft_s * 1000:.0f} ms" if speed else "",
            f"{speed.prefill_tps:.0f}" if speed else "",
            f"{speed.decode_tps:.0f}" if speed else "",
            f"{top['share']:.0%}" if top else "",
            format_bytes(memory.peak) if memory else "",
            f"{score.accuracy:.1%}" if score else "",
        ])  # fmt: skip
    text = _without_empty_columns(head, body)
    tops = [row.speed.roofline for row in rows if row.speed and row.speed.roofline]
    if tops:
        text += f"\n\nThe ceiling is what {tops[0]['bandwidth_gbs']:.1f} GB/s of reading allow."
    return text


def _ratios(rows: Sequence[Measurement]) -> str:
    body = [
        [row.name, _workload(point), *(_ratio(point, name) for name in ("ttft", "decode", "e2e"))]
        for row in rows
        for point in (row.speed.cells if row.speed else ())
        if point.against
    ]
    return table(["artifact", "use", "TTFT", "time per token", "end to end"], body) if body else ""


def _ratio(point: LatencyPoint, name: str) -> str:
    ratio = point.against[name]
    if not ratio:
        return "too noisy"
    return f"x {ratio['ratio']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _grid(rows: Sequence[Measurement]) -> str:
    body = [
        [
            row.name, _workload(point), _three(point.ttft, 1000), _three(point.itl, 1),
            f"{point.tpot_ms:.1f}", _three(point.e2e, 1000), f"{point.aggregate_tps:.0f}",
            f"{max(point.noise.values()):.0%}", str(point.runs),
        ]
        for row in rows
        for point in (row.speed.cells if row.speed else ())
    ]  # fmt: skip
    head = ["artifact", "use", "TTFT ms", "between tokens ms", "per token ms", "end to end ms",
            "t/s of all", "noise", "runs"]  # fmt: skip
    return table(head, body) if body else ""


def _workload(point: LatencyPoint) -> str:
    clients = f", {point.clients} clients" if point.clients > 1 else ""
    return f"{point.prompt} + {point.new}{clients}"


def _three(values: Sequence[float], factor: float) -> str:
    scaled = [value * factor for value in values]
    return " / ".join(f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in scaled)


def _memory(rows: Sequence[Measurement]) -> str:
    body = []
    for row in rows:
        if used := row.memory:
            small = format_bytes(used.smallest) if used.smallest else ""
            cache = format_bytes(1000 * used.cache_per_token) if used.cache_per_token else ""
            body.append([row.name, *map(format_bytes, (used.peak, used.anonymous, used.file, used.pss)),
                         small, cache])  # fmt: skip
    head = ["artifact", "peak", "anonymous", "of files", "proportional", "smallest limit",
            "cache of 1,000 tokens"]  # fmt: skip
    return _without_empty_columns(head, body)


def _fidelity(rows: Sequence[Measurement]) -> str:
    body = []
    for number, row in enumerate(rows):
        for name, fidelity in row.fidelity.items():
            again = " again, other threads" if number == 0 and not fidelity["bound"] else ""
            body.append([
                row.name + again, name, ("≥ " if fidelity["bound"] else "") + _estimate(fidelity["kl"]),
                f"{fidelity['kl_p99']:.3g}", _percent(fidelity["top1"]),
                f"{fidelity['perplexity']:.4g}", f"{fidelity['perplexity_ratio']:.4f}",
                str(fidelity["tokens"]),
            ])  # fmt: skip
    head = ["artifact", "on", "KL, nats", "99 %", "same top", "perplexity", "ratio", "tokens"]
    return table(head, body) if body else ""


def _estimate(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.3g} ± {estimate['error']:.1g}"


def _percent(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.1%} ± {estimate['error']:.1%}"


def _without_empty_columns(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table without the columns that have no value; "" without rows."""
    if not body:
        return ""
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in body)]
    return table([head[i] for i in used], [[row[i] for i in used] for row in body])
