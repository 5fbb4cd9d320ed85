"""Bases as users have them: other names, wrappers, configs, files and quantizations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import models
from edgeft.errors import EdgeftError, FormatError, InputError
from edgeft.files import read_json
from edgeft.merge.view import open_merged
from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors
from edgeft.weights.text_base import open_base
from helpers.families import SMALL

EMBEDDING = "model.embed_tokens.weight"
IDS = [[5, 7, 11, 13, 17, 19, 23]]


def save(folder: Path, base: Path, names: Callable[[str], str], **more: Any) -> Path:
    """A copy of a base whose tensors have other names; `more`: further tensors."""
    shutil.copytree(base, folder)
    weights = Checkpoint(base)
    arrays = {names(name): weights.read(name) for name in weights.tensors}
    arrays |= {name.replace("__", "."): np.asarray(a, np.float32) for name, a in more.items()}
    specs = [Spec(name, "F32", array.shape) for name, array in arrays.items()]
    write_safetensors(folder / "model.safetensors", specs, arrays.values())
    return folder


def edit(folder: Path, **entries: Any) -> Path:
    """Change config.json; an entry that is ... is taken out."""
    config = read_json(folder / "config.json") | entries
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same_weights(one: Path, other: Path) -> None:
    first, second = open_merged(one, None), open_merged(other, None)
    assert first.shapes == second.shapes
    for name in first.shapes:
        np.testing.assert_array_equal(first.tensor(name), second.tensor(name))


NAMES: dict[str, Callable[[str], str]] = {
    "bare": lambda name: name.removeprefix("model."),
    "module": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled layers": lambda name: name.replace("self_attn.", "_orig_mod.self_attn."),
    "transformer": lambda name: name.replace("model.", "transformer.", 1),
    "language_model.model": lambda name: f"language_model.{name}",
    "model.language_model": lambda name: name.replace("model.", "model.language_model.", 1),
    "peft": lambda name: f"base_model.model.{name}".replace("q_proj.", "q_proj.base_layer."),
    "trl": lambda name: f"pretrained_model.{name}",
    "FSDP": lambda name: name.replace("layers.", "_fsdp_wrapped_module.layers."),
    "activation checkpoints": lambda name: name.replace("mlp.", "_checkpoint_wrapped_module.mlp."),
    "DeepSpeed": lambda name: f"module.model.{name}",
}


@pytest.mark.parametrize("case", NAMES)
def test_other_names_of_the_same_weights(tmp_path: Path, tiny_base: Path, case: str) -> None:
    folder = save(tmp_path / "base", tiny_base, NAMES[case])
    same_weights(folder, tiny_base)
    assert not open_base(folder).notes and not open_base(folder).plain


@pytest.mark.parametrize(
    "more",
    [{"v_head__summary__weight": np.ones((1, 64)), "v_head__summary__bias": np.ones(1)},
     {"score__weight": np.ones((2, 64))}, {"model__score__weight": np.ones((2, 64))}],
)  # fmt: skip
def test_another_head_is_left_out_with_a_note(
    tmp_path: Path, tiny_base: Path, more: dict[str, Any]
) -> None:
    folder = save(tmp_path / "base", tiny_base, str, **more)
    same_weights(folder, tiny_base)
    (note,) = open_merged(folder, None).notes
    assert note.startswith(f"left out: {len(more)} tensor{'s' * (len(more) > 1)} of ")
    assert note.endswith(("v_head", "score"))


def test_old_buffers_are_ignored(tmp_path: Path, tiny_base: Path) -> None:
    folder = save(
        tmp_path / "base", tiny_base, str, model__rotary_emb__inv_freq=np.ones(8),
        model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(8),
        model__layers__0__self_attn__rotary_emb__cos_cached=np.ones(8),
        model__layers__0__attn__bias=np.ones((1, 1, 8, 8)),
        model__layers__0__attn__masked_bias=np.ones(1),
    )  # fmt: skip
    same_weights(folder, tiny_base)
    assert not open_base(folder).notes


def test_two_tensors_of_one_name_are_refused(tmp_path: Path, tiny_base: Path) -> None:
    folder = save(tmp_path / "base", tiny_base, str, module__model__norm__weight=np.ones(64))
    with pytest.raises(InputError, match=r"model\.norm\.weight twice"):
        open_base(folder)


def test_a_base_that_holds_an_adapter_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    lora = {
        "base_model__model__model__layers__0__self_attn__q_proj__lora_A__default__weight": np.ones(
            (4, 64)
        )
    }
    folder = save(tmp_path / "base", tiny_base, NAMES["peft"], **lora)
    with pytest.raises(InputError, match="holds an adapter's tensors") as no:
        open_base(folder)
    assert "merge_and_unload" in no.value.hint


def test_an_unknown_tensor_of_a_layer_is_never_dropped(tmp_path: Path, tiny_base: Path) -> None:
    folder = save(tmp_path / "base", tiny_base, NAMES["module"],
                  module__model__layers__0__strange__weight=np.ones((2, 2)))  # fmt: skip
    assert "module.model.layers.0.strange.weight" in open_base(folder).weights.tensors


@pytest.mark.parametrize("entries", [
    {"architectures": ...}, {"architectures": []}, {"architectures": ["LlamaModel"]},
    {"architectures": ["FSDPLlamaForCausalLM"]}, {"architectures": ["PeftModelForCausalLM"]},
    {"architectures": ["LLaMAForCausalLM"]}, {"architectures": ["LlamaForSequenceClassification"]},
])  # fmt: skip
def test_the_model_type_decides_without_an_architecture(
    tmp_path: Path, tiny_base: Path, entries: dict[str, Any]
) -> None:
    folder = edit(save(tmp_path / "base", tiny_base, str), **entries)
    same_weights(folder, tiny_base)
    assert open_merged(folder, None).config["architectures"] == ["LlamaForCausalLM"]


def test_a_config_that_says_nothing_is_refused_with_what_to_add(
    tmp_path: Path, tiny_base: Path
) -> None:
    folder = edit(save(tmp_path / "base", tiny_base, str), architectures=..., model_type=...)
    with pytest.raises(FormatError, match="neither architectures nor model_type") as no:
        open_base(folder)
    assert '"architectures": ["LlamaForCausalLM"]' in no.value.hint


def test_another_model_of_a_known_model_type_is_refused() -> None:
    config = {"architectures": ["LlamaForImages"], "model_type": "llama"}
    with pytest.raises(FormatError, match="no model card for architecture 'LlamaForImages'"):
        models.card_for(config)


def test_every_model_type_is_transformers() -> None:
    import transformers

    for card in models.cards():
        if card.trains:
            config = getattr(transformers, card.architectures[0]).config_class
            assert card.model_types[0] == config.model_type
            assert {
                k: v for k, v in config.attribute_map.items() if v in card.hparams.values()
            } == {k: v for k, v in card.aliases.items() if card.family != "qwen3_moe"}


def test_what_a_config_leaves_out_has_transformers_default() -> None:
    import transformers

    compared = 0
    for card in filter(lambda card: card.trains, models.cards()):
        theirs = getattr(transformers, card.architectures[0]).config_class().to_dict()
        for key in card.hparams.values():
            value = card.value({}, key) if not key.startswith("=") else None
            # what depends on other settings has no default of its own
            derived = ("num_key_value_heads", "head_dim", "q_lora_rank", "num_experts")
            if key in derived or key not in theirs:
                continue
            if key != "vocab_size" and theirs[key] is not None:
                assert value == theirs[key], (card.family, key)
                compared += 1
    assert compared > 150


@pytest.mark.parametrize("key", ["rms_norm_eps", "vocab_size", "head_dim", "tie_word_embeddings"])
def test_a_config_may_lack_a_key(tmp_path: Path, tiny_base: Path, key: str) -> None:
    from edgeft.runtimes.reference import ReferenceRuntime
    from helpers.converting import convert

    folder = edit(save(tmp_path / "base", tiny_base, str), **{key: ...})
    if key == "tie_word_embeddings":  # Llama's default: not tied, and there is no output layer
        with pytest.raises(InputError, match="has no output layer") as no:
            open_base(folder)
        assert '"tie_word_embeddings": true' in no.value.hint
        return
    convert(open_merged(folder, None), tmp_path / "x.gguf", "f32")
    with ReferenceRuntime(folder) as model:
        assert model.vocab_size == open_base(folder).config["vocab_size"]


def test_an_output_layer_that_differs_from_the_embedding_is_not_tied(
    tmp_path: Path, tiny_base: Path
) -> None:
    rows = Checkpoint(tiny_base).read(EMBEDDING)
    folder = save(tmp_path / "same", tiny_base, str, lm_head__weight=rows)
    assert open_merged(folder, None).tied and open_base(folder).plain
    folder = save(tmp_path / "other", tiny_base, str, lm_head__weight=rows + 1)
    view = open_merged(folder, None)
    assert not view.tied and view.config["tie_word_embeddings"] is False
    assert "differ, so they are not tied" in view.notes[0]
    np.testing.assert_array_equal(view.tensor("lm_head.weight"), rows + 1)


def test_a_tied_base_may_have_the_output_layer_alone(tmp_path: Path, tiny_base: Path) -> None:
    folder = save(
        tmp_path / "base", tiny_base, lambda name: name.replace(EMBEDDING, "lm_head.weight")
    )
    same_weights(folder, tiny_base)


def pickled(folder: Path, base: Path, shards: int = 1) -> Path:
    """A copy of a base in files of torch.save."""
    import torch

    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = Checkpoint(base)
    names = list(weights.tensors)
    files = ["pytorch_model.bin"]
    if shards > 1:
        files = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
        weight_map = {name: files[i % shards] for i, name in enumerate(names)}
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(index)
    for i, file in enumerate(files):
        part = names[i::shards]
        torch.save({n: torch.from_numpy(weights.read(n)) for n in part}, folder / file)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_base_in_files_of_torch_save(tmp_path: Path, tiny_base: Path, shards: int) -> None:
    folder = pickled(tmp_path / "base", tiny_base, shards)
    same_weights(folder, tiny_base)
    assert not open_base(folder).plain
    (folder / "pytorch_model.bin.index.json").unlink(missing_ok=True)
    same_weights(folder, tiny_base)  # the names of the shards say the same
    if shards > 1:
        (folder / "pytorch_model-00002-of-00003.bin").unlink()
        with pytest.raises(InputError, match="2 of the 00003 shards"):
            open_base(folder)


@pytest.mark.parametrize(
    ("file", "hint"),
    [("consolidated.safetensors", "convert_mistral_weights_to_hf"), ("model.gguf", "the .gguf file"),
     ("consolidated.00.pth", "convert_llama_weights_to_hf"), ("tf_model.h5", "from_tf=True"),
     ("flax_model.msgpack", "from_flax=True"), ("model.onnx", "exported from"),
     ("__0_0.distcp", "dcp_to_torch_save"), ("zero_to_fp32.py", "python zero_to_fp32.py"),
     ("pytorch_model_fsdp.bin", "under the name pytorch_model.bin"),
     ("pytorch_model_fsdp_0", "accelerate merge-weights")],
)  # fmt: skip
def test_weights_in_other_formats_are_refused_with_the_remedy(
    tmp_path: Path, tiny_base: Path, file: str, hint: str
) -> None:
    folder = save(tmp_path / "base", tiny_base, str)
    (folder / "model.safetensors").rename(folder / file)
    with pytest.raises(InputError, match=r"no model\.safetensors in") as no:
        open_base(folder)
    assert hint in no.value.hint


TEXT = SMALL | {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "projection_dim": 32, "vocab_size": 32,
}  # fmt: skip
QWEN_VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14,
               "intermediate_size": 32, "out_hidden_size": 64, "fullatt_block_indexes": [0],
               "deepstack_visual_indexes": [0]}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4, "layer_types":
         ["sliding_attention", "full_attention"]}  # fmt: skip
AUDIO = {"d_model": 32, "hidden_size": 32, "encoder_layers": 1, "encoder_attention_heads": 2,
         "num_hidden_layers": 1, "num_attention_heads": 2, "encoder_ffn_dim": 32,
         "intermediate_size": 32, "num_mel_bins": 16, "max_source_positions": 8}  # fmt: skip
WRAPPERS: dict[str, dict[str, Any]] = {
    "Gemma3ForConditionalGeneration": {
        "text_config": TEXT | GEMMA, "vision_config": VISION | {"model_type": "siglip_vision_model"}},
    "LlavaForConditionalGeneration": {"text_config": TEXT | {"model_type": "llama"}},
    "LlavaNextForConditionalGeneration": {"text_config": TEXT | {"model_type": "mistral"}},
    "LlavaOnevisionForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "qwen2", "tie_word_embeddings": True},
        "vision_config": VISION | {"model_type": "siglip_vision_model"}},
    "VipLlavaForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"}, "vision_feature_layers": [-1]},
    "VideoLlavaForConditionalGeneration": {"text_config": TEXT | {"model_type": "llama"}},
    "Mistral3ForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 16},
        "tie_word_embeddings": False},
    "Idefics3ForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"}, "scale_factor": 2},
    "SmolVLMForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"}, "scale_factor": 2},
    "InternVLForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "qwen3", "head_dim": 16},
        "vision_config": VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
        "tie_word_embeddings": False},
    "Qwen2VLForConditionalGeneration": {
        "text_config": TEXT | {"rope_parameters": MROPE}, "vision_config": QWEN_VISION},
    "Qwen2_5_VLForConditionalGeneration": {
        "text_config": TEXT | {"rope_parameters": MROPE}, "vision_config": QWEN_VISION,
        "tie_word_embeddings": True},
    "Qwen3VLForConditionalGeneration": {
        "text_config": TEXT | {"head_dim": 16, "rope_parameters": MROPE},
        "vision_config": QWEN_VISION},
    "Qwen2AudioForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "qwen2"}, "audio_config": AUDIO},
    "VoxtralForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"}, "audio_config": AUDIO},
}  # fmt: skip
"""architecture -> tiny settings"""


def wrapped_model(name: str, folder: Path) -> Any:
    """A tiny random multimodal model with its text model's tokenizer, saved by transformers."""
    import torch
    import transformers

    from helpers.tiny import make_tokenizer

    make_tokenizer(folder)
    torch.manual_seed(1)
    architecture = getattr(transformers, name)
    settings = {"vision_config": VISION | {"model_type": "clip_vision_model"}} | WRAPPERS[name]
    if "audio_config" in settings:
        del settings["vision_config"]
    model = architecture(architecture.config_class(**json.loads(json.dumps(settings))))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_text_model_of_a_multimodal_model(tmp_path: Path, name: str) -> None:
    import torch

    from edgeft.runtimes.reference import ReferenceRuntime

    model = wrapped_model(name, tmp_path / "base")
    with torch.inference_mode():
        want = model(input_ids=torch.tensor(IDS)).logits[0].numpy()
    base = open_base(tmp_path / "base")
    assert not base.plain and "its text model is read" in base.notes[0]
    assert base.notes[1].startswith("left out: ")
    assert all(base.card.gguf_names(tensor)[0] for tensor in base.weights.tensors)
    with ReferenceRuntime(tmp_path / "base") as text:
        np.testing.assert_allclose(text.logits(IDS[0]), want, atol=1e-4)
        assert type(text._model).__name__ == base.card.architectures[0]


