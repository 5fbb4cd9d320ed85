"""The file format, both ways; what llama-quantize would make of it; files that are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.weights.imatrix import Imatrix, Sums, read, write

pytestmark = pytest.mark.unit

DENSE, ROUTED = "blk.0.attn_q.weight", "blk.1.ffn_up_exps.weight"


def sums(values: Any, counts: Any) -> Sums:
    return Sums(np.array(values, np.float32), np.array(counts, np.float32))


IMATRIX = Imatrix(
    {
        ROUTED: sums([[1, 2, 4], [0, 0, 0], [9, 0, 3]], [2, 0, 3]),
        DENSE: sums([[0.5, 8, 1e-9, 1e9]], [4]),
    },
    ("chats.jsonl", "größer.txt"),
    chunk_size=512,
    chunk_count=3,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(IMATRIX, tmp_path / "imatrix.gguf")
    return tmp_path / "imatrix.gguf"


def test_written_file_is_read_back(file: Path) -> None:
    found = read(file)
    assert (found.datasets, found.chunk_size, found.chunk_count) == (IMATRIX.datasets, 512, 3)
    assert set(found.tensors) == set(IMATRIX.tensors)
    for name, wanted in IMATRIX.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].in_sum2, wanted.in_sum2)
        np.testing.assert_array_equal(found.tensors[name].counts, wanted.counts)


def test_file_is_that_of_save_imatrix(file: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader

    reader = GGUFReader(file)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == [
        "general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size",
    ]  # fmt: skip
    assert reader.fields["general.type"].contents() == "imatrix"
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes == {
        f"{DENSE}.in_sum2": [4, 1],
        f"{DENSE}.counts": [1, 1],
        f"{ROUTED}.in_sum2": [3, 3],
        f"{ROUTED}.counts": [1, 3],
    }
    assert {tensor.tensor_type for tensor in reader.tensors} == {GGMLQuantizationType.F32}


def test_importance_is_the_mean_and_1_for_an_unused_expert() -> None:
    routed, dense = IMATRIX.importance(ROUTED), IMATRIX.importance(DENSE)
    assert routed is not None and dense is not None and routed.dtype == np.float32
    np.testing.assert_array_equal(routed, np.float32([[0.5, 1, 2], [1, 1, 1], [3, 0, 1]]))
    np.testing.assert_array_equal(dense, np.float32([[0.125, 2, 2.5e-10, 2.5e8]]))
    assert IMATRIX.importance("output.weight") is None


def test_one_row_may_be_of_all_matrices_of_a_weight(tmp_path: Path) -> None:
    """llama-imatrix writes one count for a weight of three dimensions that has no experts."""
    from gguf import GGUFWriter

    with_one_count = tmp_path / "i.gguf"
    writer = GGUFWriter(with_one_count, "")
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    writer.add_tensor("w.in_sum2", np.float32([2, 4, 6, 8]))
    writer.add_tensor("w.counts", np.float32([1.9999]))
    finish(writer)
    found = read(with_one_count).importance("w")
    np.testing.assert_array_equal(found, np.float32([[1, 2, 3, 4]]))


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GOOD: dict[str, Any] = {"w.in_sum2": np.float32([1, 2]), "w.counts": np.float32([1])}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no tensors": ({}, "holds no sums"),
    "no counts": ({"w.in_sum2": GOOD["w.in_sum2"]}, "sums without counts"),
    "odd counts": (GOOD | {"w.counts": np.float32([1, 1, 1])}, "2 sums for 3 counts"),
    "half precision": (GOOD | {"w.in_sum2": np.float16([1, 2])}, "not float32"),
    "not finite": (GOOD | {"w.in_sum2": np.float32([1, np.inf])}, "not finite"),
    "counts not finite": (GOOD | {"w.counts": np.float32([np.nan])}, "not finite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_impossible_content_is_one_line(case: str, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    tensors, says = BROKEN[case]
    writer = GGUFWriter(tmp_path / "i.gguf", "")
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    finish(writer)
    with pytest.raises(InputError, match=says) as caught:
        read(tmp_path / "i.gguf")
    assert "\n" not in str(caught.value)


def test_gguf_model_is_refused(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "i.gguf", "llama")
    writer.add_tensor("w.in_sum2", np.float32([1]))
    finish(writer)
    with pytest.raises(InputError, match=r"imatrix\.datasets is missing"):
        read(tmp_path / "i.gguf")


def test_other_files_are_one_line(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such"):
        read(tmp_path / "absent.gguf")
    legacy = tmp_path / "imatrix.dat"
    legacy.write_bytes((1).to_bytes(4, "little") * 8)
    with pytest.raises(InputError, match="--in-file it also converts"):
        read(legacy)


def test_truncated_file_is_one_line(file: Path, tmp_path: Path) -> None:
    whole, cut = file.read_bytes(), tmp_path / "cut.gguf"
    # The last tensor's bytes are followed by padding, which nobody misses.
    for size in [*range(0, len(whole) - 32, 7), len(whole) - 33]:
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a whole GGUF file") as caught:
            read(cut)
        assert "\n" not in str(caught.value)
