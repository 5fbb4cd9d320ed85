"""A process that holds one artifact and times what it is told to; nothing else runs in it.

    with Timed(Path("q4_k_m.gguf"), threads=2, context=400) as model:
        model.load_s
        model.run(Use(prompt=256, new=64, clients=2), number=1).ttft     # two, in seconds

Several are kept open to take turns: only the one that is asked works. Every run has prompts of its
own, so that no cache of a former one helps.
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
class Use:
    """One way of use."""

    prompt: int = 256
    """tokens"""
    new: int = 64
    """tokens of each answer"""
    clients: int = 1
    """prompts that are given at the same moment"""


@dataclass(frozen=True)
class Run:
    """One use, once; seconds since the prompts were given, per client."""

    ttft: tuple[float, ...]
    gaps: tuple[tuple[float, ...], ...]
    """between the pieces of each answer, which are its tokens where each ends a character"""
    e2e: tuple[float, ...]
    counts: tuple[int, ...]
    """tokens of each answer"""

    @classmethod
    def of(
        cls, times: Sequence[Sequence[float]], counts: Sequence[int], before: float = 0.0
    ) -> Run:
        """`times` at which the pieces came; `before`: what the prompts' tokens took."""
        gaps = tuple(tuple(b - a for a, b in itertools.pairwise(one)) for one in times)
        first, last = (tuple(before + one[at] for one in times) for at in (0, -1))
        return cls(first, gaps, last, tuple(counts))

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @property
    def paces(self) -> list[float]:
        """Of each answer the mean time per token after the first."""
        return [
            (last - first) / (count - 1)
            for first, last, count in zip(self.ttft, self.e2e, self.counts, strict=True)
            if count > 1
        ]


class Child:
    """A process that is measured; it ends with the block."""

    def __init__(self, artifact: Path, process: subprocess.Popen[str]) -> None:
        self.artifact, self.process = artifact, process

    @property
    def pid(self) -> int:
        return self.process.pid

    def loaded(self) -> float:
        """Seconds that loading took; waits for it."""
        raise NotImplementedError

    def run(self, use: Use, number: int) -> Run:
        """`number`: of the run, which makes its prompts."""
        raise NotImplementedError

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def prepare(artifact: Path, threads: int | None) -> Path:
    """What is made once, and not while the clock runs: the files that the runtime opens. InputError for
    what is no artifact."""
    row = format_of(artifact)
    return load(row.prepare)(artifact, threads) if row.prepare else artifact


class Timed(Child):
    """A process that answers by the runtime alone, without a server."""

    def __init__(
        self, artifact: Path, threads: int | None = None, context: int | None = None,
        limit: str | None = None,
    ) -> None:  # fmt: skip
        """`limit`: a file of a cgroup (`cgroup.procs`) that the process goes into before it loads.
        EdgeftError with the process's reason where the artifact cannot be loaded."""
        prepare(artifact, threads)
        command = [sys.executable, "-P", "-m", "edgeft.benchmarks.performance.process", str(artifact),
                   json.dumps({"threads": threads, "context": context})]  # fmt: skip
        if limit:  # before it takes any memory, which stays charged where it was taken
            command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', limit, *command]
        pipe = subprocess.PIPE
        super().__init__(
            artifact, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        )

    def loaded(self) -> float:
        return float(self._line()["load_s"])

    def run(self, use: Use, number: int) -> Run:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # its reason is on stderr
            self.process.stdin.write(json.dumps({**vars(use), "number": number}) + "\n")
            self.process.stdin.flush()
        raw = self._line()
        return Run(tuple(raw["ttft"]), tuple(map(tuple, raw["gaps"])), tuple(raw["e2e"]),
                   tuple(raw["counts"]))  # fmt: skip

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read().strip().splitlines()
            reason = said[-1] if said else f"exit code {self.process.wait()}"
            raise EdgeftError(f"cannot measure {self.artifact}: {reason}")
        raw: dict[str, Any] = json.loads(line)
        return raw


def once(model: Runtime, use: Use, number: int) -> Run:
    """One use of an open runtime."""
    started = time.perf_counter()
    prompts = [_prompt(model, use.prompt, f"{number} {client}") for client in range(use.clients)]
    tokenized = time.perf_counter() - started
    limits = Limits(max_tokens=use.new, ignore_eos=True)
    if use.clients == 1:
        times = [[token.seconds for token in model.stream(prompts[0], limits)]]
    else:
        times = [list(reply.seconds) for reply in model.replies(prompts, limits)]
    return Run.of(times, [len(one) for one in times], before=tokenized)


def _prompt(model: Runtime, tokens: int, name: str) -> list[int]:
    text = model.chat.render([Message("user", asked_for(tokens, name))])
    return model.encode(f"{name} {text}")[:tokens]


def asked_for(tokens: int, name: str) -> str:
    """A text of at least so many tokens that begins with its name."""
    return f"{name} {WORDS * (tokens // 8 + 1)}"


def main(artifact: str, settings: str) -> None:
    how = json.loads(settings)
    started = time.perf_counter()
    try:
        with open_runtime(Path(artifact), how["threads"], how["context"]) as model:
            print(json.dumps({"load_s": time.perf_counter() - started}), flush=True)
            for line in sys.stdin:
                asked = json.loads(line)
                number = asked.pop("number")
                run = once(model, Use(**asked), number)
                print(json.dumps(dataclasses.asdict(run)), flush=True)
    except EdgeftError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