@pytest.mark.parametrize(
    "name",
    ["Gemma3ForConditionalGeneration", "SmolVLMForConditionalGeneration",
     "Qwen2VLForConditionalGeneration", "LlavaForConditionalGeneration"],
)  # fmt: skip
@pytest.mark.parametrize("old_names", [False, True])
def test_an_adapter_of_a_multimodal_model_is_merged_into_its_text_model(
    tmp_path: Path, name: str, old_names: bool
) -> None:
    import peft
    import torch
    from safetensors.torch import load_file, save_file

    from edgeft.runtimes.reference import ReferenceRuntime
    from helpers.converting import convert

    adapter = tmp_path / "adapter"
    targets = r".*(language_model|text_model).*\.(q_proj|v_proj|up_proj)"
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(wrapped_model(name, tmp_path / "base"), config).eval()
    with torch.inference_mode():
        want = model(input_ids=torch.tensor(IDS)).logits[0].numpy()
    model.save_pretrained(adapter)
    if old_names:  # of transformers before 4.52
        file = adapter / "adapter_model.safetensors"
        swapped = {
            key.replace("model.model.language_model.", "model.language_model.model."): tensor
            for key, tensor in load_file(file).items()
        }
        save_file(swapped, file, {"format": "pt"})
    merged = open_merged(tmp_path / "base", adapter)
    assert sum(map(merged.adapted, merged.shapes)) == 3 * SMALL["num_hidden_layers"]
    (tmp_path / "hf").mkdir()
    convert(merged, tmp_path / "hf", "f32", format="hf").proof()
    with ReferenceRuntime(tmp_path / "hf") as text:
        np.testing.assert_allclose(text.logits(IDS[0]), want, atol=1e-4)
    with ReferenceRuntime(tmp_path / "base", adapters=[(adapter, 1.0)]) as live:
        np.testing.assert_allclose(live.logits(IDS[0]), want, atol=1e-4)


