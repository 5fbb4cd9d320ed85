"""One GGUF file -> edgeft serve beside llama-cpp-python's server and llama-server, in one run.

    python -m edgeft.benchmarks.studies.servers q4_k_m.gguf --threads 2

llama-cpp-python's server needs its own extra: pip install 'llama-cpp-python[server]'. llama-server and
llama-bench are built from the same llama.cpp, vendor/llama.cpp in the source package of llama-cpp-python (`pip
download --no-deps --no-binary :all: llama-cpp-python`): cmake -B build -DLLAMA_OPENSSL=OFF
-DLLAMA_USE_PREBUILT_UI=OFF; cmake --build build --target llama-server llama-bench. All servers run at
once and are idle while another one answers; the rounds alternate. Each client sends one streamed
completion with a prompt of its own. Throughput: all generated tokens divided by the seconds from the
first request to the last token, prompts included. TTFT: from a client's request to its first text. One
pass over the weights decodes a token for each running answer: clients share passes where a server
batches, and wait for each other where it does not.

`loop` is llama_decode alone, one token after the other, with nothing sampled or sent, as llama-bench
measures it; --llama-bench runs that program instead. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeft import machine
from edgeft.benchmarks.performance.http import HTTPServer, free_port
from edgeft.benchmarks.performance.process import WORDS
from edgeft.errors import EdgeftError
from edgeft.formats import format_of
from edgeft.report import tables

EDGEFT: dict[str, list[str]] = {
    "edgeft": [],
    "edgeft --kv-type q8_0-f16": ["--kv-type", "q8_0-f16"],
    "edgeft --no-batch-invariant": ["--no-batch-invariant"],
}
"""name of a server -> its additional options"""
START_TIMEOUT_S = 120.0
"""within which a server must answer its first request"""


@dataclass(frozen=True)
class Options:
    artifact: Path
    threads: int
    clients: tuple[int, ...] = (1, 2, 4, 8)
    tokens: int = 64
    """of each answer"""
    prompt: int = 48
    """words of each prompt"""
    rounds: int = 5
    context: int = 1024
    """tokens of each conversation"""
    llama_server: str | None = None
    llama_bench: str | None = None
    """paths of llama.cpp's programs"""


@dataclass
class Reply:
    """What one client received, in seconds since its request."""

    status: int
    times: list[float] = field(default_factory=list)
    """of each line of the stream"""
    lines: list[bytes] = field(default_factory=list)
    end: float = 0.0

    def texts(self) -> list[float]:
        """Times of the lines that carry text."""
        choices = [json.loads(line[6:])["choices"] for line in self.lines]
        return [at for at, one in zip(self.times, choices, strict=True) if one and one[0]["text"]]

    def tokens(self, most: int) -> int:
        """Tokens of the answer: `most` if it was cut off there, else its lines that carry text.

        A line may carry no text or that of several tokens, so lines alone cannot be counted.
        """
        ends = [choice["finish_reason"] for line in self.lines
                for choice in json.loads(line[6:])["choices"]]  # fmt: skip
        return most if "length" in ends else len(self.texts())


@dataclass(frozen=True)
class Round:
    tps: float
    """generated tokens per second, of all clients together"""
    ttft: tuple[float, ...]
    decode: float
    """tokens per second after the first, of the median client"""


def commands(options: Options, ports: dict[str, int]) -> dict[str, list[str]]:
    """name of a server -> the command that starts it."""
    path, threads = str(options.artifact), str(options.threads)
    most = max(options.clients)
    servers = {
        name: [
            sys.executable, "-P", "-m", "edgeft", "serve", path, "--port", str(ports[name]),
            "--threads", threads, "--slots", str(most), "--context", str(options.context),
            "--quiet", *more,
        ]
        for name, more in EDGEFT.items()
    }  # fmt: skip
    servers |= {
        "llama-cpp-python": [
            sys.executable, "-P", "-m", "llama_cpp.server", "--model", path,
            "--port", str(ports["llama-cpp-python"]), "--n_threads", threads,
            "--n_threads_batch", threads, "--n_ctx", str(options.context),
            # By default a new request ends the previous one.
            "--interrupt_requests", "false", "--verbose", "false",
        ],
    }  # fmt: skip
    if options.llama_server:
        servers["llama-server"] = [
            options.llama_server, "-m", path, "--port", str(ports["llama-server"]), "-t", threads,
            "-np", str(most), "-c", str(options.context * most), "--no-webui",
        ]  # fmt: skip
    return servers


