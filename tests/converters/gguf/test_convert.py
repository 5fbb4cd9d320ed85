"""One pass writes what llama-quantize makes of the float32 file: types and bytes, adapter included."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Family

from edgeft.benchmarks.studies import random_model
from edgeft.converters.gguf import convert as converter
from edgeft.errors import FormatError, ProofError
from edgeft.export.collect_imatrix import collect
from edgeft.merge import landing
from edgeft.merge.view import open_merged
from edgeft.quantization import ggml
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.weights.imatrix import Imatrix
from helpers.converting import convert
from helpers.families import DEEPSEEK, MOE, TEXT, Tiny, make_tiny
from helpers.llama_quantize import llama_quantize, read

WIDE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 256,
}  # fmt: skip
CASES = {
    "llama": Tiny("LlamaConfig", WIDE, std=0.05),
    "qwen2": Tiny("Qwen2Config", WIDE | {"hidden_size": 128, "intermediate_size": 320}, std=0.05),
    # llama.cpp has other types for 8 experts
    "mixtral": Tiny("MixtralConfig", WIDE | {"num_local_experts": 8}, MOE, std=0.05),
    "qwen2_moe": Tiny("Qwen2MoeConfig", WIDE | {
        "num_experts": 4, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 512,
    }, MOE, std=0.05),
    # three dimensions without experts: the halves of kv_b_proj
    "deepseek2": Tiny("DeepseekV2Config", DEEPSEEK | WIDE | {
        "q_lora_rank": None, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
        "v_head_dim": 64, "num_key_value_heads": 8, "moe_intermediate_size": 256}, std=0.05),
    # a width of 128 has no blocks of 256
    "qwen3_moe": Tiny("Qwen3MoeConfig", WIDE | {
        "num_experts": 4, "moe_intermediate_size": 128, "norm_topk_prob": True}, MOE, std=0.05),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A base with its adapter, its f32 GGUF file and an importance matrix."""

    base: Path
    adapter: Path
    f32: Path
    imatrix: Imatrix


@pytest.fixture(scope="module", params=CASES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = tmp_path_factory.mktemp(request.param)
    base, adapter, _ = make_tiny(folder, CASES[request.param])
    convert(open_merged(base, adapter), folder / "f32.gguf", "f32", threads=1)
    with GGUFRuntime(folder / "f32.gguf", context=128, threads=1) as model:
        texts = [model.encode(TEXT), model.encode("all lamps off, please")]
    imatrix = collect(folder / "f32.gguf", texts, threads=1)
    return TinyModel(base, adapter, folder / "f32.gguf", imatrix)


def assert_llama_quantizes_bytes(
    tiny: TinyModel, folder: Path, quant: str, with_imatrix: bool, overrides: Any = ()
) -> None:
    merged = open_merged(tiny.base, tiny.adapter)
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    imatrix = tiny.imatrix if with_imatrix else None
    converted = convert(merged, ours, quant, tensor_types=overrides, imatrix=imatrix)
    assert converted.proof().tensors
    weights = {}
    if imatrix:
        for name in imatrix.tensors:
            rows = imatrix.importance(name)
            assert rows is not None
            weights[name] = np.ascontiguousarray(rows)
    assert llama_quantize(tiny.f32, theirs, quant, weights, overrides)
    (_, got), (_, expected) = read(ours), read(theirs)
    assert got.keys() == expected.keys()
    for name, (qtype, data) in expected.items():
        assert got[name][0] == qtype, name
        assert got[name][1] == data, name


@pytest.mark.parametrize(
    ("base_precision", "case"),
    [
        *itertools.product(
            ("stored", "nf4"), ("llama", "qwen2-yarn", "mixtral", "pythia", "deepseek2")
        ),
        ("fp4", "llama"),  # fp4 shares its blocks with nf4
    ],
)
def test_block_size_and_threads_do_not_change_the_bytes(
    make: Family, case: str, base_precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = make(case)
    convert(open_merged(base, adapter, base_precision), tmp_path / "whole", "q8_0", threads=1)
    monkeypatch.setattr(ggml, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(landing, "SAMPLE_VALUES", 300)
    merged = open_merged(base, adapter, base_precision)
    converted = convert(merged, tmp_path / "blocks", "q8_0", threads=5)
    assert converted.proof().tensors
    assert (tmp_path / "blocks").read_bytes() == (tmp_path / "whole").read_bytes()


def test_each_base_precision_gives_another_model(make: Family, tmp_path: Path) -> None:
    base, adapter, _ = make("llama")
    files = []
    for base_precision in ("stored", "nf4", "fp4"):
        view = open_merged(base, adapter).with_base(base_precision)  # type: ignore[arg-type]
        converted = convert(view, tmp_path / base_precision, "f32", threads=1)
        assert converted.proof().base_precision == base_precision
        files.append((tmp_path / base_precision).read_bytes())
    assert len(set(files)) == 3


def test_a_file_without_the_proved_rows_is_refused(
    make: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = make("llama")
    write = converter.write_tensors

    def spoiled(writer: Any, *args: Any) -> Any:
        samples = write(writer, *args)
        file = writer.fout[0]
        file.seek(samples[3].start)
        file.write(b"\0" * samples[3].row_bytes)
        return samples

    monkeypatch.setattr(converter, "write_tensors", spoiled)
    with pytest.raises(ProofError, match="does not hold model.layers.* as it was written"):
        convert(open_merged(base, adapter), tmp_path / "x.gguf", "q8_0", threads=1)


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m", "q3_k_m", "q4_0", "iq4_xs"])
@pytest.mark.parametrize("imatrix", [False, True])
def test_the_bytes_equal_llama_quantizes(
    tiny: TinyModel, tmp_path: Path, quant: str, imatrix: bool
) -> None:
    assert_llama_quantizes_bytes(tiny, tmp_path, quant, imatrix)


def test_tensor_type_overrides_equal_llama_quantizes(tiny: TinyModel, tmp_path: Path) -> None:
    assert_llama_quantizes_bytes(
        tiny, tmp_path, "q4_0", True, [("blk.1.*attn_v", "q8_0"), ("ffn_down", "q6_k")]
    )


def test_an_override_without_a_matching_tensor_is_refused(tiny: TinyModel, tmp_path: Path) -> None:
    merged = open_merged(tiny.base, tiny.adapter)
    with pytest.raises(FormatError, match="no tensor's name matches 'atn_v'"):
        convert(merged, tmp_path / "x", "q4_0", threads=1, tensor_types=[("atn_v", "q8_0")])


def test_the_imatrix_of_another_model_is_refused(tiny: TinyModel, tmp_path: Path) -> None:
    name, sums = next((n, s) for n, s in tiny.imatrix.tensors.items() if "attn_q" in n)
    wrong = dataclasses.replace(sums, in_sum2=sums.in_sum2[:, :32])
    imatrix = dataclasses.replace(tiny.imatrix, tensors=tiny.imatrix.tensors | {name: wrong})
    with pytest.raises(FormatError, match="the importance matrix is of another model: .*attn_q"):
        convert(open_merged(tiny.base, tiny.adapter), tmp_path / "x", "q4_0", imatrix=imatrix)


def test_a_type_that_needs_importance_is_refused_without_imatrix(
    tiny: TinyModel, tmp_path: Path
) -> None:
    overrides = [("attn_q", "iq2_xs")]
    merged = open_merged(tiny.base, tiny.adapter)
    if merged.config["hidden_size"] % 256:
        pytest.skip("falls back to a type that needs none")
    with pytest.raises(FormatError, match="--imatrix auto"):
        convert(merged, tmp_path / "x", "q4_0", threads=1, tensor_types=overrides)


def test_a_q4_k_m_file_runs_in_llama_cpp(tiny: TinyModel, tmp_path: Path) -> None:
    convert(open_merged(tiny.base, tiny.adapter), tmp_path / "q.gguf", "q4_k_m", threads=1)
    logits = []
    for path in (tiny.f32, tmp_path / "q.gguf"):
        with GGUFRuntime(path, context=128, threads=1) as model:
            logits.append(model.logits(model.encode(TEXT)))
    # rounding sends some tokens to other experts
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.9


def test_memory_does_not_grow_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ggml, "CHUNK_BYTES", 1 << 18)
    peaks = []
    for rows in (10_000, 80_000):
        work = tmp_path / str(rows)
        random_model.make_model(work, random_model.SHAPES["qwen2-tiny"] | {"vocab_size": rows})
        merged = open_merged(work / "base", work / "adapter", "nf4")
        tracemalloc.start()
        convert(merged, work / "x.gguf", "q8_0", threads=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (work / "x.gguf").stat().st_size > 20_000_000
    # The vocabulary grows with its texts and types, about 100 bytes per token.
    assert peaks[1] - peaks[0] < 200 * 70_000
    assert peaks[0] < 30_000_000