def test_every_wrapper_that_transformers_has_is_tested() -> None:
    read = {name for name, wrapper in models.wrappers().items() if not wrapper.refused}
    assert read - {"InternVLChatModel"} == set(WRAPPERS)


@pytest.mark.parametrize(
    "name", [name for name, wrapper in models.wrappers().items() if wrapper.refused]
)
def test_a_wrapper_that_changes_its_text_model_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match=f"{name} is no text model"):
        models.text_model({"architectures": [name], "text_config": {"model_type": "llama"}})
    with pytest.raises(FormatError, match="not known to run alone"):
        models.text_model(
            {"architectures": ["NewForVideos"], "text_config": {"model_type": "llama"}}
        )


def test_the_flat_config_of_qwen2_vl_is_its_text_model() -> None:
    config = SMALL | {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1e6,
        "vision_config": {"depth": 32}, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    text = models.text_model(config)
    assert text.card.family == "qwen2" and "vision_config" not in text.config
    assert text.config["architectures"] == ["Qwen2ForCausalLM"]
    assert text.config["model_type"] == "qwen2" and text.config["rope_scaling"] == {
        "type": "default"
    }
    assert text.config["tie_word_embeddings"] and text.config["rms_norm_eps"] == 1e-5


def test_the_wrapped_text_model_of_internvls_own_code() -> None:
    config = {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "llm_config": SMALL | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        "vision_config": {"hidden_size": 32},
    }  # fmt: skip
    assert models.text_model(config).card.family == "qwen2"
    config["llm_config"]["model_type"] = "internlm2"
    with pytest.raises(EdgeftError, match="internlm2"):
        models.text_model(config)


def test_a_base_that_transformers_quantized_to_4_bits(tmp_path: Path, tiny_base: Path) -> None:
    import torch
    import transformers

    from edgeft.runtimes.reference import ReferenceRuntime

    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_base, quantization_config=settings, dtype=torch.bfloat16
    )
    shutil.copytree(tiny_base, tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    assert base.notes == ("the base is quantized by bitsandbytes (NF4): it is dequantized",)
    whole = model.dequantize(torch.float32).float()
    for name, weight in whole.named_parameters():
        np.testing.assert_array_equal(base.weights.read(name), weight.detach().numpy())
    with torch.inference_mode(), ReferenceRuntime(tmp_path / "base") as read:
        want = whole(torch.tensor(IDS)).logits[0].numpy()
        np.testing.assert_allclose(read.logits(IDS[0]), want, atol=1e-4)
    view = open_merged(tmp_path / "base", None)
    assert "quantization_config" not in view.config


def test_a_stale_quantization_config_beside_plain_weights(tmp_path: Path, tiny_base: Path) -> None:
    stale = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    same_weights(
        edit(save(tmp_path / "base", tiny_base, str), quantization_config=stale), tiny_base
    )


@pytest.mark.parametrize(
    "method", ["hqq", "eetq", "aqlm", "spqr", "quanto", "torchao", "vptq", "mxfp4"]
)
def test_other_quantizations_are_refused_by_name(
    tmp_path: Path, tiny_base: Path, method: str
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = edit(
        save(tmp_path / "base", tiny_base, str), quantization_config={"quant_method": method}
    )
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.W_q"] = np.zeros((8, 8), np.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"the model is quantized by {method}") as no:
        open_base(folder)
    assert "take the unquantized model" in no.value.hint


@pytest.mark.parametrize("keep_4bit", [False, True])
def test_the_same_weights_are_trained_on_under_other_names(
    tmp_path: Path, tiny_base: Path, keep_4bit: bool
) -> None:
    import torch

    from edgeft.train.methods.qlora import frozen_base
    from edgeft.train.options import TrainOptions

    other = pickled(tmp_path / "pickled", save(tmp_path / "other", tiny_base, NAMES["compiled"]))
    params = []
    for base in (tiny_base, other):
        options = TrainOptions(base, tmp_path / "x.jsonl", tmp_path / "out", keep_4bit=keep_4bit)
        model = frozen_base(options, open_base(base).card, torch.float32, "cpu")
        params.append(dict(model.named_parameters()))
    assert params[0].keys() == params[1].keys()
    for name, weight in params[0].items():
        assert weight.dtype == params[1][name].dtype and torch.equal(weight, params[1][name]), name