async def ask(port: int, body: dict[str, Any], leave: float | None = None) -> Reply:
    """One streamed completion; the connection is closed after `leave` seconds, if given."""
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + data)
        first = await reader.readline()
        reply = Reply(int(first.split()[1]) if first else 0)
        while line := await reader.readline():
            seconds = time.perf_counter() - started
            if line.startswith(b"data: {"):
                reply.times.append(seconds)
                reply.lines.append(line)
            if leave is not None and seconds > leave:
                break
        reply.end = time.perf_counter() - started
        return reply
    finally:
        writer.close()


def body(options: Options, seed: int) -> dict[str, Any]:
    """A request whose prompt begins differently for each seed."""
    vocabulary = WORDS.split()
    words = [vocabulary[(seed * 7 + i) % len(vocabulary)] for i in range(options.prompt)]
    return {
        "prompt": f"{seed} {' '.join(words)}",
        "max_tokens": options.tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }


async def one_round(options: Options, port: int, clients: int, seed: int) -> Round:
    bodies = [body(options, seed + i) for i in range(clients)]
    started = time.perf_counter()
    replies = await asyncio.gather(*(ask(port, one) for one in bodies))
    seconds = time.perf_counter() - started
    if any(reply.status != 200 for reply in replies):
        raise EdgeftError(f"requests failed: {[reply.status for reply in replies]}")
    # Parsed only now, after the clock has stopped.
    times = [reply.texts() for reply in replies]
    counts = [reply.tokens(options.tokens) for reply in replies]
    if min(counts) < 2 or not all(times):
        raise EdgeftError(f"the answers are too short to be timed: {counts} tokens")
    rates = [(n - 1) / (t[-1] - t[0]) for n, t in zip(counts, times, strict=True)]
    return Round(sum(counts) / seconds, tuple(t[0] for t in times), statistics.median(rates))


