"""Axolotl's YAML: its defaults, and the option of edgeft for each key.

Keys and defaults: `src/axolotl/utils/schemas/` and `src/axolotl/core/builders/base.py` at
https://github.com/axolotl-ai-cloud/axolotl/tree/067b021c8b87a9e5e380b9173c704cf7340e30f5.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeft.data.hub import hub_id
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

HUB_KEYS = {"name": None, "revision": None, "split": "train"}
"""key that says which part of a data set on the hub is meant -> what it is where nothing is said"""
PLAIN_TEXT = ("completion", "pretrain")
"""types of a dataset without conversations"""
KERNEL_PLUGINS = ("CutCrossEntropyPlugin", "LigerPlugin", "KernelsPlugin")
DATASET_NOTE = (
    "edgeft reads the shape of the rows itself and writes them by the base's chat template"
)


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    adapter = {"lora_dropout": 0.0, "lora_target_linear": False} if config.get("adapter") else {}
    both = config.get("warmup_steps") is None and config.get("warmup_ratio") is None
    return {
        **adapter,
        **({"warmup_ratio": 0.03} if both else {}),
        "adapter": "",
        "rl": "sft",
        "output_dir": "./model-out",
        "sequence_len": 512,
        "train_on_inputs": False,
        "val_set_size": 0.0,
        "micro_batch_size": 1,
        "num_epochs": 1.0,
        "lr_scheduler": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optimizer": "adamw_torch_fused",
        "group_by_length": False,
        "sample_packing": False,
        "seed": 42,
    }


def _rows(place: Place) -> list[Row]:
    dataset = functools.partial(_dataset, place)
    return [
        Row("base", ("base_model",), place.base),
        Row("data", ("datasets",), dataset, note=DATASET_NOTE),
        Row(
            "validation-data",
            ("test_datasets",),
            functools.partial(_dataset, Place(place.file, place.target)),
        ),
        Row("output", ("output_dir",), word),
        Row("objective", ("rl",), _objective, is_essential=lambda value: True),
        Row("loss-type", ("rl",), _loss_type),
        Row("beta", ("rl_beta",), number),
        Row("beta", ("dpo_beta",), number),
        Row("beta", ("orpo_alpha",), number),
        Row("simpo-gamma", ("simpo_gamma",), number),
        Row("desirable-weight", ("kto_desirable_weight",), number),
        Row("undesirable-weight", ("kto_undesirable_weight",), number),
        Row(
            "objective",
            ("reward_model",),
            lambda on: "reward" if flag(on) else "",
            is_essential=lambda value: True,
        ),
        Row(
            "method",
            ("adapter",),
            _method,
            context=("load_in_4bit", "load_in_8bit", "peft_init_lora_weights"),
            is_essential=lambda value: value not in ("lora", "qlora", "pissa", "olora"),
        ),
        Row(
            "quantization",
            ("load_in_4bit", "load_in_8bit"),
            _quantization,
            context=("adapter",),
        ),
        Row("init-lora-weights", ("peft_init_lora_weights",), _start),
        Row("adapter", ("lora_model_dir",), word),
        Row("validation-size", ("val_set_size",), number),
        Row("epochs", ("num_epochs",), number),
        Row("steps", ("max_steps",), positive(whole)),
        Row(
            "batch-size",
            ("micro_batch_size", "gradient_accumulation_steps", "batch_size"),
            _batch_size,
            note=PER_DEVICE,
        ),
        Row("micro-batch-size", ("micro_batch_size",), whole),
        Row("learning-rate", ("learning_rate",), number),
        Row("scheduler", ("lr_scheduler",), word),
        Row("warmup-ratio", ("warmup_ratio", "warmup_steps"), warmup_ratio, context=("max_steps",)),
        Row("optimizer", ("optimizer",), optimizer),
        Row("weight-decay", ("weight_decay",), number),
        Row("max-grad-norm", ("max_grad_norm",), number),
        Row("neftune-alpha", ("neftune_noise_alpha",), number),
        Row("neftune-alpha", ("noisy_embedding_alpha",), number),
        Row("cutoff-length", ("sequence_len", "excess_length_strategy"), _cutoff),
        Row("packing", ("sample_packing",), switch),
        Row("train-on-inputs", ("train_on_inputs",), switch),
        Row("group-by-length", ("group_by_length",), switch),
        Row("lora-r", ("lora_r",), _of_adapter(whole), context=("adapter",)),
        Row("lora-alpha", ("lora_alpha",), _of_adapter(whole), context=("adapter",)),
        Row("lora-dropout", ("lora_dropout",), _of_adapter(number), context=("adapter",)),
        Row(
            "target-modules",
            ("lora_target_modules", "lora_target_linear"),
            _targets,
            context=("adapter",),
        ),
        Row("use-rslora", ("peft_use_rslora",), flag),
        Row("use-dora", ("peft_use_dora",), flag),
        Row("lora-plus-ratio", ("loraplus_lr_ratio",), number),
        Row("checkpoint-activations", ("gradient_checkpointing",), _checkpointing),
        Row("offload-activations", ("activation_offloading",), _offloading),
        Row("attention", ("attn_implementation",), word),
        Row("attention", ("flash_attention",), lambda on: "flash_attention_2" if flag(on) else ""),
        Row("plugins", ("plugins",), _plugins),
        Row("seed", ("seed",), whole),
        Row(
            "eval-every",
            ("eval_steps",),
            _per_step,
            context=("max_steps", "val_set_size", "test_datasets"),
        ),
        Row(
            "eval-every",
            ("evals_per_epoch",),
            _per_epoch,
            context=("max_steps", "val_set_size", "test_datasets"),
        ),
        Row("save-every", ("save_steps",), steps_between, context=("max_steps",)),
        Row("early-stopping", ("early_stopping_patience",), whole),
        Row("keep-best", ("load_best_model_at_end",), flag),
        Row("add-tokens", ("tokens",), names),
        Row("report-to", ("wandb_project",), lambda name: reporters("wandb" if word(name) else "")),
        Row("report-to", ("use_tensorboard",), lambda on: ["tensorboard"] if flag(on) else []),
        Row(
            "optimizer-args",
            ("adam_beta1", "adam_beta2", "adam_epsilon"),
            adam_constants,
            context=("optimizer",),
        ),
    ]


def _objective(name: Any) -> str:
    return "dpo" if name == "ipo" else word(name)


def _loss_type(name: Any) -> str:
    if name != "ipo":
        raise NotNeeded("it is the objective's own")
    return "ipo"


def _dataset(place: Place, value: Any) -> str:
    """The file of the datasets, or the id of the only one on the hub."""
    entries = value if isinstance(value, list) else [value]
    path = _path(entries[0]) if len(entries) == 1 else ""
    if path and place.existing(path) is None and hub_id(Path(path)):
        return _hub_id(path, entries[0])
    return place.data([_local(place, entry) for entry in entries])


def _path(entry: Any) -> str:
    """The file or the hub id of a dataset."""
    if not isinstance(entry, dict):
        raise NotCarried("it names no file; type --data FILE")
    if entry.get("type") in PLAIN_TEXT:
        raise NotCarried(
            f"type {entry['type']} is plain text: type --objective pretrain and --data FILE"
        )
    files = entry.get("data_files")
    if isinstance(files, list) and len(files) == 1:
        (files,) = files
    path = files or entry.get("path")
    if not isinstance(path, str):
        raise NotCarried("it names no file; type --data FILE")
    return path


def _local(place: Place, entry: Any) -> Part:
    """The local file of a dataset."""
    path = _path(entry)
    file = place.existing(path)
    if file is None:
        raise NotCarried(
            f"{shown(path)} is not on this machine; type --data FILE, or the id of one data set on the hub"
        )
    for key, usual in HUB_KEYS.items():
        if entry.get(key, usual) not in (usual, None):
            raise NotCarried(f"{key} {shown(entry[key])} of {shown(path)}: edgeft reads all rows")
    return Part(file)


def _hub_id(path: str, entry: dict[str, Any]) -> str:
    """The id with revision, config and split."""
    words = (entry.get(key) for key in ("name", "split") if entry.get(key) not in (None, "train"))
    revision = f"@{entry['revision']}" if entry.get("revision") else ""
    text = ":".join([path + revision, *map(str, words)])
    if hub_id(Path(text)) is None:  # split: train[:10%]
        raise NotCarried(f"{shown(text)} is no whole split of a data set")
    return text


def _plugins(value: Any) -> str:
    """Plugins that only make the same computation faster need no option."""
    others = [name for name in value if name.rpartition(".")[2] not in KERNEL_PLUGINS]
    if not others:
        raise NotNeeded(KERNEL)
    raise NotCarried(f"edgeft has no plugins: {', '.join(map(shown, others))}")


def _method(adapter: Any, four: Any, eight: Any, start: Any) -> str:
    if not adapter:
        return "full"
    if adapter == "qlora" or adapter == "lora" and (four is True or eight is True):
        return "qlora"
    if adapter == "lora" and isinstance(start, str) and start.split("_")[0] in ("pissa", "olora"):
        return start.split("_")[0]
    return word(adapter)


def _start(value: Any) -> str:
    if value is True or str(value).split("_")[0] in ("pissa", "olora"):
        raise NotNeeded("the method says so")
    return str(value)


def _quantization(four: Any, eight: Any, adapter: Any) -> str:
    if not adapter:
        raise NotNeeded("without an adapter nothing is frozen")
    if four is True or adapter == "qlora":
        return "nf4"
    if eight is True:
        return "int8"
    raise NotNeeded("it is off")


def _batch_size(micro: Any, parts: Any, batch: Any) -> int:
    """As Axolotl: gradient_accumulation_steps go before batch_size."""
    size = whole(micro)
    if parts is not None or batch is None:
        return size * whole(parts or 1)
    return size * max(1, whole(batch) // size)


def _cutoff(length: Any, strategy: Any) -> int:
    if strategy not in (None, "drop"):
        raise NotCarried(f"edgeft leaves longer examples out, it has no {shown(strategy)}")
    return whole(length)


def _of_adapter(convert: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """`convert` for a key of LoRA, which a full fine-tuning does not read."""

    def value(raw: Any, adapter: Any) -> Any:
        if not adapter:
            raise NotNeeded("it belongs to LoRA, and there is no adapter")
        return convert(raw)

    return value


def _targets(modules: Any, linear: Any, adapter: Any) -> list[str]:
    if not adapter:
        raise NotNeeded("it belongs to LoRA, and there is no adapter")
    if linear is True:
        if modules:
            raise NotNeeded("with lora_target_linear every linear layer trains, as by default here")
        raise NotNeeded("edgeft trains all of a block by default")
    if not modules:
        raise NotCarried("Axolotl leaves the choice to peft; edgeft trains every linear layer")
    if isinstance(modules, str) and "," not in modules:  # peft and edgeft match the whole name
        return [modules]
    return module_names(modules)


def _checkpointing(value: Any) -> bool:
    if isinstance(value, str) and value.startswith("offload"):
        raise NotCarried("newer versions write true, and activation_offloading: true beside it")
    return switch(value)


def _offloading(value: Any) -> bool:
    return flag(True if value in ("legacy", "disk") else value)


def _per_step(value: Any, max_steps: Any, share: Any, files: Any) -> int:
    _check_validation(share, files)
    return steps_between(value, max_steps)


def _per_epoch(value: Any, max_steps: Any, share: Any, files: Any) -> int:
    _check_validation(share, files)
    raise NotCarried("edgeft counts steps; by default it evaluates five times")


def _check_validation(share: Any, files: Any) -> None:
    if not number(share or 0) and not files:
        raise NotNeeded("there is no validation data")


TEXT = "edgeft trains the text model alone"
SHAPE = "edgeft reads all rows of a file, and knows their shape itself"
MACHINE = "it tunes the work on the machine, which edgeft does itself; the result is the same"
PRECISION = "--compute-type auto takes the faster of fp32 and bf16"
KERNEL = "a faster kernel for GPUs; the result is the same"

TOOL = Tool(
    name="Axolotl",
    defaults=_defaults,
    rows=_rows,
    refused=lambda config: "",
    dataset_lists=("datasets", "test_datasets", "pretraining_dataset"),
    dataset_keys=("path", "data_files", "ds_type", "type", *HUB_KEYS),
    not_needed={
        "bf16": PRECISION,
        "fp16": PRECISION,
        "tf32": PRECISION,
        "float16": PRECISION,
        "bfloat16": PRECISION,
        "torch_dtype": PRECISION,
        "trust_remote_code": "edgeft runs no code of a model's repository",
        "model_type": "edgeft finds the model's class in config.json",
        "tokenizer_type": "edgeft reads tokenizer.json",
        "tokenizer_use_fast": "edgeft reads tokenizer.json",
        "dataset_prepared_path": "edgeft keeps no cache of encoded examples",
        "logging_steps": "edgeft logs every step",
        "saves_per_epoch": "edgeft saves every --save-every steps and deletes them with the end of the run",
        "save_total_limit": "edgeft keeps two checkpoints, and deletes them with the end of the run",
        "save_only_model": "checkpoints are deleted with the end of the run",
        "save_safetensors": "edgeft writes safetensors",
        "eval_batch_size": MACHINE,
        "gradient_checkpointing_kwargs": MACHINE,
        "pad_to_sequence_len": "padding changes no result, and edgeft multiplies as little as it can",
        "eval_sample_packing": "packing changes no loss",
        "low_cpu_mem_usage": MACHINE,
        "dataset_processes": MACHINE,
        "dataset_num_proc": MACHINE,
        "strict": "an unknown key of the TOML is an error",
        "cut_cross_entropy": KERNEL,
        "liger_rope": KERNEL,
        "liger_rms_norm": KERNEL,
        "liger_rms_norm_gated": KERNEL,
        "liger_layer_norm": KERNEL,
        "liger_glu_activation": KERNEL,
        "liger_fused_linear_cross_entropy": KERNEL,
        "lora_mlp_kernel": KERNEL,
        "lora_qkv_kernel": KERNEL,
        "lora_o_kernel": KERNEL,
        "use_kernels": KERNEL,
        "torch_compile": KERNEL,
        "flash_attn_cross_entropy": KERNEL,
        "flash_attn_fuse_mlp": KERNEL,
    },
    no_option={
        "chat_template": "edgeft uses the chat template of the base itself; compare with --preview",
        "eot_tokens": "edgeft learns what the base's chat template writes after an answer",
        "special_tokens": "edgeft uses the base's own tokens; change them in its tokenizer files",
        "resume_from_checkpoint": "type --resume with the same command",
        "auto_resume_from_checkpoints": "type --resume with the same command",
        "deepspeed": "edgeft trains in one process",
        "fsdp": "edgeft trains in one process",
        "fsdp_config": "edgeft trains in one process",
        "fsdp_version": "edgeft trains in one process",
        "revision_of_model": "download this revision and give its folder",
        "lora_modules_to_save": "edgeft trains no whole modules beside LoRA",
        "unfrozen_parameters": "edgeft trains whole layers, or LoRA",
        "pretraining_dataset": "type --objective pretrain and --data FILE",
        "wandb_name": "edgeft names a run by its output",
        "processor_type": TEXT,
        "freeze_mm_modules": TEXT,
        "split": SHAPE,
        "name": SHAPE,
        "field_messages": SHAPE,
        "message_property_mappings": SHAPE,
        "message_field_role": SHAPE,
        "message_field_content": SHAPE,
        "roles": SHAPE,
    },
    on_by_default=("shuffle_merged_datasets", "experimental_skip_move_to_device"),
)
