"""The ceiling of decoding: every token must read all weights once, so bandwidth over bytes bounds it.

    found = ceiling(Path("q4_k_m.gguf"), context=288)   # Ceiling(bandwidth=1.9e10, bytes=1.02e8)
    found.tps                                           # 186 tokens per second, at most

The bandwidth is that of reading alone, by as many threads as the model has (J. McCalpin, STREAM; copying
would hide what is read to be overwritten), over a buffer that no cache holds. A model that fits into the
last cache can be faster than this ceiling.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeft.benchmarks.performance.process import prepare
from edgeft.formats import format_of
from edgeft.weights import gguf_reader

CACHES = Path("/sys/devices/system/cpu")
ROUNDS = 10
LEAST = 1 << 28
"""bytes of the buffer at least"""
HALF = 2
"""bytes of a key's or value's number"""


@dataclass(frozen=True)
class Ceiling:
    bandwidth: float
    """bytes per second"""
    bytes: int
    """that one token reads"""

    @property
    def tps(self) -> float:
        return self.bandwidth / self.bytes

    def share(self, tps: float) -> dict[str, float]:
        """As `edgeft.records.Speed.roofline` has it."""
        return {
            "bandwidth_gbs": round(self.bandwidth / 1e9, 2),
            "bytes_per_token": self.bytes,
            "share": round(tps / self.tps, 3),
        }


def ceiling(artifact: Path, context: int, threads: int | None = None) -> Ceiling | None:
    """None for a format whose bytes per token are not known. `context`: tokens in the cache."""
    row = format_of(artifact)
    counted = {"gguf": _gguf, "gptq": _gguf, "onnx": _onnx}.get(row.name)
    if counted is None:
        return None
    file = prepare(artifact, threads)
    return Ceiling(bandwidth(threads or len(os.sched_getaffinity(0))), counted(file, context))


def _gguf(file: Path, context: int) -> int:
    """All tensors, of an embedding one row, of experts the share that a token is sent to, and the
    cache."""
    header = gguf_reader.read(file)
    meta, tensors = header.meta, header.tensors
    kind = meta["general.architecture"]
    experts = meta.get(f"{kind}.expert_count") or 1
    used = (meta.get(f"{kind}.expert_used_count") or 1) / experts
    total = 0.0
    for name, tensor in tensors.items():
        if name == "token_embd.weight" and "output.weight" in tensors:
            total += tensor.row_bytes
        else:
            total += tensor.size * (used if "_exps." in name else 1)
    return int(total) + _cache(meta, kind, context)


def _cache(meta: dict[str, object], kind: str, context: int) -> int:
    def number(name: str, default: int = 0) -> int:
        value = meta.get(f"{kind}.{name}", default)
        return max(value) if isinstance(value, list) else int(value)  # type: ignore[call-overload, no-any-return]

    heads = number("attention.head_count", 1)
    width = number("embedding_length") // max(heads, 1)
    key, value = (number(f"attention.{one}_length", width) for one in ("key", "value"))
    each = number("attention.head_count_kv", heads) * (key + value) * HALF
    return number("block_count") * each * context


def _onnx(folder: Path, context: int) -> int:
    """All constants but those that only a look-up reads, and the cache in float32."""
    from edgeft.weights.onnx_graph import ONNXGraph

    return ONNXGraph(folder).bytes_per_token(context)


@functools.cache
def bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read together; the best of `ROUNDS` tries."""
    size = max(LEAST, 4 * _last_cache())
    part = np.ones(size // threads // 4, np.int32)
    parts = [part, *(part.copy() for _ in range(threads - 1))]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(p.nbytes for p in parts) / (time.perf_counter() - started))
    return best


def _last_cache() -> int:
    """Bytes of all caches of the last level together, 0 where the system does not tell."""
    levels: dict[str, dict[str, int]] = {}
    for index in CACHES.glob("cpu[0-9]*/cache/index*"):
        with contextlib.suppress(OSError, ValueError):
            level, size, shared = (
                (index / name).read_text().strip() for name in ("level", "size", "shared_cpu_list")
            )
            levels.setdefault(level, {})[shared] = int(size.rstrip("K")) * 1024
    return sum(levels[max(levels)].values()) if levels else 0
