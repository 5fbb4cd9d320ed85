"""GGUF file and token sequences -> Imatrix: summed squares of the inputs of every weight.

    sequences = calibration_ids(view, data, max_tokens=32_768)      # edgeft.export.fine_tune_data
    imatrix = collect(Path("f16.gguf"), sequences, threads=2)
    edgeft.weights.imatrix.write(imatrix, Path("imatrix.gguf"))

llama.cpp runs the model and passes the inputs of every matrix product to a callback. llama-imatrix
uses the same callback (tools/imatrix/imatrix.cpp: `collect_imatrix`). Both count the weights of the
blocks and skip the output matrix. Three things differ: batches of fewer than 16 tokens count, short
sequences share a batch, and the output matrix is not computed.
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
OUTPUT_MATRIX_INPUT = b"result_norm"
"""llama.cpp's name for the input of the output matrix"""


def collect(
    model: Path,
    sequences: Sequence[Sequence[int]],
    threads: int,
    dataset: str = "conversations",
) -> Imatrix:
    """Run a GGUF file over `sequences` of token ids; `dataset` names them in the result.

    The model should be unquantized (f16 or f32). No sequence may exceed its context.
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
    """llama.cpp's eval callback: sums squared inputs per weight, in double precision."""

    def __init__(self) -> None:
        self.last: tuple[object, Floats, Floats] | None = None
        """(input, its sums, its counts); q, k and v share an input, and so do gate and up"""
        self._product, self._routed = _operations()
        self._sums: dict[str, Floats] = {}
        self._counts: dict[str, Floats] = {}

    def __call__(self, address: int, ask: bool) -> bool:
        """`ggml_backend_sched_eval_callback` of ggml-backend.h.

        Before a tensor is computed (`ask`): whether to call again with its values. After it: whether
        to continue.
        """
        tensor = Tensor.from_address(address)
        if tensor.op not in (self._product, self._routed):
            # Stop before the output matrix, the only product that follows.
            return bool((tensor.name == OUTPUT_MATRIX_INPUT) == ask)
        weight, inputs = (Tensor.from_address(tensor.src[i]) for i in range(2))
        name = _weight_name(weight.name)
        routed = tensor.op == self._routed
        if inputs.type != F32 or not (routed or name.startswith("blk.")):
            return False
        key = (tensor.src[1], tensor.src[2] if routed else 0, weight.ne[2], weight.ne[3])
        if self.last is None or self.last[0] != key:
            if ask:
                return True
            if routed:
                experts = Tensor.from_address(tensor.src[2])
                self.last = key, *_routed_sums(inputs, experts, weight)
            else:
                self.last = key, *_dense_sums(inputs, weight)
        assert self.last is not None
        _, sums, counts = self.last
        self._sums[name] = self._sums.get(name, 0.0) + sums
        self._counts[name] = self._counts.get(name, 0.0) + counts
        return not ask

    def tensors(self) -> dict[str, Sums]:
        tensors = {
            name: Sums(sums.astype(np.float32), self._counts[name].astype(np.float32))
            for name, sums in self._sums.items()
        }
        for name, sums in tensors.items():
            if not np.isfinite(sums.in_sum2).all():
                raise InputError(f"the inputs of {name} are not all finite")
        return tensors


def _weight_name(name: bytes) -> str:
    """The weight's GGUF name; a copy on another device has a name like CUDA0#NAME#0."""
    parts = name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def _dense_sums(inputs: Tensor, weight: Tensor) -> tuple[Floats, Floats]:
    """Sums, (matrices, columns), and counts, (matrices,), of a weight of `ne[2] * ne[3]` matrices."""
    values = _view(inputs)
    ne2, ne3 = weight.ne[2], weight.ne[3]
    sums = np.zeros((ne2 * ne3, values.shape[-1]))
    counts = np.zeros(ne2 * ne3)
    for i, j in np.ndindex(*values.shape[:2]):
        matrix = i % ne3 * ne2 + j % ne2
        sums[matrix] += _squares(values[i, j])
        counts[matrix] += values.shape[2]
    return sums, counts


