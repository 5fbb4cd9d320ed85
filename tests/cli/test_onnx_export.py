"""`edgeft merge-export --format onnx`, and its folders in every command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import store
from edgeft.merge.view import Merged
from edgeft.runtimes.protocol import open_runtime
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.weights.checkpoint import Checkpoint
from edgeft.weights.onnx_graph import ONNXGraph
from helpers.families import TINY, make_tiny
from helpers.tiny import make_chats, some_codes, write_gptq

Run = Callable[..., Any]
Family = Callable[[str], tuple[Path, Path, Any]]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return make_chats(tmp_path / "chats.jsonl", 12)


def export(edgeft: Run, base: Path, out: Path, *more: object) -> dict[str, Any]:
    ran = edgeft("merge-export", "--base", base, "--out", out, "--format", "onnx", "--json", *more)
    assert ran.code == 0, ran.err
    return {entry["quant"]: entry for entry in json.loads(ran.out)["artifacts"]}


def test_every_quantization_is_verified_and_smaller_than_the_previous_one(
    edgeft: Run, make: Family, chats: Path, tmp_path: Path
) -> None:
    base, adapter, _ = make("llama")
    made = export(
        edgeft, base, tmp_path, "--adapter", adapter, "--calibration", chats,
        "--quant", "f32,int8,int4-mixed,gptq-int4,int4",
    )  # fmt: skip
    assert list(made) == ["f32", "int8", "int4-mixed", "gptq-int4", "int4"]
    kl = {quant: entry["parity"]["live"]["kl"] for quant, entry in made.items()}
    assert kl["f32"] < 1e-9 and kl["f32"] < kl["int8"] < kl["int4-mixed"] < kl["int4"]
    assert (
        made["f32"]["parity"]["greedy"]["tokens"]
        and not made["f32"]["parity"]["greedy"]["near_ties"]
    )
    assert made["f32"]["proof"]["tensors"] == 14 and abs(made["f32"]["proof"]["beta"] - 1) < 1e-6
    size = {quant: ONNXGraph(Path(entry["path"])).size for quant, entry in made.items()}
    assert size["f32"] > size["int8"] > size["int4-mixed"] > size["gptq-int4"] == size["int4"]
    solved = made["gptq-int4"]
    assert solved["quantized"] == 14 and solved["coded"] == 10 and solved["matrices"] == 12
    kinds = {quant: ONNXGraph(Path(entry["path"])).operators() for quant, entry in made.items()}
    assert kinds["int4"]["MatMulNBits (4 bits, 32 columns)"] == 10
    assert kinds["int4"]["MatMulNBits (8 bits, 32 columns)"] == 1
    assert kinds["int4"]["GatherBlockQuantized (8 bits, 32 columns)"] == 1
    assert "MatMulNBits (8 bits, 32 columns)" in kinds["int4-mixed"]
    assert not any("NBits" in name for name in kinds["f32"])


def test_the_group_size_sets_the_block_size(edgeft: Run, tiny_base: Path, tmp_path: Path) -> None:
    made = export(edgeft, tiny_base, tmp_path, "--group-size", "64", "--no-compare-live")
    graph = ONNXGraph(Path(made["int4"]["path"]))
    assert graph.operators()["MatMulNBits (4 bits, 64 columns)"] == 10
    again = edgeft("merge-export", "--base", tiny_base, "--out", tmp_path, "--format", "onnx",
                   "--group-size", "32", "--no-compare-live")  # fmt: skip
    assert again.code == 1 and "group_size" in again.err, again.err


@pytest.mark.parametrize(
    ("bits", "group", "sym"), [(4, 32, True), (4, 64, False), (2, 16, False), (8, 32, True)]
)
def test_gptq_codes_are_kept(
    edgeft: Run, tiny_base: Path, tmp_path: Path, bits: int, group: int, sym: bool
) -> None:
    folder, codes = write_gptq(tiny_base, tmp_path / "gptq", bits, group, sym, dtype="float32")
    made = export(edgeft, folder, tmp_path / "out", "--quant", "int4")["int4"]
    assert (made["coded"], made["inexact"]) == (10, 0) and len(codes) == 14
    values = dequantized(Path(made["path"]))
    stored = Checkpoint(folder)
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn"
        qkv = np.concatenate([stored.read(f"{name}.{part}_proj.weight") for part in "qkv"])
        np.testing.assert_array_equal(values[f"model.layers.{layer}.attn.qkv_proj.MatMul"], qkv)
        down = stored.read(f"model.layers.{layer}.mlp.down_proj.weight")
        np.testing.assert_array_equal(values[f"model.layers.{layer}.mlp.down_proj.MatMul"], down)


def dequantized(folder: Path) -> dict[str, Any]:
    """Every matrix of a MatMulNBits, as (rows, columns), by the documented layout alone."""
    import onnx

    model = onnx.load(folder / "model.onnx")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        about = {entry.name: entry.i for entry in node.attribute}
        bits, block, rows = about["bits"], about["block_size"], about["N"]

        def unpacked(blob: Any, bits: int = bits) -> Any:
            shifts = np.arange(0, 8, bits, dtype=np.uint8)
            return (blob[..., None] >> shifts & (2**bits - 1)).reshape(len(blob), -1)

        codes = unpacked(held[node.input[1]].reshape(rows, -1)).astype(np.float32)
        scales = held[node.input[2]].reshape(rows, -1)
        zeros = np.full_like(scales, 2 ** (bits - 1))
        if len(node.input) > 3:
            zeros = unpacked(held[node.input[3]].reshape(rows, -1))[:, : scales.shape[1]]
        codes -= np.repeat(zeros, block, axis=1)
        name = node.input[1].removesuffix(".codes")
        found[name] = (codes * np.repeat(scales, block, axis=1))[:, : about["K"]]
    return found


def test_activation_order_is_rounded_and_reported(
    edgeft: Run, tiny_base: Path, tmp_path: Path
) -> None:
    folder, _ = write_gptq(tiny_base, tmp_path / "gptq", order=True)
    ran = edgeft("merge-export", "--base", folder, "--format", "onnx", "--out", tmp_path / "out",
                 "--no-compare-live")  # fmt: skip
    assert ran.code == 0 and "10 of 11 matrices have codes that no block holds" in ran.err, ran.err


def test_adapter_on_a_gptq_base_is_rounded(
    edgeft: Run, make: Family, tiny_base: Path, tmp_path: Path
) -> None:
    _, adapter, _ = make("llama")
    base, _, _ = make("llama")
    folder, _ = write_gptq(base, tmp_path / "gptq")
    made = export(edgeft, folder, tmp_path / "out", "--adapter", adapter)["int4"]
    assert made["coded"] == 0 and made["proof"]["tensors"] == 14


def test_partly_adapted_matrix_is_not_reported_as_inexact(edgeft: Run, tmp_path: Path) -> None:
    base, adapter, _ = make_tiny(tmp_path, TINY["llama"], target_modules=["q_proj"])
    folder, _ = write_gptq(base, tmp_path / "gptq")
    made = export(edgeft, folder, tmp_path / "out", "--adapter", adapter, "--no-compare-live")[
        "int4"
    ]
    assert (made["coded"], made["inexact"]) == (8, 0)


def test_embedding_has_its_own_bits(
    edgeft: Run, make: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, _ = make("llama")
    head = some_codes(*Checkpoint(base).tensors["lm_head.weight"].shape, 2, 32, True)
    monkeypatch.setattr(Merged, "codes", lambda _, name: head if name.startswith("lm_") else None)
    made = export(edgeft, base, tmp_path, "--no-compare-live")["int4"]
    kinds = ONNXGraph(Path(made["path"])).operators()
    assert kinds["MatMulNBits (2 bits, 32 columns)"] == 1
    assert kinds["GatherBlockQuantized (8 bits, 32 columns)"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--quant", "int5"], "no quantization 'int5'"),
        (["--quant", "q4_0"], "--format gguf has"),
        (["--group-size", "-1"], "no blocks of -1 columns"),
        (["--imatrix", "auto"], "--imatrix is not for format onnx"),
        (["--asymmetric"], "--asymmetric is not for format onnx"),
        (["--quant", "gptq-int4", "--group-size", "128"], "blocks of 128 do not divide"),
        (["--quant", "gptq-int4"], "nothing to calibrate GPTQ on"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    edgeft: Run, make: Family, tmp_path: Path, options: list[str], says: str
) -> None:
    base, adapter, _ = make("llama")
    out = tmp_path / "out"
    if "128" in options:
        options = [*options, "--calibration", str(make_chats(tmp_path / "c.jsonl", 4))]
    ran = edgeft("merge-export", "--base", base, "--adapter", adapter, "--out", out,
                 "--format", "onnx", *options)  # fmt: skip
    assert ran.code == 1 and says in ran.err, ran.err
    assert ran.err.count("\n") == 1 and ran.err.endswith(")\n") and not out.exists()


def test_broken_run_leaves_no_artifact(
    edgeft: Run, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.converters.onnx import convert

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_configure", broken)
    out = tmp_path / "out"
    ran = edgeft(
        "merge-export", "--base", tiny_base, "--out", out, "--format", "onnx", "--no-compare-live"
    )
    assert ran.code and not ran.out
    assert not [path for path in out.rglob("*") if path.suffix in (".onnx", ".data")]


@pytest.mark.slow
def test_every_command_opens_the_folder(
    edgeft: Run, tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    export(edgeft, tiny_base, tmp_path, "--quant", "int4,f32", "--no-compare-live")
    folder, whole = tmp_path / "onnx-int4", tmp_path / "onnx-f32"
    assert not list(tmp_path.glob("*.Modelfile"))
    told = edgeft("inspect", folder)
    assert told.code == 0
    for line in ("format         onnx", "MatMulNBits (4 bits, 32 columns)", "<|im_end|>", "int4"):
        assert line in told.out, told.out
    told = edgeft("bench", folder, "--items", tiny_chats, "--scorer", "json", "--json")
    assert told.code == 0, told.err
    row = json.loads(told.out)
    assert re.search(r'"decode_tps": [\d.]+', json.dumps(row))
    told = edgeft("ab", folder, whole, "--items", tiny_chats, "--scorer", "json")
    assert told.code in (0, 3, 4), told.err
    assert store.read_manifest(folder) is not None
    assert store.identity(folder) != store.identity(whole), "scores are kept by identity"
    moved = folder.rename(tmp_path / "elsewhere")
    with open_runtime(moved) as model, ReferenceRuntime(tiny_base) as reference:
        assert model.chat == reference.chat
