"""An artifact -> the fastest possible decoding: every token must read all weights once from memory.

    top = ceiling(Path("q4_k_m.gguf"), context=288)   # Ceiling(bandwidth=1.9e10, bytes=1.02e8)
    top.tps                                           # 186 tokens per second, at most

The bandwidth is that of reading alone (J. McCalpin, STREAM; a copy would also read what it overwrites),
with as many threads as the model has, over a buffer larger than the caches. A model that fits into the
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
from edgeft.kv_cache import KV_TYPES, gguf_widths, kv_bytes
from edgeft.weights import gguf_reader

CACHES = Path("/sys/devices/system/cpu")
BANDWIDTH_RUNS = 10
MIN_BUFFER_BYTES = 1 << 28
"""smallest buffer to read"""


@dataclass(frozen=True)
class Ceiling:
    bandwidth: float
    """bytes per second"""
    bytes: int
    """read for one token"""

    @property
    def tps(self) -> float:
        return self.bandwidth / self.bytes

    def share(self, tps: float) -> dict[str, float]:
        """The object `edgeft.records.Speed.roofline` for a speed of `tps` tokens per second."""
        return {
            "bandwidth_gbs": round(self.bandwidth / 1e9, 2),
            "bytes_per_token": self.bytes,
            "share": round(tps / self.tps, 3),
        }


def ceiling(artifact: Path, context: int, threads: int | None = None) -> Ceiling | None:
    """None for a format whose bytes per token are unknown. `context`: tokens in the KV cache."""
    row = format_of(artifact)
    count_bytes = {"gguf": _gguf, "gptq": _gguf, "onnx": _onnx}.get(row.name)
    if count_bytes is None:
        return None
    file = prepare(artifact, threads)
    return Ceiling(bandwidth(threads or len(os.sched_getaffinity(0))), count_bytes(file, context))


def _gguf(file: Path, context: int) -> int:
    """Bytes of all tensors and the cache; one row of a separate embedding, the used share of experts."""
    header = gguf_reader.read(file)
    meta, tensors = header.meta, header.tensors
    architecture = meta["general.architecture"]
    experts = meta.get(f"{architecture}.expert_count") or 1
    used = (meta.get(f"{architecture}.expert_used_count") or 1) / experts
    total = 0.0
    for name, tensor in tensors.items():
        if name == "token_embd.weight" and "output.weight" in tensors:
            total += tensor.row_bytes
        else:
            total += tensor.size * (used if "_exps." in name else 1)
    return int(total) + kv_bytes(gguf_widths(meta), context, KV_TYPES["f16"])


def _onnx(folder: Path, context: int) -> int:
    """Bytes of all constants except look-up tables, and of the cache in float32."""
    from edgeft.weights.onnx_graph import ONNXGraph

    return ONNXGraph(folder).bytes_per_token(context)


@functools.cache
def bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read together; the best of `BANDWIDTH_RUNS` runs."""
    size = max(MIN_BUFFER_BYTES, 4 * _last_cache())
    part = np.ones(size // threads // 4, np.int32)
    parts = [part, *(part.copy() for _ in range(threads - 1))]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(BANDWIDTH_RUNS):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(p.nbytes for p in parts) / (time.perf_counter() - started))
    return best


def _last_cache() -> int:
    """Bytes of all last-level caches together; 0 where the system does not say."""
    levels: dict[str, dict[str, int]] = {}
    for index in CACHES.glob("cpu[0-9]*/cache/index*"):
        with contextlib.suppress(OSError, ValueError):
            level, size, shared = (
                (index / name).read_text().strip() for name in ("level", "size", "shared_cpu_list")
            )
            levels.setdefault(level, {})[shared] = int(size.rstrip("K")) * 1024
    return sum(levels[max(levels)].values()) if levels else 0
