"""Merged view -> GGUF in one pass: sum in float32, quantize, write, tensor by tensor.

    convert(merged, Path("q4_k_m.gguf"), "q4_k_m", threads=2)

There is no intermediate file and no bfloat16 step, and memory does not grow with the model: rows
are merged, quantized and written in blocks, by `threads` at once. Types per tensor and their bytes
equal llama-quantize's on the float32 model (`_mixture.py`, `_ggml.py`). The vocabulary comes from
tokenizer.json by its structure, not by a list of known hashes; whether llama.cpp then cuts text
into the same ids is proved on the finished file (`edgeft.benchmarks.parity`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.checkpoint import Array
from edgeft.converters import _vocab
from edgeft.converters._ggml import quantize
from edgeft.converters._metadata import metadata, rope_factors
from edgeft.converters._mixture import FILE_TYPE, mixture, needs_importance
from edgeft.converters._tensors import Part, Target, targets
from edgeft.errors import FormatError, ProofError
from edgeft.imatrix import Imatrix
from edgeft.merge import Merged
from edgeft.progress import Progress

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

    def shape(self, name: str) -> tuple[int, ...]:
        return self.factors[name].shape if name in self.factors else self.targets[name].shape


def plan(
    merged: Merged,
    quant: str,
    tensor_types: Sequence[tuple[str, str]] = (),
    imatrix: bool = False,
) -> Plan:
    """FormatError for what cannot be written, before anything is."""
    arch = merged.card.gguf_arch
    wanted = targets(merged)
    try:
        factors, keys = rope_factors(merged), metadata(merged)
        heads = keys[f"{arch}.attention.head_count"]
        facts = {
            "layers": keys[f"{arch}.block_count"],
            "heads": heads,
            "kv_heads": keys.get(f"{arch}.attention.head_count_kv", heads),
            "experts": keys.get(f"{arch}.expert_count", 0),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise FormatError(
            f"config.json of {merged.base} is not one of the {merged.card.family} family: "
            f"{type(error).__name__} {error}"
        ) from None
    shapes = {name: target.shape for name, target in wanted.items()}
    types = mixture(
        quant,
        shapes | {name: values.shape for name, values in factors.items()},
        arch=arch,
        imatrix=imatrix,
        overrides=tensor_types,
        **facts,
    )
    for pattern, _ in tensor_types:
        if not any(re.search(pattern.lower(), name) for name in shapes):
            raise FormatError(f"no tensor's name matches {pattern!r}", f"a name is {min(shapes)}")
    return Plan(wanted, factors, keys, types)


def convert(
    merged: Merged,
    out: Path,
    quant: str,
    threads: int,
    tensor_types: Sequence[tuple[str, str]] = (),
    imatrix: Imatrix | None = None,
) -> dict[str, Any]:
    """Write the file; returns facts for the manifest: tensors per type, bits per weight.

    `tensor_types` are (regex, type) for tensors that shall not have what `quant` gives them.
    """
    from gguf import GGUFWriter

    made = plan(merged, quant, tensor_types, imatrix is not None)
    importance = _importance(quant, made, imatrix)
    writer = GGUFWriter(out, merged.card.gguf_arch)
    try:
        _header(writer, merged, quant, made.keys)
        if imatrix:
            _mark(writer, imatrix)
        rows = made.targets["token_embd.weight"].shape[0]
        _vocab.write(writer, merged.tokenizer, rows)
        for name, qtype in made.types.items():
            _announce(writer, name, made.shape(name), qtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        samples = _write_tensors(writer, merged, made, importance, threads, quant)
    finally:
        writer.close()
    for sample in samples:
        sample.check(out)
    weights = sum(math.prod(target.shape) for target in made.targets.values())
    counts = Counter(qtype.name for qtype in made.types.values())
    facts: dict[str, Any] = {
        "types": dict(sorted(counts.items())),
        "bits_per_weight": round(8 * out.stat().st_size / weights, 2),
    }
    if imatrix:
        facts["without_importance"] = len(_without(made, imatrix))
    return facts


def check(
    merged: Merged,
    quant: str,
    tensor_types: Sequence[tuple[str, str]] = (),
    imatrix: Imatrix | None = None,
    measured: bool = False,
) -> None:
    """FormatError for what `convert` would refuse; `measured`: importance comes only later."""
    made = plan(merged, quant, tensor_types, measured or imatrix is not None)
    if measured:
        return
    _importance(quant, made, imatrix)
    if imatrix and 2 * len(_without(made, imatrix)) > len(_quantized(made)):
        raise FormatError(
            f"the importance matrix is of another model: it has nothing for {quant}'s tensors, "
            f"such as {_without(made, imatrix)[0]}",
            "llama-imatrix on the model itself, or --imatrix auto",
        )


def _quantized(made: Plan) -> list[str]:
    """Tensors for which importance matters; llama-imatrix gathers none of embedding and output."""
    ends = ("token_embd.weight", "output.weight")
    whole = ("F32", "F16", "BF16")
    return [n for n, kind in made.types.items() if kind.name not in whole and n not in ends]


def _without(made: Plan, imatrix: Imatrix) -> list[str]:
    return [name for name in _quantized(made) if name not in imatrix.tensors]


@dataclass(frozen=True)
class _Job:
    """A block of rows of one part of a tensor."""

    name: str
    part: Part
    rows: slice
    sample: npt.NDArray[np.intp]
    """rows of the part that the proof looks at"""
    importance: Array | None
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
class _Sample:
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
                        made.types[name], first=start == 0 and number == 0,
                        last=min(start + step, end) == part.rows,
                    )  # fmt: skip


def _write_tensors(
    writer: Any,
    merged: Merged,
    made: Plan,
    importance: dict[str, Array | None],
    threads: int,
    quant: str,
) -> list[_Sample]:
    """Blocks are made by `threads` at once and written in order; the proof sees every sample."""
    file = writer.fout[0]
    names = iter(made.types)
    samples: list[_Sample] = []
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

    with (
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
                    _Sample(job.part.source, start, job.sample, data.shape[1], _digest(data))
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
    values = job.part.take(merged.rows, job.rows)
    matrix = values if values.ndim > 1 else values[:, None]
    try:
        data = quantize(matrix, job.qtype, threads=1, importance=job.importance)
    except ValueError as error:
        raise ProofError(
            f"{job.part.source} cannot be stored as {job.qtype.name}: {error}",
            "is a weight of base or adapter damaged?",
        ) from None
    inside = job.sample[(job.sample >= job.rows.start) & (job.sample < job.rows.stop)]
    inside = inside - job.rows.start
    return _Block(data, values[inside], data[inside])


def _importance(quant: str, made: Plan, imatrix: Imatrix | None) -> dict[str, Array | None]:
    """GGUF name -> (matrices, columns); FormatError where one is lacking that its type needs."""
    found: dict[str, Array | None] = {}
    for name, qtype in made.types.items():
        rows = imatrix.importance(name) if imatrix and name in made.targets else None
        if rows is None and needs_importance(quant, name, qtype):
            raise FormatError(
                f"{qtype.name} of {name} needs an importance matrix, and it has none for it",
                "--imatrix auto, on chats that reach every expert; or a finer --quant",
            )
        if rows is not None:
            wanted = made.targets[name].shape
            shape = (math.prod(wanted[:-2]), wanted[-1])
            if rows.size != math.prod(shape):
                raise FormatError(
                    f"the importance matrix is of another model: {name} is {rows.shape}, not {shape}"
                )
            rows = rows.reshape(shape)
        found[name] = rows
    return found


def _mark(writer: Any, imatrix: Imatrix) -> None:
    """As llama-quantize records where the importance came from."""
    writer.add_string("quantize.imatrix.dataset", ", ".join(imatrix.datasets))
    writer.add_uint32("quantize.imatrix.entries_count", len(imatrix.tensors))
    writer.add_uint32("quantize.imatrix.chunks_count", imatrix.chunk_count)


def _announce(writer: Any, name: str, shape: tuple[int, ...], qtype: Any) -> None:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[qtype]
    row_bytes = shape[-1] // block * size
    byte_shape = (*shape[:-1], row_bytes)
    total = int(np.prod(byte_shape))
    writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), total, raw_dtype=qtype)


def _header(writer: Any, merged: Merged, quant: str, keys: dict[str, Any]) -> None:
    writer.add_type("model")
    writer.add_name(merged.base.name)
    writer.add_file_type(FILE_TYPE[quant])
    if FILE_TYPE[quant] not in (0, 1, 32):
        writer.add_quantization_version(2)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
              str: writer.add_string, list: writer.add_array}  # fmt: skip
    for key, value in keys.items():
        adders[type(value)](key, value)
