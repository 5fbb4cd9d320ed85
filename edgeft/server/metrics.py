"""Takes the server's counts, gives Prometheus' text format, and a line per request on stderr."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from edgeft.machine import kilobytes
from edgeft.progress import say
from edgeft.server.engine import Engine
from edgeft.server.keys import Keys
from edgeft.web.guard import App, Message, Receive, Scope, Send

FIRST_TOKEN_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""upper bounds of the histogram of the time to the first token"""


class Metrics:
    def __init__(self, keys: Keys | None = None) -> None:
        self.keys = keys or Keys()
        self.statuses: Counter[int] = Counter()
        """HTTP status -> requests"""
        self._first_token_counts = [0] * (len(FIRST_TOKEN_BOUNDS_S) + 1)
        self._first_token_sum_s = 0.0

    def first_token(self, seconds: float) -> None:
        self._first_token_counts[bisect_left(FIRST_TOKEN_BOUNDS_S, seconds)] += 1
        self._first_token_sum_s += seconds

    def text(self, engines: Iterable[Engine]) -> str:
        lines: list[str] = []

        def family(
            name: str, metric_type: str, help_: str, values: Iterable[tuple[str, float]]
        ) -> None:
            lines.extend([f"# HELP edgeft_{name} {help_}", f"# TYPE edgeft_{name} {metric_type}"])
            lines.extend(f"edgeft_{name}{labels} {value:.15g}" for labels, value in values)

        status = [(f'{{status="{code}"}}', n) for code, n in sorted(self.statuses.items())]
        family("http_requests_total", "counter", "Answered requests.", status)
        counts = [(f'{{model="{_escaped(e.name)}"}}', e.counts) for e in engines]
        for name, metric_type, help_ in (
            ("requests", "counter", "Finished answers."),
            ("cancelled", "counter", "Answers that nobody waited for any more."),
            ("prompt_tokens", "counter", "Tokens of prompts."),
            ("reused_tokens", "counter", "Tokens of prompts that were in the cache."),
            ("new_tokens", "counter", "Generated tokens."),
            ("drafted_tokens", "counter", "Tokens that speculation guessed."),
            ("accepted_tokens", "counter", "Guessed tokens that were right."),
            ("seconds", "counter", "Time spent computing."),
            ("running", "gauge", "Answers that have a slot."),
            ("waiting", "gauge", "Answers that wait for a slot."),
            ("slots", "gauge", "Answers that can run at a time."),
        ):
            values = [(label, float(getattr(count, name))) for label, count in counts]
            family(
                f"{name}_total" if metric_type == "counter" else name, metric_type, help_, values
            )
        uses = [(f'{{key="{_escaped(name)}"}}', use) for name, use in self.keys.uses.items()]
        for name, help_ in (
            ("requests", "Requests with this key."),
            ("limited", "Requests that a limit of this key refused."),
            ("prompt_tokens", "Tokens of prompts sent with this key."),
            ("new_tokens", "Tokens generated for this key."),
        ):
            by_key = [(label, float(getattr(use, name))) for label, use in uses]
            family(f"key_{name}_total", "counter", help_, by_key)
        family("resident_bytes", "gauge", "Memory of the process.", [("", memory())])
        name, total = "edgeft_first_token_seconds", 0
        lines.extend([f"# HELP {name} Time to the first token.", f"# TYPE {name} histogram"])
        for bound, count in zip(
            [*map(str, FIRST_TOKEN_BOUNDS_S), "+Inf"], self._first_token_counts, strict=True
        ):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        lines.extend([f"{name}_sum {self._first_token_sum_s:.6f}", f"{name}_count {total}", ""])
        return "\n".join(lines)


class Log:
    """Counts every request and prints one line about it, which holds no text of a prompt."""

    def __init__(self, app: App, metrics: Metrics, quiet: bool = False) -> None:
        self.app, self.metrics, self.quiet = app, metrics, quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.metrics.statuses[status] += 1
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            tokens, key = scope.get("edgeft.tokens", ()), scope.get("edgeft.key", "")
            if tokens and key:
                self.metrics.keys.add_tokens(key, *tokens)
            if not self.quiet:
                seconds = time.perf_counter() - started
                # Printable, so that a path cannot forge lines of the log.
                path = ascii(scope["path"])[1:-1][:200]
                more = f", {tokens[0]} + {tokens[1]} tokens" if tokens else ""
                more += f", key {key}" if key else ""
                say(f"{scope['method'][:16]} {path} {status} {seconds * 1000:.0f} ms{more}")


def memory() -> int:
    """Resident memory of this process in bytes, 0 where the system has no /proc."""
    return kilobytes("/proc/self/status").get("VmRSS", 0)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
