"""The oracle is a loop over single bits; folders are held to what a user's disk may hold."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Checkpoint, Spec, stored_as, write_safetensors
from helpers.tiny import make_base, some_codes, write_gptq

pytestmark = pytest.mark.unit

BITS = [2, 3, 4, 8]


def bit_stream(fields: list[int], bits: int) -> list[int]:
    """Signed words of 32 bits, the bits of the fields one after the other, the lowest first."""
    stream = [field >> bit & 1 for field in fields for bit in range(bits)]
    words = [stream[at : at + 32] for at in range(0, len(stream), 32)]
    unsigned = [sum(bit << place for place, bit in enumerate(word)) for word in words]
    return [word - 2**32 if word >= 2**31 else word for word in unsigned]


@pytest.mark.parametrize("offset", [1, 0])
@pytest.mark.parametrize("bits", BITS)
def test_words_bit_by_bit(bits: int, offset: int) -> None:
    codes = some_codes(64, 96, bits, group=32, sym=False)
    arrays = gptq_layout.pack(codes, offset)
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "qweight": "int32", "qzeros": "int32", "scales": "float16", "g_idx": "int32"
    }  # fmt: skip
    assert arrays["qweight"].shape == (96 * bits // 32, 64)
    for row in range(64):
        assert arrays["qweight"][:, row].tolist() == bit_stream(codes.codes[row].tolist(), bits)
    for group in range(3):
        stored = [int(zero) - offset for zero in codes.zeros[:, group]]
        assert arrays["qzeros"][group].tolist() == bit_stream(stored, bits)
    np.testing.assert_array_equal(arrays["scales"], codes.scales.T)


def test_three_bits_are_placed_as_in_autogptq() -> None:
    """10 codes, 2 bits of the 11th; its third, 10 codes, 1 bit of the 22nd; its others, 10 codes."""
    codes = some_codes(32, 32, 3, group=32, sym=True)
    x = codes.codes[5].astype(np.int64).tolist()
    one = sum(x[i] << 3 * i for i in range(10)) | (x[10] & 3) << 30
    two = x[10] >> 2 | sum(x[11 + i] << 3 * i + 1 for i in range(10)) | (x[21] & 1) << 31
    three = x[21] >> 1 | sum(x[22 + i] << 3 * i + 2 for i in range(10))
    words = gptq_layout.pack(codes)["qweight"][:, 5].view(np.uint32)
    assert words.tolist() == [one, two, three]


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_unpack_reverses_pack_for_any_rows(bits: int, order: bool) -> None:
    codes = some_codes(64, 96, bits, group=48, sym=False, order=order)
    want = [
        [float(codes.scales[r, g]) * (int(codes.codes[r, c]) - int(codes.zeros[r, g]))
         for c, g in enumerate(codes.groups)]
        for r in range(64)
    ]  # fmt: skip
    assert codes.values().dtype == np.float32
    np.testing.assert_array_equal(codes.values(), np.array(want))
    arrays = gptq_layout.pack(codes)
    picks: list[gptq_layout.Rows] = [
        slice(None), slice(7, 41), slice(60, 99), np.array([63, 0, 17, 17]), np.array([], np.intp)
    ]  # fmt: skip
    for rows in picks:
        found = gptq_layout.unpack(arrays, rows)
        np.testing.assert_array_equal(found.values(), codes.take(rows).values())
        np.testing.assert_array_equal(found.zeros, codes.zeros[rows])
        assert (found.bits, found.scales.dtype) == (bits, np.float16)


def test_zero_stored_as_minus_one_is_read_as_0() -> None:
    codes = some_codes(32, 32, 4, group=32, sym=False)
    arrays = gptq_layout.pack(codes)
    arrays["qzeros"][0, 1] = -1
    zeros = gptq_layout.unpack(arrays).zeros[:, 0]
    assert zeros[8:16].tolist() == [0] * 8
    np.testing.assert_array_equal(
        np.delete(zeros, range(8, 16)), np.delete(codes.zeros[:, 0], range(8, 16))
    )


def change(**changes: Any) -> gptq_layout.Codes:
    return dataclasses.replace(some_codes(32, 32, 4, group=32, sym=True), **changes)


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (change(zeros=np.zeros((32, 1), np.uint8)), "a zero is not between 1 and 15"),
        (change(zeros=np.full((32, 1), 16, np.uint8)), "a zero is not between 1 and 15"),
        (change(codes=np.full((32, 32), 16, np.uint8)), "a code is more than 15"),
        (change(codes=np.zeros((30, 32), np.uint8)), "multiples of 8, not 30 rows"),
        (change(bits=3), "a code is more than 7"),
        (change(bits=5), "5 bits are none of"),
        (change(scales=np.full((32, 1), np.nan, np.float16)), "finite float16"),
        (change(scales=np.ones((32, 1), np.float32)), "finite float16"),
        (change(scales=np.ones((32, 2), np.float16)), "do not fit together"),
        (change(groups=np.ones(32, np.int32)), "a group that does not exist"),
    ],
)  # fmt: skip
def test_codes_that_the_layout_cannot_hold_are_refused(codes: gptq_layout.Codes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        gptq_layout.pack(codes)


def test_v2_stores_a_zero_of_0() -> None:
    codes = change(zeros=np.zeros((32, 1), np.uint8))
    assert not gptq_layout.unpack(gptq_layout.pack(codes, offset=0), offset=0).zeros.any()


def test_gptq_folder_is_read_like_any_other(tmp_path: Path, tiny_base: Path) -> None:
    folder, made = write_gptq(tiny_base, tmp_path / "q", bits=3, group=32, sym=False)
    ours, plain = Checkpoint(folder), Checkpoint(tiny_base)
    assert ours.tensors.keys() == plain.tensors.keys()
    for name, info in plain.tensors.items():
        assert ours.tensors[name].shape == info.shape
        ours.tensors[name].check_float(name)
        if name in made:
            assert ours.tensors[name].dtype == "GPTQ"
            np.testing.assert_array_equal(ours.read(name), made[name].values())
            part = ours.codes(name, slice(3, 9))
            assert part is not None
            np.testing.assert_array_equal(part.codes, made[name].codes[3:9])
        else:
            assert ours.codes(name) is None
            np.testing.assert_array_equal(ours.read(name), plain.read(name))


def test_block_of_rows_takes_the_memory_of_a_block(tmp_path: Path) -> None:
    big = some_codes(4096, 1024, 4, group=128, sym=True)
    arrays = gptq_layout.pack(big)
    kinds = {name: "F16" if name == "scales" else "I32" for name in arrays}
    specs = [Spec(f"big.{name}", kinds[name], array.shape) for name, array in arrays.items()]
    write_safetensors(tmp_path / "model.safetensors", specs, arrays.values())
    config = {"quantization_config": gptq_layout.quantization_config(4, 128)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = Checkpoint(tmp_path)
    tracemalloc.start()
    found = weights.rows("big.weight", slice(4000, 4032))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, big.take(slice(4000, 4032)).values())
    assert peak < 1_000_000, "the whole layer is 16 MB in float32 and 2 MB in codes"


@pytest.mark.parametrize("kind", ["BF16", "F32"])
def test_scales_of_other_types(tmp_path: Path, tiny_base: Path, kind: str) -> None:
    folder, made = write_gptq(tiny_base, tmp_path / "q", scales=kind)
    for name, codes in made.items():
        scales = stored_as(codes.scales.astype(np.float32), kind)
        want = dataclasses.replace(codes, scales=scales).values()
        np.testing.assert_array_equal(Checkpoint(folder).read(name), want)


def test_early_autogptq_folders_and_v2(tmp_path: Path, tiny_base: Path) -> None:
    old, made = write_gptq(tiny_base, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    own = config.pop("quantization_config")
    (old / "config.json").write_text(json.dumps(config))
    own = {key: own[key] for key in ("bits", "group_size", "desc_act", "sym")}
    (old / "quantize_config.json").write_text(json.dumps(own))
    (old / "model.safetensors").rename(old / "gptq_model-4bit-32g.safetensors")
    new, _ = write_gptq(tiny_base, tmp_path / "new", offset=0, checkpoint_format="gptq_v2")
    for folder in (old, new):
        for name, codes in made.items():
            np.testing.assert_array_equal(Checkpoint(folder).read(name), codes.values())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"checkpoint_format": "marlin"}, "checkpoint format 'marlin' cannot be read"),
        ({"is_marlin_format": True}, "checkpoint format 'marlin' cannot be read"),
        ({"checkpoint_format": None, "format": "gptq_p"}, "checkpoint format 'gptq_p'"),
        ({"bits": 8}, "model.layers.0.self_attn.q_proj has 4 bits, config.json says 8"),
        ({"bits": 5}, "codes of 5 bits in int32"),
        ({"bits": "4"}, "codes of 4 bits in int32"),
        ({"pack_dtype": "int64"}, "codes of 4 bits in int64"),
    ],
)
def test_unreadable_settings_are_refused(
    tmp_path: Path, tiny_base: Path, config: dict[str, Any], says: str
) -> None:
    folder, _ = write_gptq(tiny_base, tmp_path / "q")
    whole = json.loads((folder / "config.json").read_text())
    whole["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match=says) as caught:
        Checkpoint(folder)
    assert caught.value.hint and "\n" not in str(caught.value)


def test_layers_of_several_widths(tmp_path: Path, tiny_base: Path) -> None:
    folder, _ = write_gptq(tiny_base, tmp_path / "q", dynamic={r".*q_proj": {"bits": 8}})
    eight = some_codes(128, 64, 8, group=32, sym=True)
    parts = {f"{LAYER}.{part}": array for part, array in gptq_layout.pack(eight).items()}
    rewrite(folder, lambda arrays: arrays | parts)
    np.testing.assert_array_equal(Checkpoint(folder).read(f"{LAYER}.weight"), eight.values())


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of a file, as the safetensors library sees them."""
    from safetensors.numpy import load_file, save_file

    save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors")


