"""Readers of files from strangers under damaged files, for minutes or hours -> every defect, as a file.

    python -m edgeft.benchmarks.studies.fuzz --minutes 20 [--target gguf] [--out defects] [--seed 1]

Each target (`fuzz_targets`) gets an equal share of the time, in a process of its own. Inputs are
structured mutations of valid files (`mutations`). Where atheris is installed, it guides them by the
branches that they reach; it then also mutates by itself. A defect is an error that is no EdgeftError,
a message of several lines, more than 2 s of work, or the end of the process. Its input is kept in the
folder `--out`. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeft.benchmarks.studies.mutations import json_texts, mutants
from edgeft.errors import EdgeftError

MAX_SECONDS = 2
"""of work for one input"""
MAX_INPUT_BYTES = 65_536
MAX_MEMORY_BYTES = 4_000_000_000
KEPT = 20
"""inputs of one defect that are kept"""
ROUND = 20
"""mutants of one valid file in a row"""


class Late(BaseException):
    pass


class Tally:
    """What a target made of its inputs so far."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out
        self.inputs = self.read = 0
        self.defects: Counter[str] = Counter()
        self.saved = 0.0
        """time of the last `save`: libFuzzer ends the process without a word"""

    def run(self, read: Any, data: bytes) -> bool:
        """Whether the input was read. A defect is counted, and its input kept."""
        self.inputs += 1
        if time.monotonic() > self.saved + 1:
            self.save()
        defect = ""
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        try:
            read(data)
            self.read += 1
            return True
        except EdgeftError as error:
            text = str(error)
            defect = "a message of several lines" if "\n" in text or len(text) > 4000 else ""
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of Rust is one
            defect = f"{type(error).__name__} in {_place(error)}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if not defect and time.process_time() - started > MAX_SECONDS:
            defect = "too slow"
        if defect:
            self.defects[defect] += 1
            if self.defects[defect] <= KEPT:
                self.out.mkdir(parents=True, exist_ok=True)
                name = f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
                (self.out / name).write_bytes(data)
                print(f"{self.name}: {defect}: {self.out / name}", file=sys.__stdout__, flush=True)
        return False

    def save(self) -> None:
        self.saved = time.monotonic()
        text = json.dumps({"target": self.name, "inputs": self.inputs, "read": self.read,
                           "defects": dict(self.defects)})  # fmt: skip
        (self.out.parent / f"{self.out.name}.{self.name}.json").write_text(text)


def _place(error: BaseException) -> str:
    """file:line of the package where an error was raised."""
    place, frame = "?", error.__traceback__
    while frame:
        name = frame.tb_frame.f_code.co_filename
        if "edgeft" in name or "/converters/" in name:
            place = f"{Path(name).parent.name}/{Path(name).name}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place


def inputs(target: Any, seed: int) -> Iterator[bytes]:
    """Damaged copies without end."""
    draw = random.Random(seed)
    while True:
        whole, place = draw.choice(target.seeds), draw.randrange(2**32)
        if target.kind == "json" and draw.random() < 0.7:
            yield from json_texts(json.loads(whole), ROUND, place)
        else:
            yield from mutants(whole, ROUND, place, target.span)


def fuzz(name: str, seconds: float, out: Path, seed: int, work: Path) -> None:
    """One target in this process, in the empty folder `work`."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    signal.signal(signal.SIGPROF, _late)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - notes on damaged rows
    tally = Tally(name, out)
    if importlib.util.find_spec("atheris"):
        _guided(name, tally, work, seconds, seed)
        return
    target = _targets(work)[name]
    until = time.monotonic() + seconds
    for data in inputs(target, seed):
        tally.run(target.read, data)
        if time.monotonic() > until:
            break
    tally.save()


def _guided(name: str, tally: Tally, work: Path, seconds: float, seed: int) -> None:
    """By atheris, which keeps what reaches new branches of the package and mutates it further."""
    import atheris

    with atheris.instrument_imports(include=["edgeft"], enable_loader_override=False):
        target = _targets(work)[name]
    corpus = work / "corpus"
    corpus.mkdir()
    for number, whole in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(whole)
    structured = inputs(target, seed)

    def mutate(data: bytes, max_size: int, place: int) -> bytes:
        kind = place % 4
        if kind == 0:
            return next(structured)[:max_size]
        if kind == 1:
            return bytes(atheris.Mutate(data, max_size))
        changed = next(_once(target.kind, data, place, target.span))
        return changed[:max_size]

    def one(data: bytes) -> None:
        tally.run(target.read, data)

    arguments = [sys.argv[0], str(corpus), f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}",
                 f"-max_len={MAX_INPUT_BYTES}", "-rss_limit_mb=0", "-timeout=60", "-verbosity=0",
                 f"-artifact_prefix={tally.out}/{name}-died-"]  # fmt: skip
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


def _once(kind: str, data: bytes, seed: int, span: int | None) -> Iterator[bytes]:
    if kind == "json":
        try:
            yield next(json_texts(json.loads(data), 1, seed))
        except (ValueError, RecursionError):
            pass
    yield next(mutants(data, 1, seed, span))


def _targets(work: Path) -> Any:
    from edgeft.benchmarks.studies import fuzz_targets

    work.mkdir()
    return fuzz_targets.targets(work)


def _late(*_: Any) -> None:
    raise Late(f"more than {MAX_SECONDS} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--target", action="append", help="of one kind; repeatable, default all")
    parser.add_argument("--out", type=Path, default=Path("defects"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.work:
        fuzz(args.target[0], args.minutes * 60, args.out.resolve(), args.seed, args.work)
        return
    with _work() as folder:
        chosen = args.target or list(_targets(folder))
    rows = []
    for name in chosen:
        with _work() as folder:
            command = [sys.executable, "-m", "edgeft.benchmarks.studies.fuzz", "--target", name,
                       "--minutes", str(args.minutes / len(chosen)), "--out", str(args.out),
                       "--seed", str(args.seed), "--work", str(folder)]  # fmt: skip
            done = subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        file = args.out.with_name(f"{args.out.name}.{name}.json")
        row = json.loads(file.read_text()) if file.is_file() else {"target": name, "inputs": 0}
        row["exit"] = done.returncode
        rows.append(row)
        print(f"{name:20} {row['inputs']:>9} inputs, {row.get('read', 0):>8} read, exit {done.returncode}, "
              f"defects: {row.get('defects') or 'none'}", flush=True)  # fmt: skip
    print(json.dumps({"seed": args.seed, "minutes": args.minutes, "targets": rows}))


@contextlib.contextmanager
def _work() -> Iterator[Path]:
    """An empty folder in memory, and EDGEFT_HOME beside it."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        os.environ["EDGEFT_HOME"] = folder + "/home"
        yield Path(folder) / "work"


if __name__ == "__main__":
    main()
