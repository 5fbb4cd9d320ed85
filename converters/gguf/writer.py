"""The tensors of a GGUF file, made and written block by block.

    samples = write_tensors(writer, merged, plan, importance, threads=2, quant="q4_k_m")
    for sample in samples:
        sample.check(path)                  # the finished file holds what was proved

A block is some rows of one tensor: merged, quantized and handed over by one thread; or codes that are
given (`edgeft.quantization.repack`), in the order of the file's rows. Memory holds a
few blocks for each thread, however large a tensor is.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.gguf.tensors import Part, Target
from edgeft.errors import ProofError
from edgeft.merge.view import Merged
from edgeft.progress import Progress
from edgeft.quantization.ggml import quantize, validate
from edgeft.quantization.repack import BlockSource
from edgeft.weights.checkpoint import Array

BLOCK_BYTES = 4 << 20
"""float32 that one thread merges and quantizes at a time"""


@dataclass(frozen=True)
class Plan:
    """What a file will hold."""

    targets: dict[str, Target]
    factors: dict[str, Array]
    """tensors that are made of config.json"""
    keys: dict[str, Any]
    """of the header, without the vocabulary"""
    types: dict[str, Any]
    """every tensor's, in the order of the file"""
    given: dict[str, BlockSource]
    """where the bytes of tensors come from that are not quantized here"""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.factors[name].shape if name in self.factors else self.targets[name].shape


@dataclass(frozen=True)
class _Job:
    """A block of rows of one part of a tensor."""

    name: str
    part: Part
    rows: slice
    sample: npt.NDArray[np.intp]
    """rows of the part that the proof looks at"""
    importance: Array | None
    coded: BlockSource | None
    """gives the bytes"""
    qtype: Any
    first: bool
    """of the tensor"""
    last: bool
    """of the part"""


@dataclass(frozen=True)
class _Block:
    data: npt.NDArray[np.uint8]
    given: Array
    """the block's sampled rows before the type"""
    stored: npt.NDArray[np.uint8]
    """and their bytes"""


@dataclass(frozen=True)
class Sample:
    """Where the sampled rows of a part lie in the file."""

    name: str
    start: int
    """of the part, bytes from the start of the file"""
    rows: npt.NDArray[np.intp]
    width: int
    """bytes"""
    digest: bytes

    def check(self, file: Path) -> None:
        """ProofError where the file does not hold what was proved."""
        height = int(self.rows[-1]) + 1
        table = np.memmap(file, np.uint8, "r", self.start, (height, self.width))
        if _digest(table[self.rows]) != self.digest:
            raise ProofError(f"{file.name} does not hold {self.name} as it was written")


def _digest(rows: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=16).digest()


def _jobs(made: Plan, importance: dict[str, Array | None]) -> Iterator[_Job]:
    """The blocks of all tensors in the order of the file; none crosses from matrix to matrix."""
    for name, target in ((name, made.targets.get(name)) for name in made.types):
        for number, part in enumerate(target.parts if target else ()):
            sample = part.sample(len(target.parts) if target else 1)
            height = part.rows // part.matrices
            step = max(1, BLOCK_BYTES * part.rows // (4 * math.prod(part.shape)))
            weights = importance[name] if len(part.shape) > 1 else None
            for matrix in range(part.matrices):
                own = None if weights is None else weights[number * part.matrices + matrix]
                end = (matrix + 1) * height
                for start in range(matrix * height, end, step):
                    yield _Job(
                        name, part, slice(start, min(start + step, end)), sample, own,
                        made.given.get(name), made.types[name], first=start == 0 and number == 0,
                        last=min(start + step, end) == part.rows,
                    )  # fmt: skip


def write_tensors(
    writer: Any,
    merged: Merged,
    made: Plan,
    importance: dict[str, Array | None],
    threads: int,
    quant: str,
) -> list[Sample]:
    """Blocks are made by `threads` at once and written in order; the proof sees every sample."""
    file = writer.fout[0]
    names = iter(made.types)
    samples: list[Sample] = []
    given: list[Array] = []
    stored: list[npt.NDArray[np.uint8]] = []
    start = 0
    total = sum(math.prod(target.shape) for target in made.targets.values()) // 1_000_000
    done = 0

    def begin(name: str) -> None:
        """Tensors that are no one's part are written on the way."""
        for other in names:
            writer.write_padding(file, file.tell())
            if other == name:
                return
            file.write(made.factors[other].tobytes())

    from threadpoolctl import threadpool_limits

    with (
        # The threads of numpy's BLAS would spin between their small products: 1.5 x the time.
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads) as pool,
        Progress(f"writing {quant}, million weights", total, short=True) as bar,
    ):
        jobs = _jobs(made, importance)
        running: deque[tuple[_Job, Future[_Block]]] = deque()
        while True:
            while len(running) <= 2 * threads and (job := next(jobs, None)):
                running.append((job, pool.submit(_encode, merged, job)))
            if not running:
                break
            job, block = running[0][0], running.popleft()[1].result()
            if job.first:
                begin(job.name)
            if job.rows.start == 0:
                start = file.tell()
            file.write(block.data.data)
            given.append(block.given)
            stored.append(block.stored)
            done += block.data.shape[0] * math.prod(job.part.shape) // job.part.rows
            bar.update(done // 1_000_000 - bar.done)
            if job.last:
                data = np.concatenate(stored)
                samples.append(
                    Sample(job.part.source, start, job.sample, data.shape[1], _digest(data))
                )
                _report(merged, job, np.concatenate(given), data)
                given, stored = [], []
        begin("")
    return samples


def _report(merged: Merged, job: _Job, given: Array, stored: npt.NDArray[np.uint8]) -> None:
    from gguf import dequantize

    kept = dequantize(stored, job.qtype).reshape(given.shape)
    merged.landed(job.part.source, lambda read: job.part.take(read, job.sample), given, kept)


def _encode(merged: Merged, job: _Job) -> _Block:
    inside = job.sample[(job.sample >= job.rows.start) & (job.sample < job.rows.stop)]
    here = inside - job.rows.start
    try:
        if job.coded:
            data = job.part.take(job.coded.rows, job.rows)
            validate(data, job.qtype)
            return _Block(data, job.part.take(merged.rows, inside), data[here])
        values = job.part.take(merged.rows, job.rows)
        matrix = values if values.ndim > 1 else values[:, None]
        data = quantize(matrix, job.qtype, threads=1, importance=job.importance)
    except ValueError as error:
        raise ProofError(
            f"{job.part.source} cannot be stored as {job.qtype.name}: {error}",
            "is a weight of base or adapter damaged?",
        ) from None
    return _Block(data, values[here], data[here])
