"""A model behind edgeft serve and 16 badly behaved clients -> crashes, stuck slots and memory drift.

    python -m edgeft.benchmarks.studies.soak q4_k_m.gguf --seconds 600

A quarter of the requests leave in the middle; some are read slowly, some are too large or not JSON; the
rest is read to its end. Before, each slot has an answer that fills its context, so that the cache of keys and
values has its full size. Reported are: crashes (the process is gone, or an answer is 5xx); slots that are
still taken after all clients have left; the drift of the resident memory between the second and the last
quarter of the samples; and how soon a slot is free after its client left, which is the time until
/metrics counts one more cancelled answer, asked for by one client at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft import machine
from edgeft.benchmarks.performance.http import HTTPServer, free_port
from edgeft.benchmarks.studies.servers import START_TIMEOUT_S, ask, quantile
from edgeft.errors import EdgeftError
from edgeft.formats import format_of

CLIENTS, SLOTS, QUEUE = 16, 4, 32
CONTEXT = 1024
"""tokens of a slot"""
SENTENCE = "tell me more about it, please. "
"""of which the prompts consist; 8 tokens, or 31 bytes"""
LEAVING, SLOW, WRONG = 0.25, 0.1, 0.1
"""shares of the requests"""
SAMPLE_INTERVAL_S = 1.0
"""between two samples of the memory"""


def run(artifact: Path, threads: int, seconds: float) -> dict[str, Any]:
    """Start a server, let the clients run for so many seconds, print and return the figures."""
    port = free_port()
    command = [
        sys.executable, "-P", "-m", "edgeft", "serve", str(artifact), "--port", str(port), "--quiet",
        "--threads", str(threads), "--slots", str(SLOTS), "--queue", str(QUEUE),
        "--context", str(CONTEXT),
    ]  # fmt: skip
    with HTTPServer("edgeft", command, port) as server:
        server.wait_ready(timeout_s=START_TIMEOUT_S)
        soaked = _Soak(port, seconds)
        asyncio.run(soaked.run())
        alive = server.process.poll() is None
    values = soaked.memory
    quarter = max(1, len(values) // 4)
    # The first quarter is left out: its answers fill the caches.
    early = statistics.median(values[quarter : 2 * quarter] or values)
    late = statistics.median(values[-quarter:])
    freed = sorted(soaked.freed)
    result = {
        "seconds": seconds,
        "requests": sum(soaked.statuses.values()),
        "statuses": {str(key): count for key, count in sorted(soaked.statuses.items())},
        "left": len(freed),
        "crashes": int(not alive) + sum(n for key, n in soaked.statuses.items() if key >= 500),
        "stuck": soaked.stuck,
        "memory": [early, late],
        "drift": late / early - 1,
        "freed_p95": quantile(freed, 0.95) if freed else None,
        "freed_max": freed[-1] if freed else None,
    }
    print("\n".join(f"{name}: {value}" for name, value in result.items()))
    return result


class _Soak:
    """The clients and what they see."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.until = time.perf_counter() + seconds
        self.statuses: Counter[int] = Counter()
        """HTTP status -> answers; 0 = closed without one"""
        self.memory: list[int] = []
        self.freed: list[float] = []
        self.stuck = 0
        self._leaving = asyncio.Lock()

    async def run(self) -> None:
        await self._fill()
        watching = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        until = time.perf_counter() + 10
        while (await self._health())["running"] and time.perf_counter() < until:
            await asyncio.sleep(0.05)
        self.stuck = (await self._health())["running"]

    async def _fill(self) -> None:
        """Let the cache grow to its full size: an answer in each slot whose tokens fill its context."""
        prompt = SENTENCE * 25
        bodies = [
            {
                "prompt": f"{number} {prompt}",
                "max_tokens": CONTEXT,
                "ignore_eos": True,
                "stream": True,
            }
            for number in range(SLOTS)
        ]
        await asyncio.gather(*(ask(self.port, body) for body in bodies))

    async def _client(self, number: int) -> None:
        draw = random.Random(number)
        count = 0
        while time.perf_counter() < self.until:
            count += 1
            behaviour = draw.random()
            body = {
                "prompt": f"{number} {count} " + SENTENCE * draw.randint(1, 20),
                "max_tokens": draw.randint(8, 96),
                "temperature": draw.choice([0, 1.0]),
                "stream": True,
                "ignore_eos": True,
            }
            if behaviour < LEAVING:
                await self._leave(body)
            elif behaviour < LEAVING + SLOW:
                await self._read_slowly(body, draw.uniform(0.02, 0.2))
            elif behaviour < LEAVING + SLOW + WRONG:
                await self._send_wrong(draw)
            else:
                self.statuses[(await ask(self.port, body)).status] += 1
            await asyncio.sleep(draw.uniform(0, 0.1))

    async def _leave(self, body: dict[str, Any]) -> None:
        """Close after the first tokens and time until the slot is free."""
        reader, writer = await self._open(json.dumps(body | {"max_tokens": 900}).encode())
        status = await reader.readline()
        self.statuses[int(status.split()[1]) if status else 0] += 1
        for _ in range(12):
            await reader.readline()
        if status.split()[1:2] != [b"200"]:
            writer.close()
            return
        async with self._leaving:
            before = await self._metric("cancelled_total")
            left = time.perf_counter()
            writer.close()
            while await self._metric("cancelled_total") <= before:
                if time.perf_counter() - left > 10:
                    break
                await asyncio.sleep(0.005)
            self.freed.append(time.perf_counter() - left)

    async def _read_slowly(self, body: dict[str, Any], pause: float) -> None:
        reader, writer = await self._open(json.dumps(body).encode())
        try:
            status = await reader.readline()
            self.statuses[int(status.split()[1]) if status else 0] += 1
            while await reader.read(256):
                await asyncio.sleep(pause)
        finally:
            writer.close()

    async def _send_wrong(self, draw: random.Random) -> None:
        data = draw.choice([
            b"{", b"\xff\xfe", b'{"prompt": 3}', b'{"prompt": "' + b"x" * 1_200_000 + b'"}',
            b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "max_tokens": -1}',
            json.dumps({"prompt": "many words " * 3000}).encode(),
        ])  # fmt: skip
        with contextlib.suppress(ConnectionError):
            reader, writer = await self._open(data)
            status = await reader.readline()
            self.statuses[int(status.split()[1]) if status else 0] += 1
            writer.close()

    async def _open(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        return reader, writer

    async def _get(self, path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return answer.partition(b"\r\n\r\n")[2]

    async def _health(self) -> dict[str, Any]:
        health: dict[str, Any] = json.loads(await self._get("/health"))
        return health

    async def _metric(self, name: str) -> float:
        text = (await self._get("/metrics")).decode()
        line = next(line for line in text.splitlines() if line.startswith(f"edgeft_{name}{{"))
        return float(line.rsplit(" ", 1)[1])

    async def _watch(self) -> None:
        while True:
            self.memory.append((await self._health())["memory"])
            await asyncio.sleep(SAMPLE_INTERVAL_S)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args(arguments)
    try:
        format_of(options.artifact)
        result = run(options.artifact, options.threads, options.seconds)
    except EdgeftError as error:
        sys.exit(str(error))
    how = {"artifact": str(options.artifact), "threads": options.threads}
    print(json.dumps({"machine": machine.describe_machine(), "options": how} | result))


if __name__ == "__main__":
    main()
