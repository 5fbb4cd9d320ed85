"""Bad GGUF files, written byte by byte."""

from __future__ import annotations

import struct
from typing import Any

from helpers.bad_models.case import Case, a_file, sparse
from helpers.bad_models.weights import TB

U8, U32, F32, BOOL, TEXT, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
HUGE = 2**63


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name.encode()) + struct.pack("<I", kind) + value


def number(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value % 2**32))


def real(name: str, value: float) -> bytes:
    return key(name, F32, struct.pack("<f", value))


def word(name: str, value: str) -> bytes:
    return key(name, TEXT, text(value.encode()))


def array(name: str, kind: int, count: int, items: bytes = b"") -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, count) + items)


def tensor(
    name: str = "a",
    shape: tuple[int, ...] = (32,),
    kind: int = 0,
    offset: int = 0,
    dimensions: int | None = None,
) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    numbers = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        text(name.encode()) + struct.pack("<I", count) + numbers + struct.pack("<IQ", kind, offset)
    )


LLAMA = {
    "architecture": word("general.architecture", "llama"),
    "layers": number("llama.block_count", 1),
    "width": number("llama.embedding_length", 32),
    "heads": number("llama.attention.head_count", 4),
    "kv_heads": number("llama.attention.head_count_kv", 2),
    "context": number("llama.context_length", 64),
    "inner": number("llama.feed_forward_length", 64),
    "epsilon": real("llama.attention.layer_norm_rms_epsilon", 1e-5),
}
VOCABULARY = word("tokenizer.ggml.model", "gpt2") + array("tokenizer.ggml.merges", TEXT, 0)


def gguf(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    body: int = 128,
    counts: tuple[int | None, int | None] = (None, None),
    **changes: bytes,
) -> bytes:
    """A file of one tensor; `counts`: of tensors and keys, where the header lies about them."""
    all_keys = [*(LLAMA | changes).values(), *(keys or [])]
    all_tensors = [tensor()] if tensors is None else tensors
    numbers = [len(all_tensors) if counts[0] is None else counts[0],
               len([k for k in all_keys if k]) if counts[1] is None else counts[1]]  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, *numbers) + b"".join(all_keys + all_tensors)
    return head + bytes(-len(head) % 32) + bytes(body)


def vocabulary(count: int, items: bytes, *more: bytes) -> list[bytes]:
    keys = [word("tokenizer.ggml.model", "gpt2"), array("tokenizer.ggml.merges", TEXT, 0)]
    return [*keys, array("tokenizer.ggml.tokens", TEXT, count, items), *more]


AB = text(b"a") + text(b"b")
START = b"GGUF" + struct.pack("<I", 3)

