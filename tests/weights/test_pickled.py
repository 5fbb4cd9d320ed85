"""Files of torch.save are read as torch reads them, and nothing in them is run."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.weights.checkpoint import READABLE, Checkpoint
from edgeft.weights.pickled import read_pickled


def tensors() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    whole = torch.randn(6, 8)
    return {
        "matrix": whole,
        "its rows": whole[2:4],
        "its columns": whole[:, 3:5],
        "transposed": torch.randn(3, 5).T,
        "three": torch.randn(2, 3, 4).permute(2, 0, 1),
        "vector": torch.randn(7)[::2],
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "half": torch.randn(3, 4).half(),
        "bfloat": torch.randn(3, 4).bfloat16(),
        "double": torch.randn(2).double(),
        "empty": torch.randn(0, 4),
        "ids": torch.arange(4),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["", "OrderedDict", "state_dict"])
def test_tensors_are_those_of_torch(tmp_path: Path, zipped: bool, wrap: str) -> None:
    import torch

    expected: Any = tensors()
    content = {"": expected, "OrderedDict": collections.OrderedDict(expected),
               "state_dict": {"epoch": 3, "state_dict": expected, "lr": 0.1}}[wrap]  # fmt: skip
    file = tmp_path / "x.bin"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    weights = Checkpoint(file)
    assert set(weights.tensors) == set(expected)
    assert weights.tensors["ids"].dtype == "I64"
    for name, tensor in expected.items():
        assert weights.tensors[name].shape == tuple(tensor.shape)
        if weights.tensors[name].dtype in READABLE:
            values = tensor.detach().float().numpy()
            np.testing.assert_array_equal(weights.read(name), values)
            rows = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values
            np.testing.assert_array_equal(weights.rows(name, slice(1, 2)), rows[1:2])


def test_state_dict_of_a_module(tmp_path: Path) -> None:
    """It is an OrderedDict with the versions of its modules as an attribute."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.save(model.state_dict(), tmp_path / "x.pt")
    weights = Checkpoint(tmp_path / "x.pt")
    np.testing.assert_array_equal(weights.read("0.weight"), model[0].weight.detach().numpy())


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def _zip(path: Path, program: bytes, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", program)
        for name, content in more.items():
            archive.writestr(f"x/{name}", content)
    return path


def test_nothing_but_tensors_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    complex_ = tensors() | {"complex": torch.zeros(2, dtype=torch.complex64)}
    for zipped in (True, False):
        for content, says in (
            ({"x": Hostile()}, "names posix.mkdir"),
            ({"x": tensors(), "y": torch.nn.Linear(2, 2)}, "names torch.nn.modules.linear.Linear"),
            (complex_, "names torch.ComplexFloatStorage"),
            ([1, 2], "holds no dict of tensors"),
            ({"a": 1}, "holds no dict of tensors"),
        ):
            torch.save(content, "x.pt", _use_new_zipfile_serialization=zipped)
            with pytest.raises(InputError, match=says):
                read_pickled(Path("x.pt"))
    assert not Path("ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_hostile_programs_end_in_one_line(tmp_path: Path, protocol: int) -> None:
    file = _zip(tmp_path / "x.pt", pickle.dumps({"x": Hostile()}, protocol))
    with pytest.raises(InputError) as caught:
        read_pickled(file)
    assert "\n" not in str(caught.value) and "mkdir" in str(caught.value)


def test_crafted_programs(tmp_path: Path) -> None:
    """Stack and memo that do not exist, keys whose hash takes for ever, a reference to itself."""
    nested = b"K\x01" + b"q\x000h\x00h\x00\x86" * 60
    for program in (
        b"", b".", b"0.", b"R.", b"h\x05.", b"}]K\x01s.", b"}(K\x01u.", b"]]e.", b"cposix\nsystem\n.",
        b"}" + nested + b"K\x01s.", b"(((((((", b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
        b"r\xff\xff\xff\xff.", b"Q.", b"}X\x01\x00\x00\x00aK\x01KQ.", b"\x8a\xff.", b"I" + b"9" * 9000 + b"\n.",
        b"ctorch\nFloatStorage\n)R.", b"ctorch._utils\n_rebuild_tensor_v2\n)R.", b"\x88" * 500 + b".",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", b"X\xff\xff\xff\x7f.",
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            read_pickled(_zip(tmp_path / "x.pt", program))
        assert "\n" not in str(caught.value)


def test_tensors_outside_their_storage(tmp_path: Path) -> None:
    import torch

    torch.save({"x": torch.arange(12.0).reshape(3, 4)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        program, root = archive.read(name), name.removesuffix("data.pkl")
        stored = archive.read(f"{root}data/0")
    assert program.count(b"K\x03K\x04\x86") == 1
    for shape in (b"K\x04K\x04\x86", b"K\xffK\xff\x86", b"J\xff\xff\xff\xffK\x04\x86",
                  b"\x88K\x04\x86", b"NK\x04\x86"):  # fmt: skip
        file = _zip(
            tmp_path / "x.pt", program.replace(b"K\x03K\x04\x86", shape), **{"data/0": stored}
        )
        with pytest.raises(InputError, match="damaged"):
            read_pickled(file)
    with pytest.raises(InputError, match="storage 0 is cut off"):
        read_pickled(_zip(tmp_path / "x.pt", program, **{"data/0": stored[:-1]}))
    expanded = torch.zeros(1, 1).expand(1000, 1000)
    torch.save({"x": expanded}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="of 1 values"):
        read_pickled(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_every_damage_is_one_line(tmp_path: Path, zipped: bool) -> None:
    import torch

    file = tmp_path / "x.bin"
    torch.save({"a": torch.randn(3, 4), "b": torch.randn(2)}, file,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    whole, draw = bytearray(file.read_bytes()), np.random.default_rng(0)
    refused = 0
    for i in range(300):
        damaged = whole[: int(draw.integers(len(whole)))] if i % 3 == 0 else bytearray(whole)
        for position in draw.integers(0, max(1, min(len(damaged), 600)), 3):
            if damaged:
                damaged[position] = draw.integers(256)
        file.write_bytes(damaged)
        try:
            read_pickled(file)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100
