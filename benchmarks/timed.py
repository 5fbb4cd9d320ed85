"""A process that holds one artifact and times what it is told to; nothing else runs in it.

    with Timed(Path("q4_k_m.gguf"), threads=2, context=400) as model:
        model.load_s
        model.run(Use(prompt=256, new=64, clients=2), number=1).ttft     # two, in seconds

Several are kept open to take turns: only the one that is asked works. Every run has prompts of its
own, so that no cache of a former one helps.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeft.errors import EdgeftError
from edgeft.formats import format_of, load
from edgeft.records import Limits, Message
from edgeft.runtimes import Runtime, open_runtime

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
    """between the tokens of each answer"""
    e2e: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return sum(len(gaps) + 1 for gaps in self.gaps)


class Timed:
    """The process, seen from the one that asks."""

    def __init__(
        self, artifact: Path, threads: int | None = None, context: int | None = None,
        limit: str | None = None,
    ) -> None:  # fmt: skip
        """`limit`: a file of a cgroup (`cgroup.procs`) that the process goes into before it loads.
        EdgeftError with the process's reason where the artifact cannot be loaded."""
        row = format_of(artifact)
        if row.prepare:  # once, and not while the clock runs
            load(row.prepare)(artifact, threads)
        command = [sys.executable, "-P", "-m", "edgeft.benchmarks.timed", str(artifact),
                   json.dumps({"threads": threads, "context": context, "limit": limit})]  # fmt: skip
        self._artifact = artifact
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def loaded(self) -> float:
        """Seconds that loading took; waits for it."""
        return float(self._line()["load_s"])

    def run(self, use: Use, number: int) -> Run:
        """`number`: of the run, which makes its prompts."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({**vars(use), "number": number}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its reason is on stderr
        raw = self._line()
        gaps = tuple(map(tuple, raw["gaps"]))
        return Run(tuple(raw["ttft"]), gaps, tuple(raw["e2e"]))

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout and self._process.stderr
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().splitlines()
            reason = said[-1] if said else f"exit code {self._process.wait()}"
            raise EdgeftError(f"cannot measure {self._artifact}: {reason}")
        raw: dict[str, Any] = json.loads(line)
        return raw

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def once(model: Runtime, use: Use, number: int) -> Run:
    """One use of an open runtime."""
    started = time.perf_counter()
    prompts = [_prompt(model, use.prompt, f"{number} {client}") for client in range(use.clients)]
    tokenized = time.perf_counter() - started
    limits = Limits(max_tokens=use.new, past_stops=True)
    if use.clients == 1:
        times = [tuple(token.seconds for token in model.stream(prompts[0], limits))]
    else:
        times = [reply.seconds for reply in model.replies(prompts, limits)]
    gaps = tuple(tuple(b - a for a, b in itertools.pairwise(one)) for one in times)
    return Run(
        tuple(tokenized + one[0] for one in times),
        gaps,
        tuple(tokenized + one[-1] for one in times),
    )


def _prompt(model: Runtime, tokens: int, name: str) -> list[int]:
    text = model.chat.render([Message("user", f"{name} {WORDS * (tokens // 8 + 1)}")])
    return model.encode(f"{name} {text}")[:tokens]


def main(artifact: str, settings: str) -> None:
    how = json.loads(settings)
    if how["limit"]:
        Path(how["limit"]).write_text("0")  # this process, before it takes any memory
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
