"""One artifact in a process of its own -> load time, and the times of each workload's tokens.

    with RuntimeProcess(Path("q4_k_m.gguf"), threads=2, context=400) as model:
        model.loaded()                                                   # seconds
        model.run(Workload(prompt=256, new=64, clients=2), number=1).ttft     # two, in seconds

Several processes can be open and take turns: only the one that runs a workload uses the processor. Every
run has its own prompts, so no cache of an earlier run helps. This file is also the program of that
process (`python -m edgeft.benchmarks.performance.process`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeft.errors import EdgeftError
from edgeft.formats import format_of, load
from edgeft.records import Limits, Message
from edgeft.runtimes.protocol import Runtime, open_runtime

WORDS = "the cold river carried small boats past old houses while two children counted them "


@dataclass(frozen=True)
class Workload:
    """Prompts of one length that several clients send at the same moment."""

    prompt: int = 256
    """tokens of each prompt"""
    new: int = 64
    """tokens of each answer"""
    clients: int = 1
    """prompts that are sent at the same moment"""


@dataclass(frozen=True)
class Run:
    """One run of a workload: one entry per client, in seconds since the prompts were sent."""

    ttft: tuple[float, ...]
    """to the first token"""
    gaps: tuple[tuple[float, ...], ...]
    """between the pieces of each answer; a piece is a token, or several that form one character"""
    e2e: tuple[float, ...]
    """to the last token"""
    counts: tuple[int, ...]
    """tokens of each answer"""

    @classmethod
    def of(
        cls, times: Sequence[Sequence[float]], counts: Sequence[int], before: float = 0.0
    ) -> Run:
        """`times`: of each answer's pieces; `before`: seconds of tokenization, added to all."""
        gaps = tuple(tuple(b - a for a, b in itertools.pairwise(one)) for one in times)
        first, last = (tuple(before + one[at] for one in times) for at in (0, -1))
        return cls(first, gaps, last, tuple(counts))

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(self.counts)

    @property
    def seconds_per_token(self) -> list[float]:
        """Mean time per token after the first, for each answer of more than one token."""
        return [
            (last - first) / (count - 1)
            for first, last, count in zip(self.ttft, self.e2e, self.counts, strict=True)
            if count > 1
        ]


class ArtifactProcess:
    """A process that holds one artifact; it ends with the block."""

    def __init__(self, artifact: Path, process: subprocess.Popen[Any]) -> None:
        self.artifact, self.process = artifact, process

    @property
    def pid(self) -> int:
        return self.process.pid

    def loaded(self) -> float:
        """Wait until the artifact is loaded; the seconds that it took."""
        raise NotImplementedError

    def run(self, workload: Workload, number: int) -> Run:
        """Run once; prompts differ between values of `number`."""
        raise NotImplementedError

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def prepare(artifact: Path, threads: int | None) -> Path:
    """Make the files that the runtime opens, if it needs any, before the clock runs; their path.

    InputError for a path that is no artifact.
    """
    row = format_of(artifact)
    return load(row.prepare)(artifact, threads) if row.prepare else artifact


class RuntimeProcess(ArtifactProcess):
    """A process that answers with the artifact's runtime, without a server."""

    def __init__(
        self, artifact: Path, threads: int | None = None, context: int | None = None,
        limit: str | None = None,
    ) -> None:  # fmt: skip
        """`limit`: `cgroup.procs` of a cgroup that the process joins before it loads anything.

        `loaded` and `run` raise EdgeftError with the process's last line if it ended.
        """
        prepare(artifact, threads)
        command = [sys.executable, "-P", "-m", "edgeft.benchmarks.performance.process", str(artifact),
                   json.dumps({"threads": threads, "context": context})]  # fmt: skip
        if limit:  # first of all: memory stays charged to the group that allocated it
            command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', limit, *command]
        pipe = subprocess.PIPE
        super().__init__(
            artifact, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        )

    def loaded(self) -> float:
        return float(self._line()["load_s"])

    def run(self, workload: Workload, number: int) -> Run:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # _line reads the reason from stderr
            self.process.stdin.write(json.dumps({**vars(workload), "number": number}) + "\n")
            self.process.stdin.flush()
        raw = self._line()
        return Run(tuple(raw["ttft"]), tuple(map(tuple, raw["gaps"])), tuple(raw["e2e"]),
                   tuple(raw["counts"]))  # fmt: skip

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        if not line:
            errors = self.process.stderr.read().strip().splitlines()
            reason = errors[-1] if errors else f"exit code {self.process.wait()}"
            raise EdgeftError(f"cannot measure {self.artifact}: {reason}")
        raw: dict[str, Any] = json.loads(line)
        return raw


def run_once(model: Runtime, workload: Workload, number: int) -> Run:
    """Run a workload once with an open runtime."""
    started = time.perf_counter()
    prompts = [
        _prompt(model, workload.prompt, f"{number} {client}") for client in range(workload.clients)
    ]
    tokenized = time.perf_counter() - started
    limits = Limits(max_tokens=workload.new, ignore_eos=True)
    if workload.clients == 1:
        times = [[token.seconds for token in model.stream(prompts[0], limits)]]
    else:
        times = [list(reply.seconds) for reply in model.replies(prompts, limits)]
    return Run.of(times, [len(one) for one in times], before=tokenized)


def _prompt(model: Runtime, tokens: int, name: str) -> list[int]:
    text = model.chat.render([Message("user", prompt_text(tokens, name))])
    return model.encode(f"{name} {text}")[:tokens]


def prompt_text(tokens: int, name: str) -> str:
    """A text that begins with `name` and has at least so many tokens."""
    return f"{name} {WORDS * (tokens // 8 + 1)}"


def main(artifact: str, settings: str) -> None:
    """Load the artifact, then read a workload per line of stdin and print a run per line."""
    options = json.loads(settings)
    started = time.perf_counter()
    try:
        with open_runtime(Path(artifact), options["threads"], options["context"]) as model:
            print(json.dumps({"load_s": time.perf_counter() - started}), flush=True)
            for line in sys.stdin:
                fields = json.loads(line)
                number = fields.pop("number")
                run = run_once(model, Workload(**fields), number)
                print(json.dumps(dataclasses.asdict(run)), flush=True)
    except EdgeftError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
