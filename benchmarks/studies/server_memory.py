"""One GGUF file -> the resident memory of edgeft serve and llama-server, at the same context and slots.

    python -m edgeft.benchmarks.studies.server_memory q4_0.gguf --llama-server PATH --threads 2

One server runs at a time. Its memory is read after the start, and after each round of requests: as many at once
as there are slots, with longer and longer prompts, the last of which fill nearly the whole context. The peak
is that of the whole run (VmHWM of proc_pid_status(5)), mapped pages of the file included. Ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import machine
from edgeft.benchmarks.performance.http import HTTPServer, free_port
from edgeft.benchmarks.studies import servers
from edgeft.errors import EdgeftError
from edgeft.formats import format_of
from edgeft.report import tables

EDGEFT: dict[str, list[str]] = {
    "edgeft": [],
    "edgeft --kv-type q8_0-f16": ["--kv-type", "q8_0-f16"],
    "edgeft --kv-type q8_0": ["--kv-type", "q8_0"],
    "edgeft --max-memory 700M": ["--max-memory", "700M"],
}
"""name of a server -> its additional options; the last is the one for a device of 1 GB"""
LLAMA_SERVER: dict[str, list[str]] = {
    "llama-server": ["--cache-ram", "0"],
    "llama-server, prompt cache": [],
    "llama-server q8_0": ["--cache-ram", "0", "-ctk", "q8_0", "-ctv", "q8_0"],
}
"""likewise; by default llama-server keeps earlier prompts in up to 8 GiB of memory"""
ANSWER_TOKENS = 8
START_TIMEOUT_S = 120.0
PROMPT_TOKENS = (60, 600)
"""of the first rounds; the prompts of the last one fill the context"""


@dataclass(frozen=True)
class Options:
    artifact: Path
    threads: int
    slots: int = 4
    context: int = 4096
    """tokens of each slot"""
    llama_server: str | None = None

    @property
    def prompts(self) -> list[int]:
        """Tokens of the prompts of each round, about."""
        longest = int(0.95 * self.context) - ANSWER_TOKENS
        return [min(tokens, longest) for tokens in (*PROMPT_TOKENS, longest)]


def commands(options: Options, port: int) -> dict[str, list[str]]:
    """name of a server -> the command that starts it."""
    path, threads, slots = str(options.artifact), str(options.threads), str(options.slots)
    edgeft = [sys.executable, "-P", "-m", "edgeft", "serve", path, "--port", str(port), "--threads",
              threads, "--slots", slots, "--context", str(options.context), "--quiet"]  # fmt: skip
    made = {name: [*edgeft, *more] for name, more in EDGEFT.items()}
    if options.llama_server:
        other = [options.llama_server, "-m", path, "--port", str(port), "-t", threads, "-np", slots,
                 "-c", str(options.context * options.slots), "--no-ui"]  # fmt: skip
        made |= {name: [*other, *more] for name, more in LLAMA_SERVER.items()}
    return made


def measure(options: Options, name: str, command: list[str], port: int) -> dict[str, Any]:
    """Bytes after the start and after each round, and at the peak."""
    with HTTPServer(name, command, port) as server:
        server.wait_ready(timeout_s=START_TIMEOUT_S)
        status = f"/proc/{server.process.pid}/status"
        rounds = [machine.kilobytes(status)["VmRSS"]]
        per_word = _tokens_per_word(server, options)
        for number, tokens in enumerate(options.prompts):
            one = servers.Options(
                options.artifact, options.threads, tokens=ANSWER_TOKENS,
                prompt=int(tokens / per_word),
            )  # fmt: skip
            asyncio.run(servers.one_round(one, port, options.slots, 100 * number))
            rounds.append(machine.kilobytes(status)["VmRSS"])
        facts = machine.kilobytes(status)
        return {"rounds": rounds, "peak": facts["VmHWM"], "anonymous": facts["RssAnon"]}


def _tokens_per_word(server: HTTPServer, options: Options) -> float:
    """Of the words of the prompts in the vocabulary of the model."""
    words = 100
    one = servers.Options(options.artifact, options.threads, prompt=words)
    data = json.dumps({"content": servers.body(one, 0)["prompt"]})
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", "/tokenize", data, {"content-type": "application/json"})
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    return len(answer["tokens"]) / words


def run(options: Options) -> dict[str, dict[str, Any]]:
    """name of a server -> what `measure` gives."""
    results = {}
    for name in commands(options, 0):
        port = free_port()
        results[name] = measure(options, name, commands(options, port)[name], port)
    return results


def table(options: Options, results: dict[str, dict[str, Any]]) -> str:
    """In MiB."""
    rounds = [f"{options.slots} x {tokens} tokens" for tokens in options.prompts]
    head = ["MiB", "start", *rounds, "peak", "anonymous", "peak of llama-server's"]
    base = results.get("llama-server", {}).get("peak")
    rows = [
        [
            name,
            *(f"{value / 2**20:.0f}" for value in (*one["rounds"], one["peak"], one["anonymous"])),
            f"{one['peak'] / base:.2f}" if base else "",
        ]
        for name, one in results.items()
    ]
    return tables.table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--slots", type=int, default=Options.slots)
    parser.add_argument("--context", type=int, default=Options.context, help="of each slot")
    parser.add_argument("--llama-server", metavar="PROGRAM")
    options = Options(**vars(parser.parse_args(arguments)))
    try:
        format_of(options.artifact)
        results = run(options)
    except EdgeftError as error:
        sys.exit(str(error))
    print(machine.describe_machine())
    print(table(options, results))
    print(json.dumps({"machine": machine.describe_machine(), "servers": results}))


if __name__ == "__main__":
    main()
