"""Adapters as users have them: other names, files, programs, types and settings, held to peft."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.adapter import config as adapter_config
from edgeft.adapter.folder import adapter_home, open_adapter, recorded_base
from edgeft.adapter.read import Weighted
from edgeft.errors import AdapterError, EdgeftError, InputError
from edgeft.merge.view import open_merged
from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors
from helpers.adapters import ATTENTION, assert_merged, load, logits, make_adapter
from helpers.tiny import make_base

pytestmark = pytest.mark.filterwarnings("ignore")
MLP = ["up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("adapter") / "base")


@pytest.fixture(scope="module")
def plain(base: Path) -> Path:
    """A LoRA adapter of peft."""
    return make_adapter(base, base.parent / "plain", target_modules=[*ATTENTION, "down_proj"])


def read(adapter: Path) -> dict[str, Any]:
    file = Checkpoint(adapter / "adapter_model.safetensors")
    return {name: file.read(name) for name in file.tensors}


def write(file: Path, tensors: dict[str, Any]) -> None:
    specs = [Spec(name, "F32", array.shape) for name, array in tensors.items()]
    write_safetensors(file, specs, list(tensors.values()))


def copy(adapter: Path, to: Path, config: dict[str, Any] | None = None) -> Path:
    """A copy with other settings; None takes one out."""
    shutil.copytree(adapter, to)
    if config is not None:
        stored = json.loads((to / "adapter_config.json").read_text()) | config
        stored = {key: value for key, value in stored.items() if value is not ...}
        (to / "adapter_config.json").write_text(json.dumps(stored))
    return to


def assert_same(base: Path, adapter: Path, plain: Path) -> None:
    """Merged, and loaded by peft as the live model, as the plain adapter is."""
    import peft

    merged, expected = open_merged(base, adapter), open_merged(base, plain)
    for name in expected.shapes:
        np.testing.assert_array_equal(merged.tensor(name), expected.tensor(name), err_msg=name)
    live = peft.PeftModel.from_pretrained(load(base), open_adapter(adapter, base).folder)
    reference = peft.PeftModel.from_pretrained(load(base), plain)
    np.testing.assert_allclose(logits(live), logits(reference), rtol=0, atol=1e-4)


RENAMED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "torch.compile inside": lambda name: name.replace("model.", "model._orig_mod.", 1),
    "activation checkpoints": lambda name: name.replace(
        ".self_attn.", "._checkpoint_wrapped_module.self_attn."
    ),
    "FSDP": lambda name: name.replace(".layers.", "._fsdp_wrapped_module.layers.").replace(
        ".self_attn.", "._fsdp_wrapped_module.self_attn."
    ),
    "DDP": lambda name: f"module.{name}",
    "DDP of torch.compile": lambda name: f"module._orig_mod.{name}",
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "twice the prefix": lambda name: f"base_model.model.{name}",
    "Lightning": lambda name: f"state_dict.module.{name}",
    "without model.": lambda name: name.replace("base_model.model.model.", "base_model.model."),
    "without any": lambda name: name.removeprefix("base_model.model.model."),
    "one model. more": lambda name: name.replace("model.layers", "model.model.layers"),
    "of a vision model": lambda name: name.replace("model.layers", "model.language_model.layers"),
    "of an older one": lambda name: name.replace("model.layers", "language_model.model.layers"),
    "adapter name": lambda name: name.replace(".weight", ".default.weight"),
    "another adapter name": lambda name: name.replace(".weight", ".my_sft.weight"),
}  # fmt: skip


@pytest.mark.parametrize("writer", RENAMED)
def test_wrappers_and_outer_names_are_taken_off(
    base: Path, plain: Path, tmp_path: Path, writer: str
) -> None:
    adapter = copy(plain, tmp_path / "adapter")
    renamed = {RENAMED[writer](name): array for name, array in read(plain).items()}
    assert set(renamed) != set(read(plain))
    write(adapter / "adapter_model.safetensors", renamed)
    assert_same(base, adapter, plain)


def test_names_that_are_ambiguous_are_refused(base: Path, plain: Path, tmp_path: Path) -> None:
    tensors = read(plain)
    two = copy(plain, tmp_path / "two")
    write(two / "adapter_model.safetensors",
          {name.replace(".weight", f".{x}.weight"): a for name, a in tensors.items() for x in "ab"})  # fmt: skip
    with pytest.raises(AdapterError, match="several adapters: a, b"):
        open_merged(base, two)
    write(
        two / "adapter_model.safetensors",
        tensors | {f"_orig_mod.{n}": a for n, a in tensors.items()},
    )
    with pytest.raises(AdapterError, match="two tensors of the file are of the same module"):
        open_merged(base, two)


def test_files_of_torch_save_and_parts(base: Path, plain: Path, tmp_path: Path) -> None:
    import torch

    tensors = read(plain)
    names = sorted(tensors)
    halves = [{name: tensors[name] for name in part} for part in (names[:7], names[7:])]
    for form in ("bin", "old bin", "wrapped bin", "parts", "bin parts"):
        adapter = copy(plain, tmp_path / form)
        (adapter / "adapter_model.safetensors").unlink()
        if "parts" not in form:
            saved: Any = {name: torch.from_numpy(array) for name, array in tensors.items()}
            if "wrapped" in form:
                saved = {"state_dict": saved, "step": 3}
            torch.save(saved, adapter / "adapter_model.bin",
                       _use_new_zipfile_serialization="old" not in form)  # fmt: skip
        for i, half in enumerate(halves if "parts" in form else ()):
            stem = f"adapter_model-0000{i + 1}-of-00002"
            write(adapter / f"{stem}.safetensors", half)
            if "bin" in form:
                (adapter / f"{stem}.safetensors").unlink()
                torch.save(
                    {n: torch.from_numpy(a) for n, a in half.items()}, adapter / f"{stem}.bin"
                )
        assert_same(base, adapter, plain)
    (tmp_path / "parts" / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(AdapterError, match="has 1 parts of an adapter.*download it again"):
        open_merged(base, tmp_path / "parts")


def test_pickles_with_anything_else_are_refused(base: Path, plain: Path, tmp_path: Path) -> None:
    import torch

    adapter = copy(plain, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": torch.nn.Linear(2, 2)}, adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="names torch.nn.modules.linear.Linear, and not tensors"):
        open_merged(base, adapter)


def test_adapter_in_a_subfolder(base: Path, plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copy(plain, run / "default")
    shutil.copyfile(base / "tokenizer.json", run / "tokenizer.json")
    assert_same(base, run, plain)
    assert recorded_base(run) == str(base)
    assert adapter_home(run) == run / "default"
    assert open_merged(base, run).tokenizer != base
    for step in (500, 1000):
        copy(plain, tmp_path / "more" / f"checkpoint-{step}")
    with pytest.raises(
        AdapterError, match=r"checkpoint-500, checkpoint-1000 .*more/checkpoint-1000"
    ):
        open_merged(base, tmp_path / "more")
    assert_same(base, tmp_path / "more" / "checkpoint-500", plain)


HARMLESS: dict[str, dict[str, Any]] = {
    "unsloth": {
        "base_model_name_or_path": "unsloth/Llama-3.2-1B-Instruct-bnb-4bit",
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|"
        r"k_proj|v_proj|o_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\."
        r"(?:(?:q_proj|k_proj|v_proj|o_proj|down_proj)))",
    },
    "ms-swift": {"lora_dtype": "float32", "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-06},
    "LoRA+": {"loraplus_lr_ratio": 16.0, "loraplus_lr_embedding": None, "embedding_lr": 1e-6},
    "a newer peft": {"future_flag": False, "future_config": None, "future_group_size": 16,
                     "use_other": False, "other_rank": 3},
    "alpha as a float": {"lora_alpha": 6.0},
    "layers_pattern": {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    "layers as texts": {"layers_to_transform": ["0", "1"], "layers_pattern": "layers"},
    "megatron": {"megatron_config": {}, "megatron_core": "megatron.core", "loftq_config": {}},
    "EVA": {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"},
    "no rank": {"r": ...},
    "no type": {"peft_type": ...},
    "nulls": {"bias": None, "use_rslora": None, "rank_pattern": None, "alpha_pattern": None,
              "modules_to_save": None, "task_type": None, "lora_bias": None},
    "peft 0.2": {key: ... for key in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora",
                                      "init_lora_weights", "peft_version", "task_type")}
    | {"enable_lora": None, "merge_weights": False},
}  # fmt: skip


@pytest.mark.parametrize("writer", HARMLESS)
def test_settings_that_cannot_change_the_sum(
    base: Path, plain: Path, tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_same(base, copy(plain, tmp_path / "adapter", HARMLESS[writer]), plain)
    ignored = {
        "ms-swift": "lorap_emb_lr, lorap_lr_ratio",
        "a newer peft": "future_group_size, other_rank",
    }
    if writer in ignored:
        assert f"ignored {ignored[writer]}: they do not change" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [{"future_scale": 2.0}, {"future_flag": True}, {"use_future": True, "future_rank": 3},
     {"use_future": "yes"}, {"lora_scale": 2.0, "lora_config": {"a": 1}}],
)  # fmt: skip
def test_settings_that_may_change_it_are_refused(
    base: Path, plain: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    adapter = copy(plain, tmp_path / "adapter", config)
    with pytest.raises(AdapterError, match="which edgeft does not merge .merge it with peft.*-c"):
        open_merged(base, adapter)


TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "IA3": ("IA3Config", {"target_modules": ["k_proj", "v_proj", "down_proj"],
                          "feedforward_modules": ["down_proj"], "init_ia3_weights": False}),
    "LoHa": ("LoHaConfig", {"r": 3, "alpha": 5, "target_modules": [*ATTENTION, *MLP],
                            "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 9}}),
    "LoKr": ("LoKrConfig", {"r": 3, "alpha": 5, "target_modules": [*ATTENTION, *MLP]}),
    "LoKr, both": ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": [*ATTENTION, *MLP],
                                  "decompose_both": True, "decompose_factor": 8}),
    "LoKr, whole": ("LoKrConfig", {"r": 64, "alpha": 32, "target_modules": ["q_proj"]}),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 4, "lora_alpha": 6, "target_modules": [*ATTENTION, *MLP],
                                  "total_step": 10}),
    "LN tuning": ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "trainable tokens": ("TrainableTokensConfig", {"token_indices": [5, 9],
                                                   "target_modules": ["embed_tokens"]}),
}  # fmt: skip


def make_type(base: Path, adapter: Path, config: str, **options: Any) -> Path:
    """An adapter of another type of peft, with random values."""
    import peft
    import torch

    torch.manual_seed(2)
    live = peft.get_peft_model(load(base), getattr(peft, config)(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    live.save_pretrained(adapter)
    return adapter


@pytest.mark.parametrize("method", TYPES)
def test_other_types_of_peft_merge_as_peft_merges_them(
    base: Path, tmp_path: Path, method: str
) -> None:
    config, options = TYPES[method]
    adapter = make_type(base, tmp_path / "adapter", config, **options)
    assert open_adapter(adapter, base).folder == adapter, "the live model loads it as it is"
    assert_merged(open_merged(base, adapter), base, adapter)


def test_ia3_scales_biases_too(tmp_path: Path) -> None:
    import torch
    import transformers

    from helpers.families import SMALL

    base, config = make_base(tmp_path / "base"), transformers.LlamaConfig
    torch.manual_seed(0)
    options = SMALL | {"attention_bias": True, "mlp_bias": True, "vocab_size": 265}
    model = transformers.AutoModelForCausalLM.from_config(config(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(base)
    adapter = make_type(base, tmp_path / "adapter", *("IA3Config",), **TYPES["IA3"][1])
    assert_merged(open_merged(base, adapter), base, adapter)


def test_adalora_that_pruned_its_ranks(base: Path, tmp_path: Path) -> None:
    import peft
    import torch

    torch.manual_seed(3)
    options = peft.AdaLoraConfig(
        init_r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], total_step=9
    )
    live = peft.get_peft_model(load(base), options)
    pattern = {}
    with torch.no_grad():
        for i, (name, parameter) in enumerate(live.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            if "lora_E" in name:
                pattern[name.removeprefix("base_model.model.")] = [i % 2 == 0, True, False, True]
    live.peft_config["default"].rank_pattern = pattern
    live.save_pretrained(tmp_path / "adapter")
    shapes = {tuple(array.shape) for array in read(tmp_path / "adapter").values()}
    assert (2, 1) in shapes or (3, 1) in shapes
    assert_merged(open_merged(base, tmp_path / "adapter"), base, tmp_path / "adapter")


def test_pissa_with_the_start_of_its_training(base: Path, tmp_path: Path) -> None:
    """What LLaMA-Factory and peft's examples keep; the base on disk is the one before PiSSA."""
    import peft
    import torch

    for init, options in (("pissa", {}), ("olora", {}), ("pissa_niter_4", {"use_rslora": True})):
        adapter, start = tmp_path / init, tmp_path / init / "pissa_init"
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=[*ATTENTION, "up_proj"], task_type="CAUSAL_LM",
                                 init_lora_weights=init, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3},
                                 **options)  # fmt: skip
        live = peft.get_peft_model(load(base), config).eval()
        live.peft_config["default"].init_lora_weights = True
        live.save_pretrained(start)
        live.peft_config["default"].init_lora_weights = init
        with torch.no_grad():
            for parameter in live.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        live.save_pretrained(adapter)
        merged = open_merged(base, adapter)
        expected = live.merge_and_unload().state_dict()
        for name in merged.shapes:
            np.testing.assert_allclose(
                merged.tensor(name), expected[name].numpy(), rtol=0, atol=5e-5
            )
        shutil.rmtree(start)
        with pytest.raises(
            AdapterError, match=rf"changed base .init_lora_weights={init}.*conversion"
        ):
            open_merged(base, adapter)


