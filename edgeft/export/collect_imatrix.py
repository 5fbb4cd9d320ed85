"""What flows into a model's weights: an importance matrix from one's own conversations.

    sequences = calibration(examples, chat, encode)                 # edgeft.data.rows
    imatrix = collect(Path("f16.gguf"), sequences, threads=2)
    edgeft.weights.imatrix.write(imatrix, Path("imatrix.gguf"))

llama.cpp runs the model and shows the inputs of its matrix products to a callback, as it does for
its own tool (tools/imatrix/imatrix.cpp: `collect_imatrix`). The same weights are counted: those of
the blocks, not the output matrix. Three things differ on purpose: batches of less than 16 tokens
count, short conversations share a batch, and the output matrix is not computed.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import EdgeftError, InputError
from edgeft.progress import Progress
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.llama_context import BATCH_TOKENS
from edgeft.weights.imatrix import Imatrix, Sums

Floats = npt.NDArray[np.float64]

F32, I32 = 0, 26
"""enum ggml_type"""
LAST = b"result_norm"
"""llama.cpp's name for what it multiplies with the output matrix"""


def collect(
    model: Path,
    sequences: Sequence[Sequence[int]],
    threads: int,
    dataset: str = "conversations",
) -> Imatrix:
    """Run a GGUF file over `sequences` of token ids; `dataset` is what the result calls them.

    The model should be the unquantized one (f16 or f32), and no sequence longer than the context
    that it was trained on.
    """
    if not sequences:
        raise InputError("there are no conversations to collect an importance matrix from")
    tokens = sum(map(len, sequences))
    collector = Collector()
    with (
        GGUFRuntime(model, threads, context=max(map(len, sequences))) as runtime,
        Progress("imatrix", tokens) as bar,
    ):
        for count in runtime.watch(sequences, collector):
            collector.last = None
            bar.update(count, units=count)
    return Imatrix(collector.tensors(), (dataset,), BATCH_TOKENS, -(-tokens // BATCH_TOKENS))


class Collector:
    """The callback: sums the squares per weight, in double precision."""

    def __init__(self) -> None:
        self.last: tuple[object, Floats, Floats] | None = None
        """(input, its sums, its counts): q, k and v read the same one, so do gate and up"""
        self._product, self._routed = _operations()
        self._sums: dict[str, Floats] = {}
        self._counts: dict[str, Floats] = {}

    def __call__(self, address: int, ask: bool) -> bool:
        """ggml-backend.h, `ggml_backend_sched_eval_callback`: before the tensor is computed (`ask`)
        whether to call again after it, and then whether to go on."""
        tensor = Tensor.from_address(address)
        if tensor.op not in (self._product, self._routed):
            # Asked for, and then the end: only the output matrix comes after it.
            return bool((tensor.name == LAST) == ask)
        weight, given = (Tensor.from_address(tensor.src[i]) for i in range(2))
        name = _weight_name(weight.name)
        routed = tensor.op == self._routed
        if given.type != F32 or not (routed or name.startswith("blk.")):
            return False
        key = (tensor.src[1], tensor.src[2] if routed else 0, weight.ne[2], weight.ne[3])
        if self.last is None or self.last[0] != key:
            if ask:
                return True
            chosen = Tensor.from_address(tensor.src[2]) if routed else None
            found = _routed_sums(given, chosen, weight) if chosen else _dense_sums(given, weight)
            self.last = key, *found
        _, sums, counts = self.last
        self._sums[name] = self._sums.get(name, 0.0) + sums
        self._counts[name] = self._counts.get(name, 0.0) + counts
        return not ask

    def tensors(self) -> dict[str, Sums]:
        found = {
            name: Sums(sums.astype(np.float32), self._counts[name].astype(np.float32))
            for name, sums in self._sums.items()
        }
        for name, sums in found.items():
            if not np.isfinite(sums.in_sum2).all():
                raise InputError(f"the model multiplies {name} with values that are not finite")
        return found


def _weight_name(name: bytes) -> str:
    """A copy for another device is called CUDA0#blk.0.attn_k.weight#0."""
    parts = name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def _dense_sums(given: Tensor, weight: Tensor) -> tuple[Floats, Floats]:
    """(matrices, columns) and (matrices,); a weight of three dimensions is several matrices."""
    values = _view(given)
    wide, deep = weight.ne[2], weight.ne[3]
    sums = np.zeros((wide * deep, values.shape[-1]))
    counts = np.zeros(wide * deep)
    for i, j in np.ndindex(*values.shape[:2]):
        matrix = i % deep * wide + j % wide
        sums[matrix] += _squares(values[i, j])
        counts[matrix] += values.shape[2]
    return sums, counts


def _routed_sums(given: Tensor, chosen: Tensor, weight: Tensor) -> tuple[Floats, Floats]:
    """(experts, columns) and (experts,): only the inputs that were sent to an expert."""
    values, ids = _view(given)[0], _view(chosen)[0, 0]
    used, experts = ids.shape[1], weight.ne[2]
    order = np.argsort(ids, axis=None, kind="stable")
    counts = np.bincount(ids.ravel(), minlength=experts)
    sums = np.zeros((experts, values.shape[-1]))
    ends = np.cumsum(counts)
    for expert in np.flatnonzero(counts):
        picked = order[ends[expert] - counts[expert] : ends[expert]]
        # Before the first expert matrix there is one input per token, later one per expert.
        sums[expert] = _squares(values[picked // used, picked % used % values.shape[1]])
    return sums, counts.astype(np.float64)


def _squares(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Sums over the rows; needs no second array, 9 billion values a second."""
    sums: npt.NDArray[np.float32] = np.einsum("ij,ij->j", rows, rows)
    return sums


class Tensor(ctypes.Structure):
    """struct ggml_tensor (ggml.h); `_operations` checks that the library's is the same."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


def _view(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor's values where they lie, the slowest dimension first; copied off another device."""
    ggml = _ggml()
    size = ggml.ggml_nbytes(ctypes.byref(tensor))
    if ggml.ggml_backend_buffer_is_host(tensor.buffer):
        raw = (ctypes.c_char * size).from_address(tensor.data)
    else:
        raw = ctypes.create_string_buffer(size)
        ggml.ggml_backend_tensor_get(ctypes.byref(tensor), raw, 0, size)
    kind = {F32: np.float32, I32: np.int32}[tensor.type]
    return np.ndarray(tuple(tensor.ne)[::-1], kind, raw, strides=tuple(tensor.nb)[::-1])


@functools.cache
def _operations() -> tuple[int, int]:
    """The codes of a matrix product and of one by experts, from a graph made for the purpose.

    Its tensors are read back field by field: with another layout, sums would be taken of anything.
    """
    ggml = _ggml()
    context = ggml.ggml_init(_InitParams(1 << 20, None, False))
    try:
        matrix = ggml.ggml_new_tensor_2d(context, F32, 5, 3)
        experts = ggml.ggml_new_tensor_3d(context, F32, 5, 3, 4)
        given = ggml.ggml_new_tensor_3d(context, F32, 5, 2, 7)
        ids = ggml.ggml_new_tensor_2d(context, I32, 2, 7)
        dense = ggml.ggml_mul_mat(context, matrix, given)
        routed = ggml.ggml_mul_mat_id(context, experts, given, ids)
        ggml.ggml_set_name(routed, b"blk.0.probe")
        probe = Tensor.from_address(routed)
        expected = {
            "type": F32, "ne": [3, 2, 7, 1], "nb": [4, 12, 24, 168], "buffer": None,
            "src": [experts, given, ids, *[None] * 7], "view_src": None, "view_offs": 0,
            "data": ggml.ggml_get_data(routed), "name": b"blk.0.probe",
        }  # fmt: skip
        found = {key: getattr(probe, key) for key in expected}
        found |= {key: list(found[key]) for key in ("ne", "nb", "src")}
        codes = Tensor.from_address(dense).op, probe.op
        names = [b"MUL_MAT", b"MUL_MAT_ID"]
        if found != expected or [ggml.ggml_op_name(code) for code in codes] != names:
            raise EdgeftError(
                "this llama-cpp-python lays out its tensors in another way than edgeft knows",
                "install the version in constraints.txt, which edgeft was tested with",
            )
        return codes
    finally:
        ggml.ggml_free(context)


class _InitParams(ctypes.Structure):
    """struct ggml_init_params (ggml.h)"""

    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


@functools.cache
def _ggml() -> Any:
    """libllama's handle, through which the functions of the libraries it rests on are found."""
    from llama_cpp import llama_cpp

    ggml = ctypes.CDLL(llama_cpp._lib._name)
    pointer, size, count, kind = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
    for name, result, arguments in (
        ("ggml_nbytes", size, [pointer]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [pointer]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_2d", pointer, [pointer, kind, count, count]),
        ("ggml_new_tensor_3d", pointer, [pointer, kind, count, count, count]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_mul_mat_id", pointer, [pointer, pointer, pointer, pointer]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_op_name", ctypes.c_char_p, [kind]),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml
