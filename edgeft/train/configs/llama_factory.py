"""LLaMA-Factory's YAML: its defaults, and the option of edgeft for each key.

Keys and defaults: `src/llamafactory/hparams/` at
https://github.com/hiyouga/LLaMA-Factory/tree/ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30; those of the
trainer are transformers' `TrainingArguments`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeft.train.configs.table import (
    PER_DEVICE,
    NotCarried,
    NotNeeded,
    Part,
    Place,
    Row,
    Tool,
    adam_constants,
    flag,
    module_names,
    names,
    number,
    optimizer,
    positive,
    reporters,
    shown,
    steps_between,
    switch,
    warmup_ratio,
    whole,
    word,
)

TRUNCATES = (
    "LLaMA-Factory cuts longer examples off; edgeft leaves them out, and counts them in the log"
)


PREFERENCE_STAGES = ("dpo", "kto")
ANSWERS = "answers to a prompt"
"""stands where there is no key: a constant of stage ppo"""


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "finetuning_type": "lora",
        "stage": "sft",
        "lora_rank": 8,
        "lora_alpha": None,  # twice the rank
        "lora_dropout": 0.0,
        "lora_target": "all",
        "dataset_dir": "data",
        "cutoff_len": 2048,
        "train_on_prompt": False,
        "val_size": 0.0,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 5e-5,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "group_by_length": False,
        "packing": False,
        "seed": 42,
        **({"pref_beta": 0.1} if config.get("stage") in PREFERENCE_STAGES else {}),
        **({"ppo_epochs": 4, ANSWERS: 1} if config.get("stage") == "ppo" else {}),
    }


def _rows(place: Place) -> list[Row]:
    return [
        Row("base", ("model_name_or_path",), place.base),
        Row(
            "data",
            ("dataset", "max_samples"),
            functools.partial(_dataset, place),
            context=("dataset_dir",),
        ),
        Row(
            "validation-data",
            ("eval_dataset",),
            lambda names, folder: _dataset(Place(place.file, place.target), names, None, folder),
            context=("dataset_dir",),
        ),
        Row("output", ("output_dir",), word),
        Row(
            "objective",
            ("stage",),
            _objective,
            context=("pref_loss",),
            is_essential=lambda value: True,
        ),
        Row("loss-type", ("pref_loss",), _loss_type, context=("stage",)),
        Row("beta", ("pref_beta",), _of_preferences(number), context=("stage",)),
        Row("simpo-gamma", ("simpo_gamma",), _of_simpo, context=("stage", "pref_loss")),
        Row("desirable-weight", ("kto_chosen_weight",), _of_kto, context=("stage",)),
        Row("undesirable-weight", ("kto_rejected_weight",), _of_kto, context=("stage",)),
        Row("reward", ("reward_model",), _reward_model),
        Row("ppo-epochs", ("ppo_epochs",), _of_ppo, context=("stage",)),
        Row("generations", (ANSWERS,), _of_ppo, context=("stage",)),
        Row("label-smoothing", ("dpo_label_smoothing",), _smoothing),
        Row("pref-ftx", ("pref_ftx",), _mixed_loss),
        Row(
            "method",
            ("finetuning_type", "pissa_init"),
            _method,
            context=("quantization_bit",),
            is_essential=lambda value: value not in ("lora", "qlora", "pissa"),
        ),
        Row("quantization", ("quantization_bit", "quantization_type"), _quantization),
        Row("double-quant", ("double_quantization",), switch),
        Row("adapter", ("adapter_name_or_path",), _adapter),
        Row("validation-size", ("val_size",), number),
        Row("epochs", ("num_train_epochs",), number),
        Row("steps", ("max_steps",), positive(whole)),
        Row(
            "batch-size",
            ("per_device_train_batch_size", "gradient_accumulation_steps"),
            lambda micro, parts: whole(micro) * whole(parts),
            note=PER_DEVICE,
        ),
        Row("micro-batch-size", ("per_device_train_batch_size",), whole),
        Row("learning-rate", ("learning_rate",), number),
        Row("scheduler", ("lr_scheduler_type",), word),
        Row("warmup-ratio", ("warmup_ratio", "warmup_steps"), warmup_ratio, context=("max_steps",)),
        Row("optimizer", ("optim",), optimizer),
        Row("optimizer", ("use_muon",), _optimizer_flag("muon")),
        Row("optimizer", ("use_galore",), _optimizer_flag("galore")),
        Row("optimizer", ("use_apollo",), _optimizer_flag("apollo")),
        Row("optimizer", ("use_badam",), _optimizer_flag("badam")),
        Row("optimizer", ("use_adam_mini",), _optimizer_flag("adam-mini")),
        Row("weight-decay", ("weight_decay",), number),
        Row("max-grad-norm", ("max_grad_norm",), number),
        Row("neftune-alpha", ("neftune_noise_alpha",), number),
        Row("cutoff-length", ("cutoff_len",), whole, note=TRUNCATES, note_on_default=True),
        Row("packing", ("packing", "neat_packing"), _packing),
        Row("train-on-inputs", ("train_on_prompt",), switch),
        Row("group-by-length", ("group_by_length",), switch),
        Row("lora-r", ("lora_rank",), _of_lora(whole), context=("finetuning_type",)),
        Row("lora-alpha", ("lora_alpha",), _alpha, context=("lora_rank", "finetuning_type")),
        Row("lora-dropout", ("lora_dropout",), _of_lora(number), context=("finetuning_type",)),
        Row("target-modules", ("lora_target",), _of_lora(_targets), context=("finetuning_type",)),
        Row("use-rslora", ("use_rslora",), flag),
        Row("use-dora", ("use_dora",), flag),
        Row("lora-plus-ratio", ("loraplus_lr_ratio",), number),
        Row("target-modules", ("freeze_trainable_modules",), _targets),
        Row("freeze-trainable-layers", ("freeze_trainable_layers",), whole),
        Row("compute-type", ("pure_bf16",), lambda on: "bf16" if flag(on) else ""),
        Row(
            "checkpoint-activations",
            ("disable_gradient_checkpointing",),
            lambda off: not switch(off),
        ),
        Row("attention", ("flash_attn",), _attention),
        Row("seed", ("seed",), whole),
        Row("eval-every", ("eval_steps",), _eval_every, context=("eval_strategy", "max_steps")),
        Row("save-every", ("save_steps", "save_strategy"), _save_every, context=("max_steps",)),
        Row("early-stopping", ("early_stopping_steps",), whole),
        Row("keep-best", ("load_best_model_at_end",), flag),
        Row("add-tokens", ("add_tokens",), names),
        Row("add-tokens", ("add_special_tokens",), names),
        Row("report-to", ("report_to",), reporters),
        Row(
            "optimizer-args",
            ("adam_beta1", "adam_beta2", "adam_epsilon"),
            adam_constants,
            context=("optim",),
        ),
    ]


def _refused(config: Mapping[str, Any]) -> str:
    if config.get("do_train") is True:
        return ""
    if "export_dir" in config:
        return "it exports a model; use edgeft merge-export"
    if "infer_backend" in config:
        return "it runs a model; use edgeft chat or edgeft serve"
    if config.get("do_predict") or config.get("do_eval"):
        return "it evaluates a model; use edgeft bench"
    return "do_train is not true"


def _dataset(place: Place, value: Any, max_samples: Any, dataset_dir: Any) -> str:
    """The file of the datasets of dataset_dir's `dataset_info.json`."""
    info = place.existing(f"{dataset_dir}/dataset_info.json") if dataset_dir else None
    if info is None:
        raise NotCarried(f"there is no dataset_info.json in {shown(dataset_dir)}; type --data FILE")
    limit = None if max_samples is None else whole(max_samples)
    return place.data([_part(info, name, limit) for name in names(value)])


def _part(info: Path, name: str, limit: int | None) -> Part:
    """The local file of a dataset of `dataset_info.json`."""
    try:
        entry = json.loads(info.read_text(encoding="utf-8"))[name]
        file = entry.get("file_name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotCarried(f"{info} does not describe {shown(name)}; type --data FILE") from None
    if not isinstance(file, str):
        raise NotCarried(f"{shown(name)} is no local file; download it, then type --data FILE")
    path = info.parent / file
    if not path.is_file():
        raise NotCarried(f"there is no file {path}; type --data FILE")
    if "num_samples" in entry:  # drawn at random there
        raise NotCarried(f"{shown(name)} draws num_samples rows of {path}; type --data FILE")
    return Part(path, limit)


def _objective(stage: Any, pref_loss: Any) -> str:
    stages = {"pt": "pretrain", "rm": "reward"}
    name = word(stage)
    if name == "dpo" and pref_loss in ("orpo", "simpo"):
        return str(pref_loss)
    return stages.get(name, name)


def _loss_type(loss: Any, stage: Any) -> str:
    if stage != "dpo":
        raise NotNeeded("it is read at stage dpo alone")
    if loss in ("sigmoid", "orpo", "simpo"):
        raise NotNeeded("it is the objective's own")
    if loss not in ("hinge", "ipo"):
        raise NotCarried(f"edgeft has no --loss-type {shown(loss)}")
    return str(loss)


def _of_preferences(convert: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def value(raw: Any, stage: Any) -> Any:
        if stage not in PREFERENCE_STAGES:
            raise NotNeeded("it is read in preference training alone")
        return convert(raw)

    return value


def _of_simpo(gamma: Any, stage: Any, loss: Any) -> float:
    if (stage, loss) != ("dpo", "simpo"):
        raise NotNeeded("it is read with pref_loss simpo alone")
    return number(gamma)


def _of_kto(weight: Any, stage: Any) -> float:
    if stage != "kto":
        raise NotNeeded("it is read at stage kto alone")
    return number(weight)


def _of_ppo(count: Any, stage: Any) -> int:
    if stage != "ppo":
        raise NotNeeded("it is read at stage ppo alone")
    return whole(count)


def _reward_model(name: Any) -> str:
    raise NotCarried("the reward models of edgeft are its own; type --reward")


def _smoothing(share: Any) -> float:
    if not number(share):
        raise NotNeeded("it is off")
    raise NotCarried("trl's loss sigmoid has none; type --loss-type robust --label-smoothing SHARE")


def _mixed_loss(weight: Any) -> float:
    if not number(weight):
        raise NotNeeded("it is off")
    raise NotCarried("edgeft adds no loss of SFT to DPO; --objective cpo has one")


def _method(kind: Any, pissa: Any, bits: Any) -> str:
    if word(kind) != "lora":
        return word(kind)
    if bits is not None:
        if pissa is True:
            raise NotCarried("PiSSA needs a base that is not quantized")
        return "qlora"
    return "pissa" if pissa is True else "lora"


def _quantization(bits: Any, kind: Any) -> str:
    if bits is None:
        raise NotNeeded("there is no quantization_bit")
    kinds = {4: word(kind or "nf4"), 8: "int8"}
    if whole(bits) not in kinds:
        raise NotCarried(f"edgeft freezes a base in 4 or 8 bits, not in {shown(bits)}")
    return kinds[whole(bits)]


def _adapter(value: Any) -> str:
    found = names(value)
    if len(found) != 1:
        raise NotCarried("edgeft goes on from one adapter; merge the others into the base")
    return found[0]


def _of_lora(convert: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """`convert` for a key of LoRA, which other methods do not read."""

    def value(raw: Any, kind: Any) -> Any:
        if kind != "lora":
            raise NotNeeded(f"it belongs to LoRA, and finetuning_type is {shown(kind)}")
        return convert(raw)

    return value


def _alpha(alpha: Any, rank: Any, kind: Any) -> int:
    return int(_of_lora(whole)(alpha or 2 * whole(rank), kind))


def _targets(value: Any) -> list[str]:
    if value == "all":
        raise NotNeeded("edgeft trains all of a block by default")
    return module_names(value)


def _optimizer_flag(name: str) -> Callable[[Any], str]:
    def value(on: Any) -> str:
        flag(on)
        return name

    return value


def _packing(packing: Any, neat: Any) -> bool:
    if switch(packing or False) and not switch(neat or False):
        raise NotCarried("without neat_packing the examples of a pack see each other")
    return bool(packing or neat)


def _attention(value: Any) -> str:
    known = {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}
    return known.get(word(value), word(value))


def _eval_every(value: Any, strategy: Any, max_steps: Any) -> int:
    if strategy != "steps":
        raise NotNeeded(f"eval_strategy is {shown(strategy or 'no')}")
    return steps_between(value, max_steps)


def _save_every(value: Any, strategy: Any, max_steps: Any) -> int:
    if strategy == "no":
        return 0
    if strategy == "epoch" or value is None:
        raise NotCarried("edgeft saves after a number of steps")
    return steps_between(value, max_steps)


TEXT = "edgeft trains the text model alone"
MACHINE = "it tunes the work on the machine, which edgeft does itself; the result is the same"
PRECISION = "--compute-type auto takes the faster of fp32 and bf16"

TOOL = Tool(
    name="LLaMA-Factory",
    defaults=_defaults,
    rows=_rows,
    refused=_refused,
    not_needed={
        "do_train": "the command trains",
        "bf16": PRECISION,
        "fp16": PRECISION,
        "tf32": PRECISION,
        "upcast_layernorm": PRECISION,
        "upcast_lmhead_output": "edgeft computes the loss in fp32",
        "trust_remote_code": "edgeft runs no code of a model's repository",
        "quantization_method": "edgeft's values of NF4 are those of bitsandbytes",
        "dataset_dir": "--data names the file itself",
        "preprocessing_num_workers": MACHINE,
        "preprocessing_batch_size": MACHINE,
        "dataloader_num_workers": MACHINE,
        "dataloader_pin_memory": MACHINE,
        "low_cpu_mem_usage": MACHINE,
        "use_reentrant_gc": MACHINE,
        "per_device_eval_batch_size": MACHINE,
        "ddp_timeout": "there is one process",
        "overwrite_cache": "edgeft keeps no cache of encoded examples",
        "logging_steps": "edgeft logs every step",
        "plot_loss": "edgeft report OUTPUT draws the curves",
        "ignore_pad_token_for_loss": "padding is never learned",
        "use_fast_tokenizer": "edgeft reads tokenizer.json",
        "save_total_limit": "edgeft keeps two checkpoints, and deletes them with the end of the run",
        "save_only_model": "checkpoints are deleted with the end of the run",
        "include_num_input_tokens_seen": "edgeft counts tokens itself",
        "remove_unused_columns": "edgeft names unused keys of the data in a note",
        "eval_strategy": "edgeft evaluates every --eval-every steps where there is validation data",
    },
    no_option={
        "template": "edgeft uses the chat template of the base itself; compare with --preview",
        "default_system": "write the system turn into the data",
        "overwrite_output_dir": "type --overwrite where the output is to be replaced",
        "resume_from_checkpoint": "type --resume with the same command",
        "deepspeed": "edgeft trains in one process",
        "fsdp": "edgeft trains in one process",
        "fsdp_config": "edgeft trains in one process",
        "ray_num_workers": "edgeft trains in one process",
        "mask_history": "edgeft learns every answer of a conversation",
        "model_revision": "download this revision and give its folder",
        "run_name": "edgeft names a run by its output",
        "image_max_pixels": TEXT,
        "video_max_pixels": TEXT,
        "video_fps": TEXT,
        "video_maxlen": TEXT,
        "media_dir": TEXT,
        "freeze_vision_tower": TEXT,
        "freeze_multi_modal_projector": TEXT,
    },
    on_by_default=(
        "use_fast_tokenizer",
        "low_cpu_mem_usage",
        "use_reentrant_gc",
        "ignore_pad_token_for_loss",
        "enable_thinking",
        "freeze_vision_tower",
        "freeze_multi_modal_projector",
        "use_kv_cache",
    ),
)
