"""Merged view and Plan -> the tensors of a GGUF file, written in blocks of rows.

    samples = write_tensors(writer, merged, plan, importance, threads=2, landing=landing)
    for sample in samples:
        sample.check(path)                  # ProofError where the file holds other bytes

A block is a range of rows of one tensor. One thread merges and quantizes it, or reads its bytes from
a block source of the plan (`edgeft.quantization.repack`). Blocks are written in the order of the
file. Memory holds a few blocks per thread, for tensors of any size.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.gguf.plan import Part, Plan
from edgeft.errors import ProofError
from edgeft.merge.landing import LandingProof
from edgeft.merge.view import Merged
from edgeft.progress import Progress
from edgeft.quantization.ggml import quantize, row_blocks, validate
from edgeft.quantization.repack import BlockSource
from edgeft.weights.checkpoint import Array


@dataclass(frozen=True)
class _Job:
    """A block of rows of one part of a tensor, before encoding."""

    name: str
    """GGUF name of the tensor"""
    part: Part
    rows: slice
    """rows of the part"""
    sample: npt.NDArray[np.intp]
    """rows of the part in the landing proof's sample"""
    importance: Array | None
    """importance of the columns, (columns,)"""
    block_source: BlockSource | None
    """source of the rows' bytes; None where they are quantized here"""
    qtype: Any
    first: bool
    """whether it is the first block of its tensor"""
    last: bool
    """whether it is the last block of its part"""

    @property
    def values(self) -> int:
        rows = self.rows.stop - self.rows.start
        return int(rows * math.prod(self.part.shape) // self.part.rows)


@dataclass(frozen=True)
class _Block:
    """An encoded block and its sampled rows."""

    data: npt.NDArray[np.uint8]
    """(rows, bytes)"""
    summed: Array
    """the block's sampled rows before quantization"""
    stored: npt.NDArray[np.uint8]
    """the bytes of these rows"""


@dataclass(frozen=True)
class Sample:
    """The sampled rows of a part: their place in the file and their hash."""

    name: str
    """name of the part in the checkpoint"""
    start: int
    """offset of the part in the file, bytes"""
    rows: npt.NDArray[np.intp]
    row_bytes: int
    digest: bytes

    def check(self, file: Path) -> None:
        """ProofError where the file does not hold the sampled rows."""
        row_count = int(self.rows[-1]) + 1
        table = np.memmap(file, np.uint8, "r", self.start, (row_count, self.row_bytes))
        if _digest(table[self.rows]) != self.digest:
            raise ProofError(f"{file.name} does not hold {self.name} as it was written")


def _digest(rows: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=16).digest()


def write_tensors(
    writer: Any,
    merged: Merged,
    plan: Plan,
    importance: Mapping[str, Array | None],
    threads: int,
    landing: LandingProof,
) -> list[Sample]:
    """Encode blocks in `threads` threads, write them in order, add the samples to the proof."""
    from threadpoolctl import threadpool_limits

    file = writer.fout[0]
    tensors = _TensorOrder(writer, plan)
    samples: list[Sample] = []
    sampled: list[tuple[Array, npt.NDArray[np.uint8]]] = []
    start = done = 0
    total = sum(math.prod(target.shape) for target in plan.targets.values()) // 1_000_000
    with (
        # BLAS threads would busy-wait between small products and slow the export by half.
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads) as pool,
        Progress(f"writing {plan.quant}, million weights", total, short=True) as bar,
    ):
        for job, block in _encoded(pool, merged, _jobs(plan, importance), 2 * threads):
            if job.first:
                tensors.begin(job.name)
            if job.rows.start == 0:
                start = file.tell()
            file.write(block.data.data)
            sampled.append((block.summed, block.stored))
            done += job.values
            bar.update(done // 1_000_000 - bar.done)
            if job.last:
                samples.append(_prove(merged, landing, job, start, sampled))
                sampled = []
        tensors.finish()
    return samples


class _TensorOrder:
    """Writes padding and the rope factors at their places in the order of the file."""

    def __init__(self, writer: Any, plan: Plan) -> None:
        self._writer, self._plan = writer, plan
        self._names = iter(plan.types)

    def begin(self, name: str) -> None:
        """Write everything before the tensor `name`."""
        file = self._writer.fout[0]
        for other in self._names:
            self._writer.write_padding(file, file.tell())
            if other == name:
                return
            file.write(self._plan.factors[other].tobytes())

    def finish(self) -> None:
        """Write everything after the last tensor."""
        self.begin("")


def _jobs(plan: Plan, importance: Mapping[str, Array | None]) -> Iterator[_Job]:
    """The blocks of all tensors in the order of the file; no block spans two matrices."""
    for name in plan.types:
        target = plan.targets.get(name)
        for number, part in enumerate(target.parts if target else ()):
            sample = part.sampled_rows(len(target.parts) if target else 1)
            matrix_rows = part.rows // part.matrices
            tensor_importance = importance[name] if len(part.shape) > 1 else None
            for matrix in range(part.matrices):
                matrix_importance = (
                    None
                    if tensor_importance is None
                    else tensor_importance[number * part.matrices + matrix]
                )
                first_row = matrix * matrix_rows
                for rows in row_blocks(matrix_rows, math.prod(part.shape) // part.rows):
                    start, stop = first_row + rows.start, first_row + rows.stop
                    yield _Job(
                        name, part, slice(start, stop), sample, matrix_importance,
                        plan.block_sources.get(name), plan.types[name],
                        first=start == 0 and number == 0, last=stop == part.rows,
                    )  # fmt: skip


def _encoded(
    pool: ThreadPoolExecutor, merged: Merged, jobs: Iterator[_Job], ahead: int
) -> Iterator[tuple[_Job, _Block]]:
    """Every job with its block, in order; at most `ahead` + 1 are in work."""
    running: deque[tuple[_Job, Future[_Block]]] = deque()
    while True:
        while len(running) <= ahead and (job := next(jobs, None)):
            running.append((job, pool.submit(_encode, merged, job)))
        if not running:
            return
        job, future = running.popleft()
        yield job, future.result()


def _encode(merged: Merged, job: _Job) -> _Block:
    """Merge and quantize a block, or read its bytes from the block source."""
    inside = job.sample[(job.sample >= job.rows.start) & (job.sample < job.rows.stop)]
    sampled = inside - job.rows.start
    try:
        if job.block_source:
            data = job.part.read(job.block_source.rows, job.rows)
            validate(data, job.qtype)
            return _Block(data, job.part.read(merged.rows, inside), data[sampled])
        values = job.part.read(merged.rows, job.rows)
        matrix = values if values.ndim > 1 else values[:, None]
        data = quantize(matrix, job.qtype, threads=1, importance=job.importance)
    except ValueError as error:
        raise ProofError(
            f"{job.part.source} cannot be stored as {job.qtype.name}: {error}",
            "is a weight of base or adapter damaged?",
        ) from None
    return _Block(data, values[sampled], data[sampled])


def _prove(
    merged: Merged,
    landing: LandingProof,
    job: _Job,
    start: int,
    sampled: list[tuple[Array, npt.NDArray[np.uint8]]],
) -> Sample:
    """Add the sampled rows of a part to the landing proof.

    `start`: offset of the part in the file, bytes. `sampled`: (float32, bytes) of every block.
    """
    from gguf import dequantize

    part, rows = job.part, job.sample
    summed = np.concatenate([values for values, _ in sampled])
    data = np.concatenate([stored for _, stored in sampled])
    before, delta = merged.addends(part.source, part.source_rows(rows))
    landing.add(
        part.source,
        part.apply(before, rows),
        None if delta is None else part.apply(delta, rows),
        summed,
        dequantize(data, job.qtype).reshape(summed.shape),
    )
    return Sample(part.source, start, rows, data.shape[1], _digest(data))
