"""Which weights of a GGUF file llama.cpp copies into another order, and whether their products keep their bits.

With `use_extra_bufts` llama.cpp interleaves the rows of 4-bit weights, so that one instruction multiplies several of
them (https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-cpu/repack.cpp,
`ggml_repack_get_optimal_repack_type`). One kernel multiplies up to three rows of activations (`gemv`), another one
four and more (`gemm`). On x86 both add the products of a block as integers, and the blocks in their order by the same
fused multiplication, for the types with one scale in a block (arch/x86/repack.cpp,
`gemv_q4_b32_8x8_q8_0_lut_avx` and `gemm_q4_b32_8x8_q8_0_lut_avx`). For K-quants they do not. Known here is x86 alone.
"""

from __future__ import annotations

import functools

from edgeft.runtimes.llama_library import load_library
from edgeft.weights.gguf_reader import Header, Tensor

AVX2_TYPES = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
"""ggml types that are repacked where the CPU has AVX2"""
AVX512_TYPES = frozenset({"Q2_K"})
"""and those that are repacked only where it has AVX-512"""
BATCH_INVARIANT = frozenset({"Q4_0", "IQ4_NL", "MXFP4"})
"""types whose products do not depend on the number of rows"""
INTERLEAVED_ROWS = 8
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"


@functools.cache
def cpu_features() -> frozenset[str]:
    """What llama.cpp uses of this CPU, by its own names: AVX2, AVX512, AMX_INT8, REPACK, …"""
    info = load_library()[0].llama_print_system_info().decode()
    parts = (part.rpartition(":")[2].partition("=") for part in info.split("|"))
    return frozenset(name.strip() for name, _, value in parts if value.strip() == "1")


def uses_amx() -> bool:
    """Was llama.cpp built with its products by AMX?

    Built by GCC before 11.5, 12.4, 13.3 or 14, they crash: GCC takes only the first 8 bytes of the tiles' configuration as
    read, and may leave out the stores of the others (https://gcc.gnu.org/PR114098, https://github.com/ggml-org/llama.cpp/pull/26954).
    `make setup` builds without them.
    """
    return "AMX_INT8" in cpu_features()


def repacked_tensors(header: Header) -> list[Tensor]:
    """The tensors of a file that are copied on this CPU; none of a file in several parts, whose tensors are not
    known."""
    features = cpu_features()
    several = header.meta.get("split.count", 1) != 1
    if not {"REPACK", "AVX2"} <= features or uses_amx() or several:
        return []
    types = AVX2_TYPES | (AVX512_TYPES if "AVX512" in features else frozenset())
    return [
        tensor
        for name, tensor in header.tensors.items()
        if tensor.type.name in types
        and len(tensor.shape) > 1
        and tensor.shape[-2] % INTERLEAVED_ROWS == 0
        and (name != EMBEDDINGS or HEAD not in header.tensors)
    ]


def is_batch_invariant(header: Header) -> bool:
    """Is something repacked, and does a row keep its bits in batches of any size? False where it is not known."""
    types = {tensor.type.name for tensor in repacked_tensors(header)}
    return bool(types) and types <= BATCH_INVARIANT


def duplicated_bytes(header: Header) -> int:
    """Bytes of a tied embedding that is there twice: as rows to look up, and repacked as the head."""
    return sum(tensor.size for tensor in repacked_tensors(header) if tensor.name == EMBEDDINGS)
