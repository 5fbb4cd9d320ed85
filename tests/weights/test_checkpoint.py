"""The oracles are the safetensors library and torch; hostile files are InputErrors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import SafetensorError, safe_open
from safetensors import numpy as st_numpy

from edgeft.errors import InputError
from edgeft.weights.checkpoint import (
    MAX_HEADER_BYTES,
    Checkpoint,
    Spec,
    from_float32,
    stored_as,
    write_safetensors,
)

Array = npt.NDArray[np.float32]
SHAPES: dict[str, tuple[int, ...]] = {
    "embed": (17, 8), "norm": (8,), "scalar": (), "empty": (0, 4), "a.b": (2, 3, 5),
}  # fmt: skip


def some(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_safetensors_library_reads_written_files(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "model.safetensors"
    specs = [Spec(name, dtype, shape) for name, shape in SHAPES.items()]
    write_safetensors(file, specs, (some(spec.shape) for spec in specs))
    theirs = st_numpy.load_file(file)
    assert theirs.keys() == SHAPES.keys()
    for name, shape in SHAPES.items():
        want = some(shape).astype({"F32": np.float32, "F16": np.float16}[dtype])
        assert theirs[name].dtype == want.dtype and theirs[name].shape == shape
        np.testing.assert_array_equal(theirs[name], want)
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "pt"}, "transformers refuses a file without it"
    ours = Checkpoint(tmp_path)
    for name, shape in SHAPES.items():
        np.testing.assert_array_equal(ours.read(name), stored_as(some(shape), dtype))


def test_bf16_is_exchanged_with_torch(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = tmp_path / "ours.safetensors"
    specs = [Spec(name, "BF16", shape) for name, shape in SHAPES.items()]
    write_safetensors(file, specs, (some(spec.shape) for spec in specs))
    theirs = load_file(file)
    save_file(theirs, tmp_path / "theirs.safetensors")
    ours = Checkpoint(tmp_path / "theirs.safetensors")
    for name, shape in SHAPES.items():
        want = torch.from_numpy(some(shape)).to(torch.bfloat16)
        assert theirs[name].dtype == torch.bfloat16 and torch.equal(theirs[name], want)
        read = ours.read(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, want.float().numpy())


def test_bf16_rounding_is_that_of_torch() -> None:
    import torch

    high = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (high[:, None] | low).view(np.float32)
    values = values[~np.isnan(values)]
    want = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(from_float32(values, "BF16"), want)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_bf16_keeps_nan(bits: int) -> None:
    values = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(stored_as(values, "BF16")).all()


def test_shards_with_an_index(tmp_path: Path) -> None:
    shards = {
        "model-00001-of-00002.safetensors": {"a": some((3, 4)), "d": some((2,)).astype("f8")},
        "model-00002-of-00002.safetensors": {"b": some((5,)).astype("f2"), "c": some((1, 1))},
    }
    for name, tensors in shards.items():
        st_numpy.save_file(tensors, tmp_path / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    ours = Checkpoint(tmp_path)
    assert ours.tensors.keys() == weight_map.keys()
    for tensors in shards.values():
        for name, want in tensors.items():
            np.testing.assert_array_equal(ours.read(name), want.astype(np.float32))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="lacks the shard model-00002-of-00002.safetensors") as no:
        Checkpoint(tmp_path)
    assert no.value.hint == "download the model again"


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("x.safetensors", "y.safetensors"):
        st_numpy.save_file({"same": some((2,))}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"same": "x.safetensors", "other": "y.safetensors"}}')
    with pytest.raises(InputError, match="y.safetensors: tensor same is in two files"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", 3, ".."])
def test_index_cannot_leave_its_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / "model").mkdir()
    st_numpy.save_file({"a": some((2,))}, tmp_path / "x.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match=r"names a file outside its folder|lacks the shard \.\."):
        Checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}']
)
def test_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="index.json is not a safetensors index"):
        Checkpoint(tmp_path)


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model.safetensors in .*a Hugging Face model folder"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="names os.system, and not tensors alone"):
        Checkpoint(tmp_path)


def test_every_truncation_is_an_input_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    st_numpy.save_file({"a": some((3, 4)), "b": some((2,))}, whole)
    data = whole.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(InputError) as caught:
            Checkpoint(cut)
        assert str(cut) in str(caught.value)
    assert f"is truncated: {len(data) - 1} of {len(data)} bytes" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 101, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_impossible_header_size_is_refused(tmp_path: Path, size: int) -> None:
    file = tmp_path / "bomb.safetensors"
    file.write_bytes(struct.pack("<Q", size) + b"{}".ljust(100))
    if size == MAX_HEADER_BYTES + 1:
        with file.open("r+b") as stream:
            stream.truncate(2 * MAX_HEADER_BYTES)  # sparse: the size alone must not be refused
    with pytest.raises(InputError, match=rf"not a safetensors file \(header of {size} bytes\)"):
        Checkpoint(file)


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN: dict[str, Any] = {
    "not JSON": b"{]",
    "not UTF-8": b'{"\xff": 1}',
    "not an object": [1, 2],
    "deep": b"[" * 100_000,
    "entry is no object": {"a": 3},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "unknown dtype": {"a": entry(dtype="F3")},
    "dtype is a list": {"a": entry(dtype=[])},
    "shape is text": {"a": entry(shape="ab")},
    "negative shape": {"a": entry(shape=[-2], offsets=[0, -8])},
    "two negatives": {"a": entry(shape=[-1, -2])},
    "infinite shape": b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}',
    "three offsets": {"a": entry(offsets=[0, 8, 9])},
    "text offsets": {"a": entry(offsets=["0", "8"])},
    "negative offset": {"a": entry(offsets=[-8, 0])},
    "backwards": {"a": entry(offsets=[8, 0])},
    "too few bytes": {"a": entry(offsets=[0, 4])},
    "too many bytes": {"a": entry(offsets=[0, 12])},
    "overlap": {"a": entry(), "b": entry(offsets=[4, 12])},
    "the same bytes twice": {"a": entry(), "b": entry()},
    "a hole": {"a": entry(), "b": entry(offsets=[12, 20])},
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_header_is_refused(tmp_path: Path, case: str) -> None:
    file = write_raw(tmp_path / "model.safetensors", BROKEN[case], b"\0" * 64)
    with pytest.raises(SafetensorError):
        st_numpy.load_file(file)
    with pytest.raises(InputError, match="model.safetensors has a broken safetensors header") as no:
        Checkpoint(tmp_path)
    assert len(str(no.value)) < 500 + len(str(file))


def test_tensors_may_come_in_any_order(tmp_path: Path) -> None:
    header = {"b": entry(offsets=[8, 16]), "none": entry([0], [8, 8]), "a": entry()}
    data = np.arange(4, dtype="<f4").tobytes()
    ours = Checkpoint(write_raw(tmp_path / "x.safetensors", header, data))
    assert ours.read("a").tolist() == [0, 1] and ours.read("b").tolist() == [2, 3]
    assert ours.read("none").shape == (0,)


def test_reading_integers_is_refused(tmp_path: Path) -> None:
    st_numpy.save_file({"q": np.ones((2, 2), np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="tensor q is stored as I8") as caught:
        Checkpoint(tmp_path).read("q")
    assert "unquantized" in caught.value.hint


def test_arrays_must_fit_their_specs(tmp_path: Path) -> None:
    spec = Spec("a", "F32", (2, 2))
    with pytest.raises(ValueError, match=r"a: \(4,\) announced as \(2, 2\)"):
        write_safetensors(tmp_path / "x", [spec], [some((4,))])
    with pytest.raises(ValueError, match="shorter"):
        write_safetensors(tmp_path / "x", [spec, spec], [some((2, 2))])