def test_heads_that_generate_no_text(
    base: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = copy(plain, tmp_path / "adapter", {"modules_to_save": ["v_head"]})
    heads = {"v_head.summary.weight": np.ones((1, 64), np.float32),
             "base_model.model.score.weight": np.ones((2, 64), np.float32),
             "base_model.model.model.vision_tower.q_proj.lora_A.weight": np.ones((4, 9), np.float32)}  # fmt: skip
    write(adapter / "adapter_model.safetensors", read(plain) | heads)
    assert_same(base, adapter, plain)
    notes = capsys.readouterr().err
    assert "left out the tensors of v_head (1), score (1), vision_tower (1)" in notes
    assert notes.count("left out") == 1
    for number, config in enumerate(({"modules_to_save": ["classifier", "score"]},
                                     {"task_type": "SEQ_CLS"},
                                     {"modules_to_save": ["qa_outputs"]})):  # fmt: skip
        write(adapter / "adapter_model.safetensors",
              read(plain) | heads | {"base_model.model.qa_outputs.weight": np.ones((2, 64), np.float32)})  # fmt: skip
        classifier = copy(adapter, tmp_path / f"classifier{number}", config)
        with pytest.raises(AdapterError, match="the adapter of a classifier"):
            open_merged(base, classifier)


def test_adapter_of_mlx(base: Path, plain: Path, tmp_path: Path) -> None:
    """lora_a (inputs, r), lora_b (r, outputs), and a scale in place of alpha / r."""
    for dora in (False, True):
        source = make_adapter(
            base, tmp_path / f"peft{dora}", use_dora=dora, target_modules=ATTENTION
        )
        folder = tmp_path / f"mlx{dora}"
        folder.mkdir()
        tensors = {}
        for name, array in read(source).items():
            name = name.removeprefix("base_model.model.")
            name = name.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")
            name = name.replace("lora_magnitude_vector", "m")
            tensors[name] = array if name.endswith(".m") else np.ascontiguousarray(array.T)
        write(folder / "adapters.safetensors", tensors)
        config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 16, "model": "some/base",
                  "lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 1.5}}  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config))
        assert_same(base, folder, source)
        assert recorded_base(folder) == "some/base"
    del config["lora_parameters"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"has no lora_parameters.scale"):
        open_merged(base, folder)


@pytest.mark.parametrize("alpha", [6.0, 0.0])
def test_adapter_of_llama_cpp(base: Path, tmp_path: Path, alpha: float) -> None:
    """Its q and k have rotary pairs side by side; an alpha of 0 is a scale of 1."""
    import gguf

    from edgeft import models

    source = make_adapter(base, tmp_path / "peft", target_modules=[*ATTENTION, "down_proj"],
                          lora_alpha=alpha or 4)  # fmt: skip
    config = json.loads((base / "config.json").read_text())
    card = models.card_for(config)
    writer = gguf.GGUFWriter(tmp_path / "adapter.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, array in read(source).items():
        module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        place = card.gguf_names(f"{module}.weight")[0][0]
        if rest[0] == "B":
            transform = card.transform(place)
            order = transform.source_rows(slice(None), array.shape, config)
            array = np.ascontiguousarray(array[order])
        writer.add_tensor(f"{place}.lora_{rest[0].lower()}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same(base, tmp_path / "adapter.gguf", source)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copyfile(tmp_path / "adapter.gguf", folder / "x.gguf")
    assert_same(base, folder, source)


OTHERS: dict[str, tuple[str, str]] = {
    "zero_to_fp32.py": ("a checkpoint of DeepSpeed", "zero_to_fp32.py"),
    "global_step20/mp_rank_00_model_states.pt": ("a checkpoint of DeepSpeed", "zero_to_fp32.py"),
    "pytorch_model_fsdp_0/__0_0.distcp": (
        "a sharded checkpoint of FSDP",
        "accelerate merge-weights",
    ),
    "__0_0.distcp": ("a distributed checkpoint of torch", "dcp_to_torch"),
    "lit_model.pth.lora": ("a checkpoint of LitGPT", "litgpt merge_lora"),
    "adapter_0.pt": ("in torchtune's own format", "adapter_model.safetensors"),
    "weights/metadata.json": ("a checkpoint of NeMo", "hf-peft"),
    "x.nemo": ("a checkpoint of NeMo", "hf-peft"),
    "adapters.npz": ("of an early MLX", "mlx_lm.fuse"),
    "pytorch_lora_weights.safetensors": ("a LoRA of an image model", "language models"),
    "model.safetensors": ("a whole model, and no adapter", "--base"),
    "README.md": ("is not an adapter: no adapter_config.json", "a folder in peft's format"),
}


@pytest.mark.parametrize("file", OTHERS)
def test_other_programs_are_named_with_their_conversion(
    base: Path, tmp_path: Path, file: str
) -> None:
    (tmp_path / "x" / file).parent.mkdir(parents=True)
    (tmp_path / "x" / file).write_text("")
    says, hint = OTHERS[file]
    with pytest.raises(AdapterError) as caught:
        open_merged(base, tmp_path / "x")
    assert says in caught.value.message and hint in caught.value.hint


def test_adapters_of_image_models_and_ms_swift(base: Path, tmp_path: Path) -> None:
    write(
        tmp_path / "lora.safetensors", {"lora_unet_x.lora_down.weight": np.ones((2, 2), np.float32)}
    )
    with pytest.raises(AdapterError, match="image model .kohya"):
        open_merged(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"swift_type": "LORA"}')
    with pytest.raises(AdapterError, match="ms-swift's own tuners .swift export"):
        open_merged(base, tmp_path)


HOSTILE: dict[str, Any] = {
    "lora_alpha": [10**400, "8", True, [8], {}, -1e300, None, float("nan")],
    "r": [0, -4, 4.0, "4", True, 10**30, None],
    "rank_pattern": [{r"((\w+\.?)+)+X": 4}, {"(": 4}, {"q_proj": "2"}, {"q_proj": 0}, [], "q", {"(?i)q": 4},
                     {"a{99999999999}": 4}, {"q_proj": True}],
    "alpha_pattern": [{r"((\w+\.?)+)+X": 4}, {"q_proj": 10**400}, {"q_proj": None}, 3],
    "target_modules": [r"((\w+\.?)+)+X", 3, [3], {"a": 1}, "("],
    "exclude_modules": [r"(x?model\.?)*((\w+\.?)+)+X", [None]],
    "trainable_token_indices": [[-1], ["1"], {"embed_tokens": "12"}, {"embed_tokens": [[1]]}, 5, [10**400],
                                {"embed_tokens": [1.5]}, "x"],
    "layers_to_transform": [[[]], "x", {"a": 1}, ["-1"], [10**400]],
    "modules_to_save": ["lm_head", [1], {"a": 1}],
    "use_rslora": ["yes", 1, [1]], "use_dora": ["false", 2], "fan_in_fan_out": [{}, "x"], "bias": [3, []],
    "init_lora_weights": [3, [], {"a": 1}], "peft_type": [3, [], None], "task_type": [[]],
    "base_model_name_or_path": [3, "\ud800"], "auto_mapping": ["\ud800"], "target_parameters": [3, [1]],
}  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_settings_end_in_one_line(
    base: Path, plain: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key != "target_modules":  # where an expression without end has its whole second
        limits = dataclasses.replace(adapter_config.MATCH_LIMITS, cpu_s=0.1)
        monkeypatch.setattr(adapter_config, "MATCH_LIMITS", limits)
    for i, value in enumerate(HOSTILE[key]):
        adapter = copy(plain, tmp_path / str(i), {key: value})
        with pytest.raises(EdgeftError) as caught:
            open_merged(base, adapter)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def mutants(plain: Path, count: int) -> Any:
    """(name of a file, its damaged content), the same on every run."""
    draw = np.random.default_rng(0)
    config = json.loads((plain / "adapter_config.json").read_text())
    values = [
        None,
        True,
        -1,
        0,
        10**400,
        0.5,
        "",
        "x",
        "\ud800",
        [],
        [[]],
        [1],
        {},
        {"x": {}},
        {"x": -1},
    ]
    weights = (plain / "adapter_model.safetensors").read_bytes()
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "b", "id": 1}]}
    for i in range(count):
        pick = values[int(draw.integers(len(values)))]
        if i % 4 == 0:
            key = list(config)[int(draw.integers(len(config)))]
            yield "adapter_config.json", json.dumps(config | {key: pick}).encode()
        elif i % 4 == 1:
            text = bytearray(weights[8 : 8 + size])
            for at in draw.integers(0, size, 2):
                text[at] = int(draw.integers(256))
            yield "adapter_model.safetensors", weights[:8] + bytes(text) + weights[8 + size :]
        elif i % 4 == 2:
            name = names[int(draw.integers(len(names)))]
            entry = {"dtype": "F32", "shape": [4, 64], "data_offsets": [0, 1024]} | header[name]
            field = ["dtype", "shape", "data_offsets", "name"][int(draw.integers(4))]
            changed = dict(header)
            if field == "name":
                words = [
                    "lora_C",
                    "base_layer",
                    "modules_to_save",
                    "lora_embedding_A",
                    "ia3_l",
                    "lora_E",
                ]
                word = words[int(draw.integers(len(words)))]
                del changed[name]
                changed[name.replace("lora_A", word).replace("lora_B", word)] = entry
            else:
                shapes = [[64, 4], [256], [4, 64, 1], [0, 64], [-4, -64], [2, 128], []]
                other = [shapes[int(draw.integers(len(shapes)))], pick][int(draw.integers(2))]
                changed[name] = entry | {field: other}
            text = json.dumps(changed).encode()
            yield (
                "adapter_model.safetensors",
                len(text).to_bytes(8, "little") + text + weights[8 + size :],
            )
        else:
            section = ["model", "added_tokens", "vocab", "id"][int(draw.integers(4))]
            copy = json.loads(json.dumps(tokenizer))
            place = {"vocab": copy["model"], "id": copy["added_tokens"][0]}.get(section, copy)
            place[section] = pick
            yield "tokenizer.json", json.dumps(copy).encode()


def test_every_damage_is_one_line(base: Path, plain: Path, tmp_path: Path) -> None:
    """200 damaged adapters: each merges or is refused in one line, never with a traceback."""
    adapter, refused = copy(plain, tmp_path / "adapter"), 0
    for i, (name, content) in enumerate(mutants(plain, 200)):
        stored = (plain / name).read_bytes() if (plain / name).exists() else None
        (adapter / name).write_bytes(content)
        try:
            merged = open_merged(base, [Weighted(adapter)])
            for tensor in merged.shapes:
                merged.rows(tensor, slice(0, 2))
        except EdgeftError as error:
            assert "\n" not in str(error), (i, name)
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutant {i} of {name}: {content[:3000]!r}") from error
        if stored is None:
            (adapter / name).unlink()
        else:
            (adapter / name).write_bytes(stored)
    assert 100 < refused < 195
