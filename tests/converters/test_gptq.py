"""Exported folders of GPTQ, held to what the solver stored, and repacked to the bit."""

from __future__ import annotations

import importlib.metadata
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Family
from safetensors.numpy import load_file

from edgeft.converters import gptq
from edgeft.converters.gguf.convert import gptq_blocks
from edgeft.converters.gguf.plan import make_plan
from edgeft.converters.options import ConvertOptions
from edgeft.converters.repacked import repacked_gguf
from edgeft.errors import FormatError
from edgeft.gptq.quantize import Calibration, linears, quantize_blocks
from edgeft.gptq.solver import UniformGrid
from edgeft.merge.view import Merged, open_merged
from edgeft.weights.checkpoint import Checkpoint
from helpers.converting import convert


def learn(folder: Path) -> Calibration:
    draw = random.Random(0)
    return Calibration([[draw.randrange(200) for _ in range(40)] for _ in range(8)], folder)


def gptq_folder(
    make: Family, case: str, folder: Path, quant: str = "4bit", **options: Any
) -> tuple[Merged, Path, dict[str, Any]]:
    merged, out = open_merged(make(case)[0], None), folder / "out"
    out.mkdir()
    learned = learn(folder / "blocks")
    converted = convert(merged, out, quant, format="gptq", calibration=learned, **options)
    return merged, out, converted.facts


def config(out: Path) -> Any:
    return json.loads((out / "config.json").read_text())


def solver_values(
    merged: Merged, folder: Path, kind: UniformGrid
) -> dict[str, npt.NDArray[np.float32]]:
    """The same blocks once more: the files that `convert` left are read, nothing is solved."""
    solved = quantize_blocks(merged, dict.fromkeys(linears(merged), kind), learn(folder), 2)
    return {name: kind.values(solved.read(name)) for name in linears(merged)}


@pytest.mark.parametrize(
    ("case", "bits", "group", "symmetric"),
    [
        ("llama", 4, None, True), ("llama-linear", 3, 32, True), ("qwen2", 8, -1, True),
        ("phi3", 4, 32, False), ("pythia", 2, 32, True), ("mixtral", 4, None, True),
        ("deepseek2-lite", 4, None, True), ("qwen2_moe", 4, None, False), ("olmoe", 8, 32, False),
    ],
)  # fmt: skip
def test_the_folder_holds_what_the_solver_found(
    make: Family, tmp_path: Path, case: str, bits: int, group: int | None, symmetric: bool
) -> None:
    options = {"group_size": group, "symmetric": symmetric}
    merged, out, facts = gptq_folder(make, case, tmp_path, f"{bits}bit", **options)
    read, wanted = Checkpoint(out), linears(merged)
    kind = UniformGrid(bits, facts["group_size"], symmetric)
    assert facts["quantized"] == len(wanted) and facts["damp"] == 0.01
    values = solver_values(merged, tmp_path / "blocks", kind)
    assert set(read.tensors) == set(merged.shapes), "biases, routers, heads: nothing more or less"
    for name in merged.shapes:
        found = read.read(name)
        if name in values:
            np.testing.assert_array_equal(found, values[name], name)
            assert read.layer(name) is not None
        else:
            assert read.tensors[name].dtype == "F16"
            np.testing.assert_array_equal(found, merged.tensor(name).astype(np.float16), name)
    about = config(out)["quantization_config"]
    assert about == json.loads((out / "quantize_config.json").read_text())
    assert (about["bits"], about["sym"], about["desc_act"]) == (bits, symmetric, False)
    assert about["group_size"] == kind.columns and about["damp_percent"] == 0.01
    assert config(out)["dtype"] == "float16"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (merged.base / name).read_bytes()


