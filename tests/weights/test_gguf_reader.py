"""The oracle is gguf.GGUFReader; files that were cut or changed come to one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.report.describe import describe
from edgeft.weights import gguf_reader

SCALARS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32",
           "float64", "bool")  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A value of every type, arrays, and tensors of one to three dimensions."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    path = tmp_path_factory.mktemp("header") / "x.gguf"
    writer = GGUFWriter(path, "llama")
    for i, name in enumerate(SCALARS):
        getattr(writer, f"add_{name}")(f"x.{name}", i % 2 == 0 if name == "bool" else i + 1)
    writer.add_string("x.string", "größer\n")
    writer.add_array("x.texts", ["a", "", "ü"] * 7)
    writer.add_array("x.floats", [0.1, -1.5])
    writer.add_array("x.bools", [True, False])
    writer.add_custom_alignment(64)
    draw = np.random.default_rng(0)
    writer.add_tensor("vector", draw.normal(size=7).astype(np.float32))
    writer.add_tensor("matrix", draw.normal(size=(3, 5)).astype(np.float16))
    q4 = GGMLQuantizationType.Q4_1
    packed = quantize(draw.normal(size=(2, 3, 64)).astype(np.float32), q4)
    writer.add_tensor("experts", packed, raw_dtype=q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_content_is_that_of_ggufreader(file: Path) -> None:
    from gguf import GGUFReader, dequantize

    theirs, ours = GGUFReader(file), gguf_reader.read(file)
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.meta == fields and len(fields) == len(SCALARS) + 6
    assert [type(ours.meta[key]) for key in fields] == [type(value) for value in fields.values()]
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for wanted, found in zip(theirs.tensors, ours.tensors.values(), strict=True):
        assert found.shape == tuple(reversed(wanted.shape.tolist()))
        assert (found.type, found.offset) == (wanted.tensor_type, wanted.data_offset)
        assert (found.count, found.size) == (wanted.n_elements, wanted.n_bytes)
        values = dequantize(gguf_reader.data(ours, found), found.type)
        np.testing.assert_array_equal(values, dequantize(wanted.data, wanted.tensor_type))
        assert values.shape == found.shape


def test_large_vocabulary_is_fast(tmp_path: Path) -> None:
    """Counted and not timed: one pass over the texts, with nothing else made of them."""
    import tracemalloc

    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    tokens = [f"token {i}" for i in range(100_000)]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tracemalloc.start()
    header = gguf_reader.read(tmp_path / "x.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.meta["tokenizer.ggml.tokens"] == tokens
    assert peak < 200 * len(tokens)


def refused(path: Path, content: bytes, says: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        gguf_reader.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


def test_truncated_file_is_one_line(file: Path, tmp_path: Path) -> None:
    whole, header = file.read_bytes(), gguf_reader.read(file)
    last = max(header.tensors.values(), key=lambda tensor: tensor.offset)
    first = min(tensor.offset for tensor in header.tensors.values())
    ends = [*range(0, first, 5), *range(first, last.offset + last.size, 40)]
    for end in [*ends, last.offset + last.size - 1]:
        refused(tmp_path / "x.gguf", whole[:end], "is not a whole GGUF file: ")
    (tmp_path / "x.gguf").write_bytes(whole[: last.offset + last.size])  # padding is not missed
    assert gguf_reader.read(tmp_path / "x.gguf").meta == header.meta


def start(tensors: int, values: int, *more: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + b"".join(more)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    counts = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + counts + struct.pack("<IQ", kind, offset)


HUGE = 2**64 - 1
HOSTILE: dict[str, tuple[bytes, str]] = {
    "another kind": (b"PK\3\4" + bytes(60), "it does not begin with GGUF"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0), "unknown version 1"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "unknown version 50331648"),
    "many values": (start(0, HUGE), "ends within its header"),
    "many tensors": (start(HUGE, 0), "ends within its header"),
    "a long key": (start(0, 1, struct.pack("<Q", HUGE), b"a" * 99), "ends within its header"),
    "a long array": (start(0, 1, text(b"a"), struct.pack("<IIQ", 9, 4, HUGE)), "ends within"),
    "many texts": (start(0, 1, text(b"a"), struct.pack("<IIQ", 9, 8, HUGE)), "ends within"),
    "arrays of arrays": (
        start(0, 1, text(b"a"), struct.pack("<IIQ", 9, 9, 1)), "unknown type of value 9"),
    "unknown value": (start(0, 1, text(b"a"), struct.pack("<I", 13)), "unknown type of value 13"),
    "not UTF-8": (start(0, 1, text(b"\xff"), struct.pack("<IB", 0, 1)), "can't decode"),
    "a key twice": (start(0, 2, *[text(b"a\n"), struct.pack("<IB", 0, 1)] * 2), "comes twice"),
    "no alignment": (
        start(0, 1, text(b"general.alignment"), struct.pack("<II", 4, 0)), "general.alignment"),
    "alignment of text": (
        start(0, 1, text(b"general.alignment"), struct.pack("<I", 8), text(b"x")),
        "general.alignment"),
    "a tensor twice": (start(2, 0, tensor(b"a", [0]), tensor(b"a", [0])), "'a' comes twice"),
    "dimensions": (start(1, 0, text(b"a"), struct.pack("<I", HUGE % 2**32)), "dimensions"),
    "unknown type": (start(1, 0, tensor(b"a", [1], kind=999)), "999 is not a valid"),
    "part of a block": (start(1, 0, tensor(b"a", [33], kind=2)), "33 columns, Q4_0 goes by 32"),
    "a large tensor": (start(1, 0, tensor(b"a", [HUGE] * 4)), "before the end of 'a'"),
    "far away": (start(1, 0, tensor(b"a" * 10**5, [1], offset=HUGE)), "before the end of 'aaa"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(tmp_path: Path, case: str) -> None:
    content, says = HOSTILE[case]
    refused(tmp_path / "x.gguf", content, says)


def test_any_changed_byte_is_read_or_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    end = min(tensor.offset for tensor in gguf_reader.read(file).tensors.values())
    draw, changed = np.random.default_rng(0), tmp_path / "x.gguf"
    outcomes: list[Any] = []
    for _ in range(400):
        content = bytearray(whole)
        for at in draw.integers(0, end, 3):
            content[at] = draw.integers(0, 256)
        changed.write_bytes(content)
        try:
            outcomes.append(describe(changed))
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.append(None)
    assert 0 < outcomes.count(None) < len(outcomes)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="is not a whole GGUF file"):
            gguf_reader.read(path)
