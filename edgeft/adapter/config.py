"""adapter_config.json of peft -> a configuration that edgeft can merge, and the scale of its LoRAs.

    config = read_adapter_config(folder)
    scaling(folder, config, "model.layers.0.self_attn.q_proj", rank=16)

An adapter that sets a key which edgeft does not know is refused, because merging it as plain LoRA
(W + s·B·A) would be wrong.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.errors import AdapterError, InputError
from edgeft.files import read_json

IGNORED_KEYS = {
    # who made it, of which base
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type",
    # what is adapted, which the tensors of the file say as well
    "ensure_weight_tying", "exclude_modules", "layers_pattern", "layers_to_transform",
    "modules_to_save", "modules_to_tie", "target_modules", "target_modules_to_tie",
    # how it was trained
    "corda_config", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config", "runtime_config",
    # peft reads it only where another key is set
    "megatron_core", "qalora_group_size",
}  # fmt: skip
"""keys of adapter_config.json that do not change the merged weights"""
MERGED_KEYS = {
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "lora_bias", "r",
    "rank_pattern", "target_parameters", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
"""keys that the merge computes with"""
UNCHANGED_BASE_INITS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
"""values of init_lora_weights that do not change the base's weights"""

CHANGED_CONFIG_KEYS = ("vocab_size", "tie_word_embeddings")
"""keys of the base's config.json that an adapter may change"""


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """The configuration of an adapter folder.

    InputError for a folder that does not exist (the hint names an interrupted training),
    AdapterError for a folder that edgeft cannot merge.
    """
    if not adapter.is_dir():
        interrupted = adapter.with_name(adapter.name + ".work").is_dir()
        raise InputError(
            f"no such adapter: {adapter}",
            "its training was interrupted: edgeft train-qlora … --resume"
            if interrupted
            else "edgeft train-qlora makes one",
        )
    config = read_json(adapter / "adapter_config.json")
    peft_type = config.get("peft_type")
    if config and peft_type != "LORA":
        raise AdapterError(f"{adapter} is a {peft_type} adapter", "edgeft merges LoRA adapters")
    if not config or not (adapter / "adapter_model.safetensors").is_file():
        lacks = "adapter_model.safetensors" if config else "adapter_config.json"
        raise AdapterError(f"{adapter} is not an adapter: no {lacks}", _hint(adapter))
    _check_types(adapter, config)
    unknown = [k for k, v in config.items() if v and k not in IGNORED_KEYS | MERGED_KEYS]
    if unknown:
        raise AdapterError(
            f"{adapter} uses {', '.join(sorted(unknown))}, which edgeft does not merge",
            "merge it with peft and give the result as --base",
        )
    init = str(config.get("init_lora_weights", True)).lower()
    if init not in UNCHANGED_BASE_INITS:
        raise AdapterError(
            f"{adapter} belongs to a changed base (init_lora_weights={init})",
            "save it with peft's path_initial_model_for_weight_conversion, as plain LoRA",
        )
    return config


def scaling(adapter: Path, config: dict[str, Any], module: str, rank: int) -> float:
    """The factor of B·A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).

    `rank` is that of the tensors. AdapterError where the configuration has another one.
    """
    configured = _by_pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if configured != rank:
        raise AdapterError(
            f"{adapter}: {module} has rank {rank}, its configuration says {configured}"
        )
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Value of the first pattern that matches the end of a module's name (peft: `get_pattern_key`)."""
    for pattern, value in (patterns or {}).items():
        try:
            match = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise AdapterError(
                f"adapter_config.json: {pattern!r} is no pattern: {error}",
                "is it the one that peft wrote?",
            ) from None
        if match:
            return value
    return default


def _check_types(adapter: Path, config: dict[str, Any]) -> None:
    """AdapterError where a key that the merge reads has a type that peft does not write."""

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and math.isfinite(value)

    def rank(value: Any) -> bool:
        return isinstance(value, int) and value > 0

    def patterns(value: Any) -> bool:
        return isinstance(value, dict) and all(map(number, value.values()))

    def names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    checks = {
        "r": rank, "lora_alpha": number, "rank_pattern": patterns, "alpha_pattern": patterns,
        "target_modules": lambda value: isinstance(value, str) or names(value),
        "target_parameters": names, "modules_to_save": names,
    }  # fmt: skip
    for key, fits in checks.items():
        value = config.get(key, ...)
        absent = value is ... or (value is None and key not in ("r", "lora_alpha"))
        if not absent and not fits(value):
            raise AdapterError(
                f"{adapter / 'adapter_config.json'}: {key} is {value!r}",
                "is it the one that peft wrote?",
            )


def _hint(adapter: Path) -> str:
    names = [path.name for path in adapter.iterdir()]
    if any(name.startswith("adapter_model") and name.endswith(".bin") for name in names):
        return "save it as safetensors; edgeft never unpickles"
    if any(re.match(r"adapter_model-.*\.safetensors", name) for name in names):
        return "it is in several files: load and save it with peft"
    return "a folder in peft's format is needed"


def adapter_manifest(adapter: Path) -> dict[str, Any]:
    """{"options": …, "facts": …} of the adapter's training; {} for an adapter of another program."""
    manifest = store.read_manifest(adapter)
    if manifest is None or manifest.kind != "adapter":
        return {}
    return {"options": manifest.options, "facts": manifest.facts}
