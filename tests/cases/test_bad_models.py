"""Every file of the corpus of bad models: one line that names it, at once, and nothing written."""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft import files, store
from edgeft.benchmarks.studies.fuzz_targets import read_base, read_onnx
from edgeft.errors import EdgeftError
from helpers.bad_models import Case, corpus

pytestmark = pytest.mark.unit

MAX_SECONDS = 2
"""of work"""
MAX_MEMORY_KB = 400_000
MAX_WAIT_S = 20
"""of a clock: what waits for a pipe does no work"""
LIMIT_BYTES = 3_000_000_000
"""of the test's memory, so that a reader of /dev/zero ends with MemoryError"""
MIN_CASES = 300


class Late(BaseException):
    pass


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Time and memory of the block."""

    def stop(*_: Any) -> None:
        raise Late(f"it takes {MAX_WAIT_S} s")

    before = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, before[1]))
    signal.setitimer(signal.ITIMER_REAL, MAX_WAIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, before)
        signal.signal(signal.SIGALRM, handler)


def read_checkpoint(path: Path) -> None:
    from edgeft.weights.checkpoint import Checkpoint

    Checkpoint(path)


def read_gguf(path: Path) -> None:
    from edgeft.weights import gguf_reader
    from edgeft.weights.gguf_check import check_runs

    check_runs(gguf_reader.read(path))


def read_data(path: Path) -> None:
    from edgeft.data.rows import load_examples

    load_examples(path)


def read_toml(path: Path) -> None:
    from edgeft.cli import _config

    for key, value in files.read_toml(path).items():
        _config._check_usable(path, key, value)


def read_yaml(path: Path) -> None:
    pytest.importorskip("yaml")
    from edgeft.train.configs.read_yaml import read_yaml

    read_yaml(path)


def read_sentencepiece(path: Path) -> None:
    from edgeft.tokenizer.sentencepiece import SentencePiece

    SentencePiece.read(path).tokenizer_json()


def read_imatrix(path: Path) -> None:
    from edgeft.weights import imatrix

    imatrix.read(path)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Path:
    return tiny_base


def readers(base: Path) -> dict[str, Callable[[Path], Any]]:
    from edgeft.adapter.read import Weighted
    from edgeft.merge.view import open_merged

    return {
        "checkpoint": read_checkpoint, "base": read_base, "gguf": read_gguf, "onnx": read_onnx,
        "adapter": lambda path: open_merged(base, (Weighted(path),)), "data": read_data,
        "toml": read_toml, "yaml": read_yaml, "sentencepiece": read_sentencepiece,
        "imatrix": read_imatrix, "manifest": store.read_manifest,
    }  # fmt: skip


def read_bytes() -> int:
    """Bytes that this process has read so far; pages of mapped files are not among them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


def paths(folder: Path) -> set[Path]:
    """In the folder of a case and beside it."""
    return {*folder.rglob("*"), *folder.parent.iterdir()}


def problems(case: Case, folder: Path, read: Callable[[Path], Any]) -> Iterator[str]:
    """What is wrong with how a reader takes a case."""
    folder.mkdir()
    path = case.write(folder)
    before, written = read_bytes(), paths(folder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        with limits():
            read(path)
        yield "it is accepted"
    except EdgeftError as error:
        text = error.message
        if "\n" in text or len(text) > 2000:
            yield f"{len(text)} characters of a message: {text[:300]}"
        if not re.search(case.says, text):
            yield f"{text[:300]!r} says nothing of {case.says!r}"
    except BaseException as error:  # noqa: BLE001 - a panic of the package tokenizers is one
        yield f"{type(error).__name__}: {str(error)[:300]}"
    if (seconds := time.process_time() - started) > MAX_SECONDS:
        yield f"{seconds:.1f} s"
    if (read_ := read_bytes() - before) > case.reads:
        yield f"{read_} bytes read"
    if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) > MAX_MEMORY_KB:
        yield f"{grown} kB of memory"
    if new := paths(folder) - written:
        yield f"it wrote {new}"


def test_no_bad_model_is_let_in(base: Path, tmp_path: Path) -> None:
    cases, of = corpus(base), readers(base)
    of["base"](base)  # imports are read, too
    faults: dict[str, list[str]] = {}
    for name, case in cases.items():
        folder = tmp_path / "case"
        found = list(problems(case, folder, of[case.reader]))
        shutil.rmtree(folder)
        if found:
            faults[name] = found
    lines = [f"{name}: {'; '.join(found)}" for name, found in faults.items()]
    assert not faults, f"{len(faults)} of {len(cases)}:\n" + "\n".join(lines)
    assert len(cases) >= MIN_CASES