def loop(options: Options) -> float:
    """Tokens per second of llama_decode alone, in a process of its own."""
    if options.llama_bench:
        return llama_bench(options, options.llama_bench)
    code = (
        "import sys, time, llama_cpp as l\n"
        "path, threads, prompt, tokens = sys.argv[1], *map(int, sys.argv[2:])\n"
        "cb = l.llama_log_callback(lambda *a: None); l.llama_log_set(cb, None)\n"
        "l.llama_backend_init()\n"
        "m = l.llama_model_load_from_file(path.encode(), l.llama_model_default_params())\n"
        "p = l.llama_context_default_params(); p.n_ctx = prompt + tokens + 8\n"
        "p.n_threads = p.n_threads_batch = threads\n"
        "c = l.llama_init_from_model(m, p)\n"
        "ids = (l.llama_token * prompt)(*range(100, 100 + prompt))\n"
        "l.llama_decode(c, l.llama_batch_get_one(ids, prompt))\n"
        "one = (l.llama_token * 1)(100)\n"
        "size = l.llama_vocab_n_tokens(l.llama_model_get_vocab(m))\n"
        "l.llama_decode(c, l.llama_batch_get_one(one, 1))\n"
        "start = time.perf_counter()\n"
        "for i in range(tokens):\n"
        "    one[0] = i * 7919 % size\n"
        "    l.llama_decode(c, l.llama_batch_get_one(one, 1))\n"
        "print(tokens / (time.perf_counter() - start))\n"
    )
    numbers = map(str, (options.threads, 64, options.tokens))
    command = [sys.executable, "-P", "-c", code, str(options.artifact), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeftError(f"the loop failed: {done.stderr.strip()[-200:]}")
    return float(done.stdout)


def llama_bench(options: Options, program: str) -> float:
    # At the depth of the prompts, because attention takes longer at a greater depth.
    command = [program, "-m", str(options.artifact), "-t", str(options.threads), "-p", "0",
               "-n", str(options.tokens), "-d", "64", "-r", "1", "-o", "json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return float(json.loads(done.stdout)[-1]["avg_ts"])
    except (ValueError, LookupError):
        raise EdgeftError(f"llama-bench failed: {done.stderr.strip()[-200:]}") from None


def run(options: Options) -> dict[str, Any]:
    """{loop: tokens per second of each round, servers: name -> clients -> rounds}."""
    ports = {name: free_port() for name in (*EDGEFT, "llama-cpp-python", "llama-server")}
    rounds: dict[str, dict[int, list[Round]]] = {}
    loops = []
    with contextlib.ExitStack() as stack:
        for name, command in commands(options, ports).items():
            server = stack.enter_context(HTTPServer(name, command, ports[name]))
            server.wait_ready(timeout_s=START_TIMEOUT_S)
            rounds[name] = {count: [] for count in options.clients}
            asyncio.run(one_round(options, ports[name], 1, 0))
        seed = 100
        for _ in range(options.rounds):
            loops.append(loop(options))
            for count in options.clients:
                for name in rounds:
                    one = asyncio.run(one_round(options, ports[name], count, seed))
                    rounds[name][count].append(one)
                    seed += count
    return {"loop": loops, "servers": rounds}


def table(options: Options, results: dict[str, Any]) -> str:
    head = ["server", "clients", "tokens/s", "of llama-cpp-python's", "TTFT p50", "p95", "of loop"]
    rows = []
    base = statistics.median(results["loop"])
    for name, counts in results["servers"].items():
        for count, rounds in counts.items():
            tps = [one.tps for one in rounds]
            others = [one.tps for one in results["servers"]["llama-cpp-python"][count]]
            ratios = [a / b for a, b in zip(tps, others, strict=True)]
            first = sorted(value for one in rounds for value in one.ttft)
            decode = statistics.median(one.decode for one in rounds)
            rows.append([
                name, str(count), spread(tps), spread(ratios, 2),
                f"{quantile(first, 0.5):.3f} s", f"{quantile(first, 0.95):.3f} s",
                f"{decode / base:.2f}" if count == 1 else "",
            ])  # fmt: skip
    rows.append(["llama_decode alone", "1", spread(results["loop"]), "", "", "", "1"])
    return tables.table(head, rows)


def spread(values: Sequence[float], digits: int = 0) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({low}-{high})"


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that at least this share of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--clients", type=lambda text: tuple(map(int, text.split(","))), default=Options.clients
    )
    parser.add_argument("--tokens", type=int, default=Options.tokens, help="of each answer")
    parser.add_argument("--prompt", type=int, default=Options.prompt, help="words of each prompt")
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--context", type=int, default=Options.context)
    parser.add_argument(
        "--llama-server", metavar="PROGRAM", help="llama.cpp's own, where it is built"
    )
    parser.add_argument("--llama-bench", metavar="PROGRAM", help="likewise, instead of the loop")
    chosen = vars(parser.parse_args(arguments))
    options = Options(**chosen)
    try:
        format_of(options.artifact)
        results = run(options)
        print(machine.describe_machine())
        print(table(options, results))
        servers = {
            name: {str(count): list(map(asdict, rounds)) for count, rounds in counts.items()}
            for name, counts in results["servers"].items()
        }
        line = {"loop": results["loop"], "servers": servers}
    except EdgeftError as error:
        sys.exit(str(error))
    how = {key: str(value) if isinstance(value, Path) else value for key, value in chosen.items()}
    print(json.dumps({"machine": machine.describe_machine(), "options": how} | line))


if __name__ == "__main__":
    main()