FILES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a whole GGUF"),
    "another magic": (b"GGJT" + gguf()[4:], "does not begin with GGUF"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(64), "unknown version"),
    "version 0": (b"GGUF" + struct.pack("<I", 0) + gguf()[8:], "unknown version 0"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + gguf()[8:], "unknown version 1"),
    "version 2^32 - 1": (b"GGUF" + b"\xff" * 4 + gguf()[8:], "unknown version"),
    "a magic alone": (b"GGUF", "ends within"),
    "2^63 keys": (gguf(counts=(None, HUGE)), "ends within"),
    "2^64 - 1 keys": (gguf(counts=(None, 2**64 - 1)), "ends within"),
    "2^63 tensors": (gguf(counts=(HUGE, None)), "ends within"),
    "2^64 - 1 tensors": (gguf(counts=(2**64 - 1, None)), "ends within"),
    "a key too many": (gguf(counts=(None, 9)), "whole GGUF"),
    "a tensor too many": (gguf(counts=(2, None)), "whole GGUF"),
    "a key of 2^63 letters": (gguf([text(b"x", HUGE)]), "ends within"),
    "a key of 2^64 - 1 letters": (gguf([text(b"x", 2**64 - 1)]), "ends within"),
    "a key beyond the file": (gguf([text(b"x", 10_000)]), "ends within"),
    "a text of 2^63 letters": (gguf([key("x", TEXT, text(b"", HUGE))]), "ends within"),
    "a text of 2^64 - 8 letters": (gguf([key("x", TEXT, text(b"", 2**64 - 8))]), "ends within"),
    "a text that is no UTF-8": (gguf([key("x", TEXT, text(b"\xff\xfe"))]), "whole GGUF"),
    "a key that is no UTF-8": (gguf([text(b"\xff") + struct.pack("<II", U32, 1)]), "whole GGUF"),
    "a key twice": (gguf([number("llama.block_count", 2)]), "comes twice"),
    "a tensor twice": (gguf(tensors=[tensor(), tensor()]), "comes twice"),
    "an unknown type of value": (gguf([key("x", 99, b"")]), "unknown type of value 99"),
    "an array in an array": (gguf([array("x", ARRAY, 1)]), "unknown type of value 9"),
    "an array of 2^63 texts": (gguf([array("x", TEXT, HUGE)]), "ends within"),
    "an array of 2^61 numbers": (gguf([array("x", U64, 2**61)]), "ends within"),
    "an array of 2^64 - 1 bytes": (gguf([array("x", U8, 2**64 - 1)]), "ends within"),
    "an array beyond the file": (gguf([array("x", U32, 100_000)]), "ends within"),
    "alignment 0": (gguf([number("general.alignment", 0)]), "alignment"),
    "alignment 3": (gguf([number("general.alignment", 3)]), "alignment"),
    "alignment 1": (gguf([number("general.alignment", 1)], [tensor(offset=1)]), "alignment"),
    "alignment 2^31": (gguf([number("general.alignment", 2**31)]), "ends before|alignment"),
    "an alignment of a text": (gguf([word("general.alignment", "32")]), "alignment"),
    "0 dimensions": (gguf(tensors=[tensor(shape=(), dimensions=0)]), "0 dimensions"),
    "5 dimensions": (gguf(tensors=[tensor(shape=(1,) * 5)]), "5 dimensions"),
    "2^32 - 1 dimensions": (gguf(tensors=[tensor(dimensions=2**32 - 1)]), "dimensions"),
    "a dimension of 2^63": (gguf(tensors=[tensor(shape=(HUGE,))]), "whole GGUF"),
    "dimensions that wrap to 0": (gguf(tensors=[tensor(shape=(2**32, 2**32))]), "whole GGUF"),
    "dimensions that wrap to 32": (
        gguf(tensors=[tensor(shape=(2**62 + 8, 4, 1, 1))]), "whole GGUF"),
    "an empty tensor": (gguf(tensors=[tensor(shape=(0,))]), "empty"),
    "an unknown type of tensor": (gguf(tensors=[tensor(kind=999)]), "whole GGUF"),
    "a type that was removed": (gguf(tensors=[tensor(kind=4)]), "whole GGUF"),
    "a row that is no whole block": (gguf(tensors=[tensor(shape=(33,), kind=2)]), "columns"),
    "an offset beyond the file": (gguf(tensors=[tensor(offset=10**6)]), "ends before"),
    "an offset of 2^63": (gguf(tensors=[tensor(offset=HUGE)]), "ends before"),
    "an offset that wraps": (gguf(tensors=[tensor(offset=2**64 - 32)]), "ends before"),
    "a tensor larger than the file": (gguf(tensors=[tensor(shape=(2**20,))]), "ends before"),
    "a tensor of 1 TB": (gguf(tensors=[tensor(shape=(TB // 4,))]), "ends before"),
    "no layers": (gguf(layers=number("llama.block_count", 0)), "block_count is 0"),
    "-1 layers": (gguf(layers=number("llama.block_count", -1)), "block_count"),
    "10^6 layers": (gguf(layers=number("llama.block_count", 10**6)), "block_count"),
    "layers of a text": (gguf(layers=word("llama.block_count", "1")), "block_count"),
    "layers of an array": (gguf(layers=array("llama.block_count", U32, 1, bytes(4))), "block_count"),
    "layers that are not said": (gguf(layers=b""), "block_count is missing"),
    "no width": (gguf(width=number("llama.embedding_length", 0)), "embedding_length"),
    "a width of 2^31": (gguf(width=number("llama.embedding_length", 2**31)), "embedding_length"),
    "no heads": (gguf(heads=number("llama.attention.head_count", 0)), "head_count is 0"),
    "3 heads of keys for 4": (gguf(kv_heads=number("llama.attention.head_count_kv", 3)), "divide"),
    "no heads of keys": (gguf(kv_heads=number("llama.attention.head_count_kv", 0)), "head_count_kv"),
    "an epsilon of NaN": (
        gguf(epsilon=real("llama.attention.layer_norm_rms_epsilon", float("nan"))), "epsilon is nan"),
    "an epsilon below 0": (
        gguf(epsilon=real("llama.attention.layer_norm_rms_epsilon", -1)), "epsilon is -1"),
    "no context": (gguf(context=number("llama.context_length", 0)), "context_length"),
    "more experts used than there are": (
        gguf([number("llama.expert_count", 2), number("llama.expert_used_count", 3)]), "expert"),
    "10^6 experts": (
        gguf([number("llama.expert_count", 10**6), number("llama.expert_used_count", 1)]), "expert"),
    "a rope of 3 columns": (gguf([number("llama.rope.dimension_count", 3)]), "rope.dimension_count"),
    "an unknown rope": (gguf([word("llama.rope.scaling.type", "evil")]), "rope.scaling.type"),
    "an architecture of a number": (
        gguf(architecture=number("general.architecture", 1)), "architecture is 1"),
    "no architecture": (gguf(architecture=b""), "architecture is missing"),
    "a template of a number": (gguf([number("tokenizer.chat_template", 1)]), "chat_template is 1"),
    "tokens of numbers": (
        gguf([VOCABULARY, array("tokenizer.ggml.tokens", U32, 2, bytes(8))], counts=(1, 11)), "tokens"),
    "no tokens": (gguf(vocabulary(0, b"")), "tokens"),
    "a token twice": (gguf(vocabulary(2, text(b"a") * 2)), "twice"),
    "tokens that are not said": (gguf([VOCABULARY], counts=(1, 10)), "tokens"),
    "an end token beyond the vocabulary": (
        gguf(vocabulary(2, AB, number("tokenizer.ggml.eos_token_id", 2))), "eos_token_id is 2"),
    "an end token of 2^31": (
        gguf(vocabulary(2, AB, number("tokenizer.ggml.eos_token_id", 2**31))), "eos_token_id"),
    "an end token of a text": (
        gguf(vocabulary(2, AB, word("tokenizer.ggml.eos_token_id", "1"))), "eos_token_id"),
    "scores for other tokens": (
        gguf(vocabulary(2, AB, array("tokenizer.ggml.scores", F32, 1, bytes(4)))), "scores"),
    "types for other tokens": (
        gguf(vocabulary(2, AB, array("tokenizer.ggml.token_type", 5, 1, bytes(4)))), "token_type"),
    "a vector of whole numbers": (gguf(tensors=[tensor(kind=26)]), "I32"),
    "a tensor between the alignments": (gguf(tensors=[tensor(offset=4)], body=160), "alignment"),
    "zeros behind the magic": (b"GGUF" + bytes(1000), "unknown version 0"),
    "a pickle": (b"GGUF\x80\x04cos\nsystem\n(X\x02\0\0\0idtR.", "unknown version"),
}  # fmt: skip


def cases() -> dict[str, Case]:
    result = {
        f"gguf: {name}": Case("gguf", a_file("x.gguf", data), says)
        for name, (data, says) in FILES.items()
    }
    tera: dict[str, tuple[Any, str]] = {
        "1 TB of nothing": (sparse("x.gguf", TB, b""), "does not begin"),
        "1 TB behind the magic": (sparse("x.gguf", TB, START), "whole GGUF|architecture"),
        "a key of 1 TB": (
            sparse("x.gguf", TB, START + struct.pack("<QQ", 0, 1) + text(b"", TB - 100)), "larger"),
        "a text of 1 TB": (
            sparse("x.gguf", TB, START + struct.pack("<QQ", 0, 1) + key("x", TEXT, text(b"", TB - 100))),
            "larger"),
        "an array of 10^9 bytes": (
            sparse("x.gguf", TB, START + struct.pack("<QQ", 0, 1) + array("x", U8, 10**9)), "larger"),
        "an array of 10^9 texts": (
            sparse("x.gguf", TB, START + struct.pack("<QQ", 0, 1) + array("x", TEXT, 10**9)), "larger"),
        "10^9 keys": (sparse("x.gguf", TB, START + struct.pack("<QQ", 0, 10**9)), "larger"),
        "10^9 tensors": (sparse("x.gguf", TB, START + struct.pack("<QQ", 10**9, 0)), "larger"),
        "9,999 keys of nothing": (
            sparse("x.gguf", TB, START + struct.pack("<QQ", 0, 9999)), "comes twice"),
    }  # fmt: skip
    assert gguf_is_whole()
    return result | {f"gguf: {name}": Case("gguf", *made) for name, made in tera.items()}


def gguf_is_whole() -> bool:
    """Whether the file that the others are made from is read, so that each is refused for its fault."""
    import tempfile
    from pathlib import Path

    from edgeft.weights import gguf_reader
    from edgeft.weights.gguf_check import problems

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        path.write_bytes(gguf(vocabulary(2, AB, number("tokenizer.ggml.eos_token_id", 1))))
        return not list(problems(gguf_reader.read(path), language_model=True))