def bits_of(words: npt.NDArray[np.int32], place: int, bits: int) -> int:
    """Bit by bit, the lowest first, out of a column of words."""
    return sum(
        ((int(words[(place * bits + i) // 32]) >> ((place * bits + i) % 32)) & 1) << i
        for i in range(bits)
    )


@pytest.mark.parametrize(("bits", "symmetric"), [(3, True), (4, True), (4, False)])
def test_a_layer_read_bit_by_bit(make: Family, tmp_path: Path, bits: int, symmetric: bool) -> None:
    merged, out, _ = gptq_folder(make, "llama", tmp_path, f"{bits}bit", symmetric=symmetric)
    stored, name = load_file(out / "model.safetensors"), "model.layers.1.self_attn.k_proj."
    parts = {part: stored[name + part] for part in ("qweight", "qzeros", "scales", "g_idx")}
    one = int(symmetric)  # what v1 takes off a zero, and v2 does not
    found = np.empty((32, 64), np.float32)
    for row in range(32):
        for column in range(64):
            group = int(parts["g_idx"][column])
            code = bits_of(parts["qweight"][:, row], column, bits)
            zero = bits_of(parts["qzeros"][group], row, bits) + one
            found[row, column] = np.float32(parts["scales"][group, row]) * (code - zero)
    assert parts["g_idx"].tolist() == [column // 32 for column in range(64)]
    values = solver_values(merged, tmp_path / "blocks", UniformGrid(bits, 32, symmetric))
    np.testing.assert_array_equal(found, values[name + "weight"])
    layout = config(out)["quantization_config"]["checkpoint_format"]
    assert layout == ("gptq" if symmetric else "gptq_v2")


def test_heads_stay_as_they_are(make: Family, tmp_path: Path) -> None:
    for case, tied in (("qwen2", True), ("llama", False)):
        (tmp_path / case).mkdir()
        _, out, _ = gptq_folder(make, case, tmp_path / case)
        stored = load_file(out / "model.safetensors")
        assert ("lm_head.weight" in stored) == (not tied)
        assert stored["model.embed_tokens.weight"].dtype == np.float16
        assert config(out)["tie_word_embeddings"] == tied


@pytest.mark.parametrize("case", ["llama", "qwen2_moe"])
def test_transformers_accepts_the_configuration(
    make: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    from transformers.utils.quantization_config import GPTQConfig

    _, out, _ = gptq_folder(make, case, tmp_path)
    about = config(out)["quantization_config"]
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.0")  # optimum's
    read = GPTQConfig(**about)
    assert (read.bits, read.group_size, read.format) == (4, about["group_size"], "gptq")


def test_readers_are_told_what_is_not_quantized(make: Family, tmp_path: Path) -> None:
    """By the rules of vLLM and GPTQModel, and of optimum, for every matrix of a block."""
    import re

    merged, out, _ = gptq_folder(make, "qwen2_moe", tmp_path)
    about, solved = config(out)["quantization_config"], set(linears(merged))
    (kept,) = about["modules_in_block_to_quantize"]
    for name, shape in merged.shapes.items():
        if len(shape) == 2 and ".layers." in name:
            module = name.removesuffix(".weight")
            left = any(re.match(rule.removeprefix("-:"), module) for rule in about["dynamic"])
            assert left == (name not in solved), name
            assert module.endswith(tuple(kept)) == (name in solved), name
    plain = gptq._unquantized_layer_settings(open_merged(make("llama")[0], None))
    assert plain == {}, "only where there is something to tell"


def test_group_sizes(make: Family) -> None:
    merged = open_merged(make("llama")[0], None)  # 64 and 96 columns
    assert gptq.code_grid(merged, "4bit", None, True).columns == 32
    assert gptq.code_grid(merged, "4bit", -1, True).columns == -1
    for size in (64, 128):
        with pytest.raises(FormatError, match=rf"groups of {size} do not divide a layer") as caught:
            gptq.make_plan(merged, "4bit", ConvertOptions(group_size=size))
        assert caught.value.hint == "--group-size 32 or -1"
    assert gptq.code_grid(open_merged(make("qwen2_moe")[0], None), "4bit", None, True).columns == -1


def test_layers_that_do_not_fill_words(make: Family) -> None:
    merged = open_merged(make("deepseek2")[0], None)
    with pytest.raises(FormatError, match=r"4-bit codes of .*q_a_proj.* do not fill .* 20 x 64"):
        gptq.make_plan(merged, "4bit", ConvertOptions())
    gptq.make_plan(merged, "8bit", ConvertOptions())  # four to a word


@pytest.mark.parametrize(("case", "group"), [("llama", 32), ("llama", -1), ("mixtral", None)])
def test_the_repacked_file_holds_the_folders_weights_to_the_bit(
    make: Family, tmp_path: Path, case: str, group: int | None
) -> None:
    from gguf import GGUFReader, dequantize

    merged, out, _ = gptq_folder(make, case, tmp_path, group_size=group)
    folder, plan = open_merged(out, None), make_plan(merged, "f32", ConvertOptions())
    tensors = {tensor.name: tensor for tensor in GGUFReader(repacked_gguf(out)).tensors}
    fours = 0
    for name, target in plan.targets.items():
        found = dequantize(tensors[name].data, tensors[name].tensor_type)
        want = np.concatenate([part.read(folder.rows, slice(None)) for part in target.parts])
        np.testing.assert_array_equal(found.reshape(want.shape), want, name)
        fours += tensors[name].tensor_type.name == "Q4_0"
    assert fours == 14


@pytest.mark.parametrize(
    ("case", "quant"),
    [("llama", "q4_0"), ("llama", "q4_k_m"), ("phi3", "q4_0"), ("mixtral", "q4_k_m")],
)
def test_ggml_types_hold_what_the_solver_found(
    make: Family, tmp_path: Path, case: str, quant: str
) -> None:
    """The plain file in size and types, with the adapter on the way; other bytes in the layers."""
    from gguf import GGUFReader, dequantize

    base, adapter, _ = make(case)
    merged, plain = open_merged(base, adapter), open_merged(base, adapter)
    rounded = convert(plain, tmp_path / "plain.gguf", quant)
    made, learned = tmp_path / "solved.gguf", learn(tmp_path / "blocks")
    converted = convert(merged, made, f"gptq-{quant}", calibration=learned)
    facts = converted.facts
    assert converted.proof().tensors == rounded.proof().tensors > 0
    assert made.stat().st_size == (tmp_path / "plain.gguf").stat().st_size
    ours, theirs = (
        {tensor.name: tensor for tensor in GGUFReader(file).tensors}
        for file in (made, tmp_path / "plain.gguf")
    )
    coded, solved = gptq_blocks(
        merged, make_plan(merged, quant, ConvertOptions()), learn(tmp_path / "blocks"), 2
    )
    assert facts["quantized"] == solved.facts()["quantized"] > 0
    changed = 0
    for name, target in make_plan(merged, quant, ConvertOptions()).targets.items():
        tensor = ours[name]
        assert tensor.tensor_type == theirs[name].tensor_type
        if any(part.source not in solved for part in target.parts):
            np.testing.assert_array_equal(tensor.data, theirs[name].data, name)
            continue
        want = np.concatenate([part.read(coded.rows, slice(None)) for part in target.parts])
        found = dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(
            found, dequantize(want.reshape(tensor.data.shape), tensor.tensor_type), name
        )
        changed += (tensor.data != theirs[name].data).any()
    assert changed > 5