LAYER = "model.layers.1.mlp.up_proj"
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no scales": (
        lambda a: {n: v for n, v in a.items() if n != f"{LAYER}.scales"}, f"{LAYER} lacks scales"
    ),
    "no g_idx and zeros": (
        lambda a: {n: v for n, v in a.items() if n not in (f"{LAYER}.g_idx", f"{LAYER}.qzeros")},
        f"{LAYER} lacks qzeros, g_idx",
    ),
    "only scales": (
        lambda a: {n: v for n, v in a.items() if n != f"{LAYER}.qweight"}, "but no qweight"
    ),
    "scales of another shape": (
        lambda a: a | {f"{LAYER}.scales": a[f"{LAYER}.scales"][:, :-8]},
        f"{LAYER}: its tensors do not fit together: qweight",
    ),
    "zeros of another shape": (
        lambda a: a | {f"{LAYER}.qzeros": a[f"{LAYER}.qzeros"][:-1]}, "do not fit together"
    ),
    "flat": (
        lambda a: a | {f"{LAYER}.qweight": a[f"{LAYER}.qweight"].reshape(-1)}, "do not fit together"
    ),
    "words of 16 bits": (
        lambda a: a | {f"{LAYER}.qweight": a[f"{LAYER}.qweight"].astype(np.int16)},
        "stored as qweight I16, qzeros I32, scales F16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_layer_is_named(tmp_path: Path, tiny_base: Path, case: str) -> None:
    edit, says = DAMAGES[case]
    folder, _ = write_gptq(tiny_base, tmp_path / "q")
    rewrite(folder, edit)
    with pytest.raises(InputError, match=says) as caught:
        Checkpoint(folder)
    assert "model.safetensors: layer" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [-1, 2])
def test_missing_groups_are_refused(tmp_path: Path, tiny_base: Path, index: int) -> None:
    folder, _ = write_gptq(tiny_base, tmp_path / "q")
    rewrite(folder, lambda a: a | {f"{LAYER}.g_idx": np.full(64, index, np.int32)})
    with pytest.raises(InputError, match=f"g_idx of {LAYER}.weight names groups that it lacks"):
        Checkpoint(folder).read(f"{LAYER}.weight")


def test_integers_are_written_unchanged(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    words = np.array([[-(2**31), 2**31 - 1, 16_777_217]], np.int32)
    write_safetensors(tmp_path / "x.safetensors", [Spec("x", "I32", (1, 3))], [words])
    found = load_file(tmp_path / "x.safetensors")["x"]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, words)


def test_base_has_no_codes(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    assert Checkpoint(base).codes("model.norm.weight") is None
