"""The oracle is gguf's own dequantizer over the finished file: what it reads are the codes' values."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Family
from safetensors.numpy import load_file, save_file

from edgeft.converters.gguf.plan import make_plan
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError, ProofError
from edgeft.merge.landing import Proof
from edgeft.merge.view import Merged, open_merged
from edgeft.quantization import repack
from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Checkpoint
from helpers.converting import convert
from helpers.families import DEEPSEEK, MOE, Tiny, make_tiny
from helpers.paths import ROOT
from helpers.tiny import some_codes, write_gptq


class Given:
    """One layer as a checkpoint has it, without a file."""

    offset = 1

    def __init__(self, codes: gptq_layout.Codes) -> None:
        self.arrays = gptq_layout.pack(codes)

    def layer(self, name: str) -> Any:
        return self.arrays

    def codes(self, name: str, rows: Any) -> gptq_layout.Codes:
        return gptq_layout.unpack(self.arrays, rows)


def repacked(codes: gptq_layout.Codes) -> tuple[str, bool, npt.NDArray[np.float32]]:
    """(type, whether it says that nothing was lost, the values that gguf reads)."""
    from gguf import dequantize

    made = repack.RepackedGPTQ(Given(codes))  # type: ignore[arg-type]
    kind = made.block_type("x")
    assert kind is not None
    data = np.concatenate([made.rows("x", slice(0, 40)), made.rows("x", slice(40, 64))])
    return kind.name, not made.inexact, dequantize(data, kind).reshape(codes.codes.shape)


@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_codes_keep_their_values(bits: int, group: int) -> None:
    codes = some_codes(64, 384, bits, group, sym=True)
    kind, exact, values = repacked(codes)
    assert kind == ("Q8_0" if bits == 8 else "Q4_0") and exact
    np.testing.assert_array_equal(values, codes.values())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_asymmetric_codes_report_rounded_values(bits: int) -> None:
    codes = some_codes(64, 96, bits, 32, sym=False)
    kind, exact, values = repacked(codes)
    assert kind == "Q4_1" and not exact, "these scales times zeros need more than 11 bits"
    step = np.abs(codes.scales.astype(np.float32))[:, codes.groups]
    assert 0 < (np.abs(values - codes.values()) / step).max() < 2**-11 * 2**bits
    codes = in_powers(codes)
    kind, exact, values = repacked(codes)
    assert kind == "Q4_1" and exact
    np.testing.assert_array_equal(values, codes.values())


HALVES: dict[str, gptq_layout.Codes] = {
    "any order": some_codes(64, 96, 4, 32, sym=True, order=True),
    "8 bits, asymmetric": some_codes(64, 96, 8, 32, sym=False),
    "columns": some_codes(64, 80, 4, 80, sym=True),
    "groups of 48": some_codes(64, 96, 4, 48, sym=True),
}


@pytest.mark.parametrize("case", HALVES)
def test_layers_without_a_block_type_become_float16(case: str) -> None:
    for codes, whole in ((HALVES[case], False), (in_powers(HALVES[case]), True)):
        kind, exact, values = repacked(codes)
        assert (kind, exact) == ("F16", whole)
        np.testing.assert_array_equal(values, codes.values().astype(np.float16))


def in_powers(codes: gptq_layout.Codes) -> gptq_layout.Codes:
    """The same with scales of one bit, so that float16 holds every value."""
    scales = (2 ** np.round(np.log2(np.abs(codes.scales)))).astype(np.float16)
    return dataclasses.replace(codes, scales=scales)


def test_scale_that_is_not_finite_is_refused() -> None:
    codes = some_codes(64, 32, 4, 32, sym=True)
    given = Given(codes)
    given.arrays["scales"][0, 3] = np.nan
    with pytest.raises(ValueError, match="not every value is finite"):
        repack.RepackedGPTQ(given).rows("x", slice(None))  # type: ignore[arg-type]


def repacked_file(
    merged: Merged, folder: Path, out: Path
) -> tuple[dict[str, Any], repack.RepackedGPTQ, Proof]:
    """(name -> (type, values as gguf reads them), where the bytes came from, the landing proof)"""
    from gguf import GGUFReader, dequantize

    made = repack.RepackedGPTQ(Checkpoint(folder))
    proof = convert(merged, out, "f16", threads=2, block_source=made).proof()
    found = GGUFReader(out).tensors
    values = {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type)) for t in found}
    return values, made, proof


@pytest.mark.parametrize(
    ("case", "bits"),
    [("llama", 4), ("qwen2", 8), ("qwen3_moe", 4), ("olmoe", 4), ("pythia", 4), ("glm", 3)],
)
def test_repacked_file_has_the_values_of_the_codes(
    make: Family, tmp_path: Path, case: str, bits: int
) -> None:
    """Permutations of q, k and fused qkv, tied heads and stacked experts included."""
    base, _, _ = make(case)
    v2 = {"offset": 0, "checkpoint_format": "gptq_v2"} if case == "olmoe" else {}
    folder, made = write_gptq(base, tmp_path / "q", bits=bits, **v2)
    merged = open_merged(folder, None)
    tensors, codes, proof = repacked_file(merged, folder, tmp_path / "x.gguf")
    assert not codes.inexact and proof.tensors == 0
    plan = make_plan(merged, "f32", ConvertOptions())
    seen = set()
    for name, target in plan.targets.items():
        inside = {part.source for part in target.parts} & made.keys()
        kind, found = tensors[name]
        assert kind == ("Q8_0" if bits == 8 else "Q4_0") if inside else kind in ("F16", "F32"), name
        seen |= inside
        want = np.concatenate([
            part.read(lambda source, rows: values(made, merged, source)[rows], slice(None))
            for part in target.parts
        ])  # fmt: skip
        want = want.astype(np.float16) if kind == "F16" else want
        np.testing.assert_array_equal(found.reshape(want.shape), want, name)
    assert seen == made.keys()


def values(
    made: dict[str, gptq_layout.Codes], merged: Merged, name: str
) -> npt.NDArray[np.float32]:
    """Of a tensor: what the codes were before they were packed, else what the base holds."""
    return made[name].values() if name in made else merged.rows(name, slice(None))


def test_rotary_rows_are_whole_blocks_in_another_order(make: Family, tmp_path: Path) -> None:
    """Told without the transforms: of each head of q, halves become neighbouring pairs."""
    base, _, _ = make("llama")
    folder, made = write_gptq(base, tmp_path / "q")
    tensors, _, _ = repacked_file(open_merged(folder, None), folder, tmp_path / "x.gguf")
    _, found = tensors["blk.1.attn_q.weight"]
    rows = [head * 16 + half * 8 + i for head in range(4) for i in range(8) for half in range(2)]
    want = made["model.layers.1.self_attn.q_proj.weight"].values()[rows]
    np.testing.assert_array_equal(found, want)
    assert (want != made["model.layers.1.self_attn.q_proj.weight"].values()).any()


def test_compressed_keys_are_quantized_as_usual(tmp_path: Path) -> None:
    """They are cut and turned, so there are no whole blocks of theirs."""
    wide = DEEPSEEK | {"q_lora_rank": None, "kv_lora_rank": 32, "moe_intermediate_size": 32}
    base, _, _ = make_tiny(tmp_path, Tiny("DeepseekV2Config", wide, MOE))
    folder, _ = write_gptq(base, tmp_path / "q")
    tensors, _, _ = repacked_file(open_merged(folder, None), folder, tmp_path / "x.gguf")
    kinds = {name: tensors[f"blk.1.{name}.weight"][0] for name in (
        "attn_q", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output", "ffn_up_exps",
        "ffn_up_shexp", "ffn_gate_inp")}  # fmt: skip
    assert kinds == {
        "attn_q": "Q4_0", "attn_kv_a_mqa": "Q4_0", "attn_k_b": "F16", "attn_v_b": "F16",
        "attn_output": "Q4_0", "ffn_up_exps": "Q4_0", "ffn_up_shexp": "Q4_0", "ffn_gate_inp": "F32",
    }  # fmt: skip


def test_bytes_that_ggml_cannot_read_are_refused(make: Family, tmp_path: Path) -> None:
    base, _, _ = make("llama")
    folder, _ = write_gptq(base, tmp_path / "q")

    class Damaged(repack.RepackedGPTQ):
        def rows(self, source: str, rows: Any) -> npt.NDArray[np.uint8]:
            return np.full_like(super().rows(source, rows), 0xFF)  # scales that are NaN

    made = Damaged(Checkpoint(folder))
    with pytest.raises(ProofError, match=r"_proj.weight cannot be stored as Q4_0"):
        convert(open_merged(folder, None), tmp_path / "x.gguf", "f16", threads=2, block_source=made)


CONVERTER = ROOT / "build" / "vocabularies" / "converter"
THEIRS = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"  # it knows tokenizers by their hash
sys.argv[:2] = [sys.argv[1] + "/convert_hf_to_gguf.py"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "bits", "sym", "offset"),
    [("llama", 4, True, 1), ("llama", 2, False, 1), ("qwen2", 8, False, 1), ("olmoe", 4, False, 0)],
)
def test_values_are_those_of_llama_cpps_converter(
    make: Family, tmp_path: Path, case: str, bits: int, sym: bool, offset: int
) -> None:
    """It knows GPTQ, too, as far as to dequantize it: the float32 files have to be the same."""
    from gguf import GGUFReader

    if not CONVERTER.exists():
        pytest.skip("no converter of llama.cpp: run make vocabularies")
    layout = "gptq" if offset else "gptq_v2"
    folder, _ = write_gptq(
        make(case)[0], tmp_path / "q", bits, sym=sym, order=True, offset=offset,
        checkpoint_format=layout,
    )  # fmt: skip
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    given = [CONVERTER, folder, "--outfile", theirs, "--outtype", "f32"]
    subprocess.run([sys.executable, "-c", THEIRS, *map(str, given)], check=True)
    convert(open_merged(folder, None), ours, "f32", threads=2)
    found, want = ({t.name: t.data for t in GGUFReader(file).tensors} for file in (ours, theirs))
    assert found.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_array_equal(found[name], values, name)


def test_unknown_biases_of_zeros_are_left_out(make: Family, tmp_path: Path) -> None:
    base, _, _ = make("qwen2")
    folder, _ = write_gptq(base, tmp_path / "q")
    before = set(repacked_file(open_merged(folder, None), folder, tmp_path / "x.gguf")[0])
    arrays = load_file(folder / "model.safetensors")
    for name in ("mlp.down_proj", "self_attn.o_proj"):
        arrays[f"model.layers.1.{name}.bias"] = np.zeros(64, np.float16)
    save_file(arrays, folder / "model.safetensors")
    assert set(repacked_file(open_merged(folder, None), folder, tmp_path / "x.gguf")[0]) == before
    arrays["model.layers.1.mlp.down_proj.bias"][63] = 1
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"has no place for tensor .*down_proj.bias"):
        repacked_file(open_merged(folder, None), folder, tmp_path / "x.gguf")


def test_adapter_on_a_gptq_folder(make: Family, tmp_path: Path) -> None:
    """The other way: dequantized, merged, and written as any other base."""
    base, adapter, _ = make("llama")
    folder, made = write_gptq(base, tmp_path / "q")
    plain, merged = open_merged(base, adapter), open_merged(folder, adapter)
    assert "quantization_config" not in merged.config
    name = "model.layers.0.mlp.up_proj.weight"
    delta = plain.addends(name, slice(None))[1]
    np.testing.assert_allclose(merged.tensor(name), made[name].values() + delta, atol=1e-6)
    converted = convert(merged, tmp_path / "x.gguf", "q8_0", threads=2)
    assert converted.proof().beta == pytest.approx(1, abs=0.01)