def _routed_sums(inputs: Tensor, expert_ids: Tensor, weight: Tensor) -> tuple[Floats, Floats]:
    """Sums, (experts, columns), and counts, (experts,), of the inputs routed to each expert."""
    values, ids = _view(inputs)[0], _view(expert_ids)[0, 0]
    used, experts = ids.shape[1], weight.ne[2]
    order = np.argsort(ids, axis=None, kind="stable")
    counts = np.bincount(ids.ravel(), minlength=experts)
    sums = np.zeros((experts, values.shape[-1]))
    ends = np.cumsum(counts)
    for expert in np.flatnonzero(counts):
        routed = order[ends[expert] - counts[expert] : ends[expert]]
        # Before the first expert matrix there is one input per token, later one per expert.
        sums[expert] = _squares(values[routed // used, routed % used % values.shape[1]])
    return sums, counts.astype(np.float64)


def _squares(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Sums of squares over the rows, without a second array; 9 billion values per second."""
    sums: npt.NDArray[np.float32] = np.einsum("ij,ij->j", rows, rows)
    return sums


class Tensor(ctypes.Structure):
    """struct ggml_tensor (ggml.h); `_operations` checks it against the library's layout."""

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
    """A tensor's values, slowest dimension first; a copy where they are on another device."""
    ggml = _ggml()
    size = ggml.ggml_nbytes(ctypes.byref(tensor))
    if ggml.ggml_backend_buffer_is_host(tensor.buffer):
        raw = (ctypes.c_char * size).from_address(tensor.data)
    else:
        raw = ctypes.create_string_buffer(size)
        ggml.ggml_backend_tensor_get(ctypes.byref(tensor), raw, 0, size)
    dtype = {F32: np.float32, I32: np.int32}[tensor.type]
    return np.ndarray(tuple(tensor.ne)[::-1], dtype, raw, strides=tuple(tensor.nb)[::-1])


@functools.cache
def _operations() -> tuple[int, int]:
    """The op codes of MUL_MAT and MUL_MAT_ID, read from a small graph.

    EdgeftError where a field of a tensor in the graph has another value than expected: then the
    layout of `Tensor` is wrong, and the sums would be wrong, too.
    """
    ggml = _ggml()
    context = ggml.ggml_init(_InitParams(1 << 20, None, False))
    try:
        matrix = ggml.ggml_new_tensor_2d(context, F32, 5, 3)
        experts = ggml.ggml_new_tensor_3d(context, F32, 5, 3, 4)
        inputs = ggml.ggml_new_tensor_3d(context, F32, 5, 2, 7)
        ids = ggml.ggml_new_tensor_2d(context, I32, 2, 7)
        dense = ggml.ggml_mul_mat(context, matrix, inputs)
        routed = ggml.ggml_mul_mat_id(context, experts, inputs, ids)
        ggml.ggml_set_name(routed, b"blk.0.probe")
        probe = Tensor.from_address(routed)
        expected = {
            "type": F32, "ne": [3, 2, 7, 1], "nb": [4, 12, 24, 168], "buffer": None,
            "src": [experts, inputs, ids, *[None] * 7], "view_src": None, "view_offs": 0,
            "data": ggml.ggml_get_data(routed), "name": b"blk.0.probe",
        }  # fmt: skip
        fields = {key: getattr(probe, key) for key in expected}
        fields |= {key: list(fields[key]) for key in ("ne", "nb", "src")}
        codes = Tensor.from_address(dense).op, probe.op
        names = [b"MUL_MAT", b"MUL_MAT_ID"]
        if fields != expected or [ggml.ggml_op_name(code) for code in codes] != names:
            raise EdgeftError(
                "this llama-cpp-python has a tensor layout that edgeft does not know",
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
    """libllama's handle, which also gives the functions of libggml."""
    from llama_cpp import llama_cpp

    ggml = ctypes.CDLL(llama_cpp._lib._name)
    pointer, size, count, enum = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
    for name, result, arguments in (
        ("ggml_nbytes", size, [pointer]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [pointer]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_2d", pointer, [pointer, enum, count, count]),
        ("ggml_new_tensor_3d", pointer, [pointer, enum, count, count, count]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_mul_mat_id", pointer, [pointer, pointer, pointer, pointer]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_op_name", ctypes.c_char_p, [enum]),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml
