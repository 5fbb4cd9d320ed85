"""The frozen base of training, weight by weight, equals the base that `open_merged` computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Family

from edgeft import models
from edgeft.adapter.names import PREFIX
from edgeft.adapter.read import Weighted
from edgeft.errors import InputError
from edgeft.files import read_json
from edgeft.merge.view import Merged, open_merged
from edgeft.quantization import nf4
from edgeft.records import Manifest
from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors
from helpers.families import CHATGLM, DEEPSEEK, NEOX, SMALL, TINY, by_family

TRAINED = [case for case, tiny in TINY.items() if tiny.config != CHATGLM]


def frozen(base: Path, dtype: str = "float32", keep_4bit: bool = False, **more: Any) -> Any:
    """The live base as training holds it."""
    import torch

    from edgeft.train.methods.base_model import frozen_base
    from edgeft.train.options import TrainOptions

    options = TrainOptions(base, base / "chats", base / "adapter", keep_4bit=keep_4bit, **more)
    card = models.card_for(read_json(base / "config.json"))
    return frozen_base(options, card, getattr(torch, dtype), "cpu")


def by_checkpoint(
    model: Any, card: models.Card, names: dict[str, Any]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Every parameter and saved buffer of a live model, by the names of the checkpoint."""
    import bitsandbytes.functional as bnb

    for name, weight in model.state_dict().items():
        general, numbers = models.generalize(name)
        parts = [models.fill(part, numbers) for part in card.fused.get(general, ())]
        if not parts:
            stored = card.in_checkpoint(name)
            if stored in names:  # a tied head is not; nor what bitsandbytes keeps beside a weight
                live = model.get_parameter_or_buffer(name)
                state = getattr(live, "quant_state", None)
                seen = bnb.dequantize_4bit(live.data, state) if state else weight
                yield stored, seen.float().numpy()
            continue
        for expert, both in enumerate(weight.float().numpy()):
            for part, values in zip(parts, np.split(both, len(parts)), strict=True):
                yield part.replace("{e}", str(expert)), values


def assert_same(model: Any, merged: Merged) -> None:
    compared = set()
    for name, values in by_checkpoint(model, merged.card, merged.shapes):
        np.testing.assert_array_equal(values, merged.addends(name, slice(None))[0].reshape(
            merged.shapes[name]), err_msg=name)  # fmt: skip
        compared.add(name)
    assert compared == set(merged.shapes)


def recorded(adapter: Path, folder: Path, **facts: Any) -> Path:
    """A copy of the adapter with what its training would have recorded."""
    shutil.copytree(adapter, folder)
    manifest = Manifest("adapter", {}, {}, facts={"nf4": {"kind": "nf4"} | facts})
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


@pytest.mark.parametrize("case", by_family(TRAINED, "llama-linear"))
def test_the_frozen_base_equals_the_nf4_view(make: Family, case: str) -> None:
    base, _, _ = make(case)
    merged, plain = open_merged(base, None, "nf4"), Checkpoint(base)
    assert_same(frozen(base), merged)
    changed = {
        name.rpartition(".")[0].rpartition(".")[2]
        for name in merged.shapes
        if not np.array_equal(merged.tensor(name), plain.read(name))
    }
    linear = {*merged.card.lora_targets, *TINY[case].linears}
    assert changed == {name for name in linear if any(f".{name}.w" in n for n in merged.shapes)}


@pytest.mark.parametrize("case", by_family(TRAINED))
def test_a_base_frozen_in_bfloat16_equals_the_view_of_its_adapter(
    make: Family, case: str, tmp_path: Path
) -> None:
    base, adapter, _ = make(case)
    half = recorded(adapter, tmp_path / "half", compute_type="bfloat16")
    assert_same(frozen(base, "bfloat16"), open_merged(base, half, "nf4"))


def test_rotary_frequencies_stay_in_float32(make: Family) -> None:
    """Frequencies in bfloat16 turn the 500th token by 3 degrees too much."""
    import torch

    model = frozen(make("llama")[0], "bfloat16")
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_only_a_single_bfloat16_nf4_adapter_rounds_the_base(make: Family, tmp_path: Path) -> None:
    base, foreign, _ = make("llama")
    half = recorded(foreign, tmp_path / "half", compute_type="bfloat16")
    full = recorded(foreign, tmp_path / "full", compute_type="float32")
    old = recorded(foreign, tmp_path / "old", kind=None, compute_type="bfloat16")
    plain = {kind: open_merged(base, None, kind) for kind in ("stored", "nf4", "fp4")}  # type: ignore[arg-type]
    cases: list[tuple[Any, str]] = [(half, "stored"), (half, "fp4")]
    cases += [(adapter, "nf4") for adapter in (None, foreign, full, old)]
    cases += [([Weighted(half), Weighted(half)], "nf4")]
    for adapters, kind in cases:
        merged = open_merged(base, adapters, kind)  # type: ignore[arg-type]
        for name in merged.shapes:
            np.testing.assert_array_equal(
                merged.addends(name, slice(None))[0], plain[kind].addends(name, slice(None))[0]
            )


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_fp4_and_single_quantization_round_the_linear_layers(
    make: Family, kind: Any, double_quant: bool
) -> None:
    base, adapter, _ = make("llama")
    merged, plain = open_merged(base, adapter, kind, double_quant), Checkpoint(base)
    for name in merged.shapes:
        seen = plain.read(name)
        if "_proj" in name:
            seen = nf4.round_trip(seen, kind, double_quant)
        np.testing.assert_array_equal(
            merged.addends(name, slice(None))[0].reshape(seen.shape), seen, err_msg=name
        )


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_packed_base_equals_the_view_for_the_recorded_threads(
    compute: str, tmp_path: Path
) -> None:
    """From 32768 blocks on, the number of threads changes the last bit of their mean."""
    import torch
    import transformers

    config = transformers.LlamaConfig(**SMALL | {
        "intermediate_size": 40_000, "num_hidden_layers": 1, "vocab_size": 99})  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = frozen(tmp_path, compute, keep_4bit=True)
    finally:
        torch.set_num_threads(before)
    lora = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    one = np.zeros((1, 64), np.float32)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/adapter_config.json").write_text(json.dumps(lora))
    names = [f"{PREFIX}model.layers.0.self_attn.q_proj.lora_{x}.weight" for x in "AB"]
    specs = [Spec(names[0], "F32", (1, 64)), Spec(names[1], "F32", (64, 1))]
    write_safetensors(tmp_path / "plain/adapter_model.safetensors", specs, [one, one.T])
    facts = {"compute_type": compute, "threads": 2}
    adapter = recorded(tmp_path / "plain", tmp_path / "adapter", **facts)
    assert_same(model, open_merged(tmp_path, adapter, "nf4"))
    if compute == "bfloat16":  # sums of such short numbers are exact here
        return
    single = recorded(tmp_path / "plain", tmp_path / "single", **facts | {"threads": 1})
    with pytest.raises(AssertionError, match="mlp"):
        assert_same(model, open_merged(tmp_path, single, "nf4"))


WIDE = SMALL | {"intermediate_size": 128}
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "shared_expert_intermediate_size": 64}


@pytest.mark.parametrize(("config", "options"), [
    ("OlmoConfig", WIDE | {"tie_word_embeddings": True}),
    ("GPTNeoXConfig", NEOX | {"intermediate_size": 128}),
    ("Gemma2Config", WIDE | {"head_dim": 32}),
    ("Qwen2MoeConfig", WIDE | EXPERTS),
    ("MixtralConfig", WIDE | {"num_local_experts": 4}),
    ("DeepseekV3Config", DEEPSEEK | {"intermediate_size": 128, "moe_intermediate_size": 64,
                                     "q_lora_rank": 64, "kv_lora_rank": 64}),
])  # fmt: skip
def test_a_packed_base_of_other_families_equals_the_view(
    config: str, options: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    made = getattr(transformers, config)(vocab_size=99, pad_token_id=0, **options)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path)
    assert_same(frozen(tmp_path, keep_4bit=True), open_merged(tmp_path, None, "nf4"))


def test_a_width_that_bitsandbytes_cannot_pack_on_a_cpu_is_refused(make: Family) -> None:
    with pytest.raises(InputError, match=r"multiples of 64: model.*down_proj.weight \(96 wide\)"):
        frozen(make("llama")[0], keep_4bit=True)


@pytest.mark.parametrize("case", by_family(TRAINED, "olmo-clipped"))
def test_the_card_and_transformers_pack_the_same_layers(make: Family, case: str) -> None:
    """Adapters of other trainers were trained on what transformers' own rule packs."""
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    base = make(case)[0]
    model = frozen(base)
    card = models.card_for(read_json(base / "config.json"))
    kept = get_keys_to_not_convert(model)
    theirs = {
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and should_convert_module(name, kept)
    }
    ours = {
        name.removesuffix(".weight")
        for name, weight in model.named_parameters()
        if card.in_4bit(card.in_checkpoint(name), tuple(weight.shape))
    }
    # Tied, and without weights in its norms: transformers takes the last layer for the head.
    odd = {"model.layers.1.mlp.down_proj"} if case == "olmo-clipped" else set()
    assert theirs | odd == ours and len(ours) > 7


@pytest.mark.parametrize(("case", "queries"), [
    ("deepseek2", {"q_a_proj", "q_b_proj"}), ("deepseek2-lite", {"q_proj"})])  # fmt: skip
def test_default_targets_are_the_layers_that_this_size_has(
    make: Family, case: str, queries: set[str]
) -> None:
    from edgeft.train.methods.base_model import target_modules

    _, _, live = make(case)
    card = models.card_for({"architectures": ["DeepseekV2ForCausalLM"]})
    always = {"kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    assert set(target_modules(live, (), card.lora_targets)) == queries | always
    with pytest.raises(InputError, match="no modules named up"):
        target_modules(live, ("o_proj", "up"), card.lora_targets)


@pytest.mark.parametrize(("compute", "packed"), [("fp32", True), ("bf16", True), ("bf16", False)])
def test_the_view_of_a_trained_adapter_equals_its_frozen_base(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, compute: Any, packed: bool
) -> None:
    import torch

    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    manifest = train(
        TrainOptions(
            tiny_base, tiny_chats, tmp_path / "adapter", steps=1, batch_size=2, micro_batch_size=2,
            validation_size=0, save_every=0, compute_type=compute, keep_4bit=packed, warmup=0,
        )
    )  # fmt: skip
    assert manifest.facts["nf4"]["threads"] == (torch.get_num_threads() if packed else 1)
    kind = manifest.facts["nf4"]["compute_type"]
    merged = open_merged(tiny_base, tmp_path / "adapter", "nf4")
    assert_same(frozen(tiny_base, kind, packed), merged)
    stored = Checkpoint(tiny_base).read("model.embed_tokens.weight")
    rounded = not np.array_equal(merged.tensor("model.embed_tokens.weight"), stored)
    assert rounded == (compute == "bf16")


@pytest.mark.parametrize(("kind", "double_quant", "packed", "compute"), [
    ("fp4", True, False, "fp32"), ("nf4", False, False, "fp32"), ("int8", True, False, "fp32"),
    ("int8", True, False, "bf16"), ("fp4", False, True, "fp32")])  # fmt: skip
def test_the_view_knows_every_quantization_of_the_base(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, kind: Any, double_quant: bool,
    packed: bool, compute: Any,
) -> None:  # fmt: skip
    """The manifest says how the base was quantized; `double_quant` of the export is for others."""
    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    chosen: dict[str, Any] = {"quantization": kind, "double_quant": double_quant}
    facts = train(
        TrainOptions(
            tiny_base, tiny_chats, tmp_path / "adapter", steps=1, batch_size=2, micro_batch_size=2,
            validation_size=0, save_every=0, compute_type=compute, keep_4bit=packed, warmup=0,
            **chosen,
        )
    ).facts  # fmt: skip
    assert facts["nf4"]["kind"] == kind
    merged = open_merged(tiny_base, tmp_path / "adapter", kind)
    assert_same(frozen(tiny_base, facts["nf4"]["compute_type"], packed, **chosen), merged)
    other = open_merged(tiny_base, None, "nf4").tensor("model.layers.0.mlp.up_proj.weight")
    assert not np.array_equal(merged.tensor("model.layers.0.mlp.up_proj.weight"), other)


def test_int8_cannot_be_kept_packed(tiny_base: Path, tiny_chats: Path, tmp_path: Path) -> None:
    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    options = TrainOptions(
        tiny_base, tiny_chats, tmp_path / "adapter", quantization="int8", keep_4bit=True
    )
    with pytest.raises(InputError, match="packs nf4 and fp4, not int8"):
        train(options)
    assert not options.output.exists()


def test_the_export_measures_the_precision_of_the_training(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    """Of an int8 QLoRA int8 and the stored weights, of LoRA nothing."""
    from edgeft.export.options import ExportOptions
    from edgeft.export.pipeline import export
    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    chosen = {}
    for method, more in (("qlora", {"quantization": "int8"}), ("lora", {})):
        adapter = tmp_path / method
        train(
            TrainOptions(
                tiny_base, tiny_chats, adapter, steps=1, batch_size=2, micro_batch_size=2,
                validation_size=2, save_every=0, compute_type="fp32", warmup=0, **more,  # type: ignore[arg-type]
            ),
            method=method,
        )  # fmt: skip
        (artifact,) = export(
            ExportOptions(
                out=tmp_path / f"{method}-out", adapter=(Weighted(adapter),), quants=("q8_0",),
                compare_live=False, threads=1,
            )
        )  # fmt: skip
        chosen[method] = artifact.manifest.facts["base_precision"]
    assert set(chosen["qlora"]["loss"]) == {"stored", "int8"}
    assert chosen["lora"] == {"chosen": "stored", "why": "trained on the stored weights"}
