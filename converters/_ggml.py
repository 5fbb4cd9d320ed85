"""ggml's quantization kernels, and llama-quantize's choice of a type for each tensor.

    types = mixture("q4_k_m", {"blk.0.attn_v.weight": (256, 2048), ...}, arch="llama", ...)
    data = quantize(weight, types["blk.0.attn_v.weight"], threads=4)   # float32 -> bytes

In: the names and shapes of a model's tensors, then their float32 values one by one. Out: what
`llama-quantize` writes without an importance matrix, types and bytes alike; the tests hold both
against it. Shapes are numpy's: (rows, columns), the reverse of the GGUF header. The bytes come
from the libggml-base that llama-cpp-python carries, so the file is made by the library that will
run it; `gguf.dequantize` is the way back.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgeft.errors import EdgeftError, FormatError, did_you_mean

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

FILE_TYPE = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_k_s": 14,
    "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "bf16": 32,
}  # fmt: skip
"""quantization -> `general.file_type` (llama.h: `enum llama_ftype`)"""

CHUNK_BYTES = 4 << 20
"""float32 that one thread takes at a time"""

_LIBRARY = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")


def quantize(
    values: npt.NDArray[np.float32],
    qtype: GGMLQuantizationType,
    threads: int,
    importance: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]:
    """`values` (..., columns) as `qtype`, (..., bytes per row); the same for any `threads`.

    `importance` is one weight per column, llama.cpp's imatrix. ValueError, like llama-quantize's
    refusal, for input that is not finite or that overflows the type's half-precision numbers.
    """
    from gguf import GGML_QUANT_SIZES

    columns = values.shape[-1]
    block, block_bytes = GGML_QUANT_SIZES[qtype]
    if columns % block:
        raise ValueError(f"{qtype.name} needs a multiple of {block} columns, not {columns}")
    weights = None
    if importance is not None:
        importance = np.require(importance, np.float32, ("C", "A"))
        if importance.shape != (columns,) or not np.isfinite(importance).all():
            raise ValueError(f"the importance is not {columns} finite numbers")
        weights = importance.ctypes.data
    rows = np.require(values, np.float32, ("C", "A")).reshape(-1, columns)
    raw = np.empty((len(rows), columns // block * block_bytes), np.uint8)
    step = max(1, CHUNK_BYTES // (4 * columns))
    ggml = _library()

    def work(start: int) -> None:
        source, target = rows[start : start + step], raw[start : start + step]
        if not np.isfinite(source).all():
            raise ValueError("not every value is finite")
        ggml.ggml_quantize_chunk(
            qtype, source.ctypes.data, target.ctypes.data, 0, len(source), columns, weights
        )
        if not ggml.ggml_validate_row_data(qtype, target.ctypes.data, target.nbytes):
            raise ValueError(f"a value is too large for {qtype.name}")

    with ThreadPoolExecutor(threads) as pool:  # ctypes calls release the GIL
        for _ in pool.map(work, range(0, len(rows), step)):
            pass
    return raw.reshape(*values.shape[:-1], raw.shape[1])


def mixture(
    quant: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    arch: str,
    layers: int,
    heads: int,
    kv_heads: int,
    experts: int,
) -> dict[str, GGMLQuantizationType]:
    """The type of every tensor of a model, by GGUF name, in the order llama-quantize takes them.

    `shapes` is the whole model, in any order: some choices hang on the number and the order of
    the tensors of a kind (which is the layer number only if every layer has one), and a model
    without output.weight is tied. `layers` is the header's block_count; `heads` and `kv_heads`
    are those of the first layer; `experts` is 0 for a dense model. What llama-quantize leaves as
    it is, here stays F32.

    The rules are llama.cpp's (src/llama-quant.cpp: `llama_tensor_get_type` and its helpers) for
    the types in FILE_TYPE, without the ones that an importance matrix turns on and without those
    for the architecture glm5-next.
    """
    from gguf import GGML_QUANT_SIZES
    from gguf import GGMLQuantizationType as T

    if quant not in FILE_TYPE:
        raise FormatError(f"no rules for {quant!r}", did_you_mean(quant, FILE_TYPE))
    base = T[quant.upper().removesuffix("_M").removesuffix("_S")]
    order = sorted(shapes, key=lambda name: (_layer(name), name))
    chosen = [name for name in order if _may_quantize(name, shapes[name])]
    nth_value = {n: i for i, n in enumerate(n for n in chosen if _role(n) == "attn_v")}
    nth_down = {n: i for i, n in enumerate(n for n in chosen if _role(n) == "ffn_down")}
    values = sum(_role(name) == "attn_v" for name in order)
    tied = "output.weight" not in shapes
    is_70b = _is_70b(arch, layers, heads, kv_heads)

    def preferred(name: str) -> T:
        role = _role(name)
        if role == "output" or (tied and role == "token_embd"):
            if arch == "falcon" or shapes[name][-1] % GGML_QUANT_SIZES[base][0]:
                return T.Q8_0
            return base if base == T.Q8_0 else T.Q6_K
        if role == "attn_v":
            nth = nth_value[name]
            if experts == 8:
                return T.Q8_0
            if quant in ("q4_k_m", "q5_k_m") and _more_bits(nth, values):
                return T.Q6_K
            if (quant == "q4_k_s" and nth < 4) or (base == T.Q4_K and is_70b):
                return T.Q5_K
        elif role == "attn_k" and experts == 8:
            return T.Q8_0
        elif role == "attn_output" and experts == 8 and arch != "falcon" and base == T.Q4_K:
            return T.Q5_K
        elif role == "ffn_down":
            # Mixtral's experts came as tensors of their own, so there the name tells the layer.
            nth = _layer(name) if experts > 1 else nth_down[name]
            if quant == "q4_k_m" and arch == "falcon":
                if nth < layers // 16:
                    return T.Q6_K
                return T.Q5_K if _more_bits(nth, layers) else base
            if quant in ("q4_k_m", "q5_k_m") and _more_bits(nth, layers):
                return T.Q6_K
            if quant == "q4_k_s" and arch != "falcon" and nth < layers // 8:
                return T.Q5_K
        return base

    smaller_blocks = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}

    def fitting(wanted: T, columns: int) -> T:
        if columns % GGML_QUANT_SIZES[wanted][0]:
            wanted = smaller_blocks.get(wanted, wanted)
        return T.F16 if columns % GGML_QUANT_SIZES[wanted][0] else wanted

    types = dict.fromkeys(order, T.F32)
    for name in chosen:
        plain = GGML_QUANT_SIZES[base][0] == 1
        types[name] = base if plain else fitting(preferred(name), shapes[name][-1])
    return types


def _more_bits(nth: int, count: int) -> bool:
    """The first and the last eighth, and every third between them."""
    first, last = count // 8, 7 * count // 8
    return nth < first or nth >= last or (nth - first) % 3 == 2


def _is_70b(arch: str, layers: int, heads: int, kv_heads: int) -> bool:
    """Whether llama.cpp calls it LLM_TYPE_70B (src/models/*.cpp: `load_arch_hparams`)."""
    if arch in ("llama", "llama-embed"):
        return layers == 80 and heads != kv_heads
    return (arch, layers) in {("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)}


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)", name)
    return int(found[1]) if found else -1


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    if re.search(r"attn_(v|qkv|kv_b)\.weight", name):
        return "attn_v"
    found = re.search(r"(attn_k|attn_output)\.weight|(ffn_down)", name)
    return (found[1] or found[2]) if found else ""


# src/llama-quant.cpp: `tensor_allows_quantization`
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel"
    r"|per_layer_model_proj|^position_embd\.weight$|^token_types\.weight$|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|\.position_embd|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_(embd|merger)"
    r"|a\.rvq\.codebook|mm\.a\.code_embd"
)


def _may_quantize(name: str, shape: tuple[int, ...]) -> bool:
    """Matrices whose name ends in "weight", but for a list of small or touchy ones."""
    return math.prod(shape[:-1]) > 1 and name.endswith("weight") and not _KEPT.search(name)


@functools.cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder, "lib") for folder in (spec and spec.submodule_search_locations) or ()]
    paths = [folder / name for folder in folders for name in _LIBRARY]
    hint = "pip install --force-reinstall llama-cpp-python"
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise EdgeftError("the package llama_cpp does not carry libggml-base", hint)
    try:
        ggml = ctypes.CDLL(str(path))
    except OSError as error:
        raise EdgeftError(f"cannot load {path}: {error}", hint) from None
    kind, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    ggml.ggml_quantize_chunk.argtypes = [kind, pointer, pointer, count, count, count, pointer]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_validate_row_data.argtypes = [kind, pointer, ctypes.c_size_t]
    ggml.ggml_validate_row_data.restype = ctypes.c_bool
    return ggml
