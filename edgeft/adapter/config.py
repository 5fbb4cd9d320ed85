"""adapter_config.json of peft -> a configuration that edgeft can merge, and the scale of its deltas.

    config = read_adapter_config(folder)
    scaling(folder, config, "model.layers.0.self_attn.q_proj", rank=16)

The file comes from anywhere, so the type of every key that is read is checked once, here. A key that
is unknown and set is refused, because merging its adapter as plain LoRA (W + s·B·A) would be wrong.
Harmless keys are ignored by rule.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.child_process import Ended, Limits, Worker
from edgeft.errors import AdapterError
from edgeft.files import read_json
from edgeft.progress import say

IGNORED_KEYS = {
    # who made it, of which base
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type",
    # what is adapted, which the tensors of the file say as well
    "ensure_weight_tying", "exclude_modules", "feedforward_modules", "layers_pattern",
    "layers_to_transform", "modules_to_save", "modules_to_tie", "target_modules",
    "target_modules_to_tie",
    # how it was trained
    "corda_config", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config", "runtime_config",
    "lora_dtype", "module_dropout", "rank_dropout", "rank_dropout_scale",
    # how it began; that of LoRA may change the base, and is checked
    "init_ia3_weights", "init_weights",
    # AdaLoRA's schedule; the ranks at its end are those of the tensors
    "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
    "total_step",
    # peft reads it only where another key is set
    "megatron_core", "qalora_group_size",
}  # fmt: skip
"""keys of adapter_config.json that do not change the merged weights"""
MERGED_KEYS = {
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "lora_bias", "r",
    "rank_pattern", "target_parameters", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
"""keys that the merge computes with"""
TYPE_KEYS = {
    "LOHA": {"alpha", "use_effective_conv2d"},
    "LOKR": {"alpha", "decompose_both", "decompose_factor", "use_effective_conv2d"},
    "TRAINABLE_TOKENS": {"token_indices"},
}
"""peft_type -> keys that only this type has; the shapes of its tensors say the same, but for alpha"""
MERGED_TYPES = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "LN_TUNING", "TRAINABLE_TOKENS")
"""values of peft_type whose change of each weight is computed here"""
RUNTIME_TYPES = {
    **dict.fromkeys(
        ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
         "ADAPTION_PROMPT"),
        "adds states to the attention of the running model and changes no weight",
    ),
    **dict.fromkeys(
        ("XLORA", "POLY"), "weighs its adapters anew for every input, so it is no change of a weight"
    ),
}  # fmt: skip
"""peft_type without merged weights -> why there are none"""
NO_NULLS = frozenset(
    (
        "bias",
        "fan_in_fan_out",
        "lora_bias",
        "use_dora",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
    )
)
"""keys whose null is peft's default, though peft itself does not compute with it"""
CLASSIFIER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""values of task_type whose models generate no text"""
UNCHANGED_BASE_INITS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
"""values of init_lora_weights that do not change the base's weights"""
FROM_FILE = "edgeft_ship_from"
"""init_lora_weights of an adapter that is the change of a GGUF file (--ship-from); peft refuses it"""
TRAINING_KEY = re.compile(
    r"(^|_)(lr|learning_rate|weight_decay|dropout|seed)(_ratio|_embedding|_scheduler)?$"
)
"""keys of how it was trained, under which trainers keep settings of their own (lorap_emb_lr)"""

CHANGED_CONFIG_KEYS = ("vocab_size", "tie_word_embeddings")
"""keys of the base's config.json that an adapter may change"""
MATCH_LIMITS = Limits(cpu_s=1, memory=1_000_000_000)
"""of the process that tries the patterns of a configuration on all names of modules"""
MAX_NUMBER = 1e9
"""of alpha or a rank"""
_ASK = "is it the one that peft wrote?"


def read_adapter_config(adapter: Path, reward: bool = False) -> dict[str, Any]:
    """The checked configuration of a folder with adapter_config.json, with peft's defaults.

    `reward`: take one with the head of a reward model, too. AdapterError for an adapter that edgeft cannot merge.
    """
    file = adapter / "adapter_config.json"
    config = read_json(file)
    if "peft_type" not in config and "lora_alpha" in config:
        config["peft_type"] = "LORA"
    _check_types(file, config)
    _check_mergeable(adapter, config, reward)
    nulls = NO_NULLS - ({"rank_pattern"} if config["peft_type"] == "ADALORA" else set())
    config = {k: v for k, v in config.items() if v is not None or k not in nulls}
    layers = config.get("layers_to_transform")
    if isinstance(layers, list):  # of digits where a trainer took them from its command line
        config["layers_to_transform"] = [int(layer) for layer in layers]
    return config


def merge_command(adapter: Path) -> str:
    """The hint for an adapter that peft can merge and edgeft cannot."""
    return (
        'merge it with peft and give the result as --base: python -c "from peft import '
        f"AutoPeftModelForCausalLM as M; M.from_pretrained('{adapter}').merge_and_unload()"
        ".save_pretrained('merged')\""
    )


def base_is_changed(config: dict[str, Any]) -> str | None:
    """The value of init_lora_weights where it changed the base's weights, else None.

    peft takes B·A of the start off the base. Only the difference to that start is a change of the
    base that is on disk: tuners/lora/model.py `subtract_mutated_init`.
    """
    init = str(config.get("init_lora_weights", True)).lower()
    return None if init in UNCHANGED_BASE_INITS else init


def scaling(adapter: Path, config: dict[str, Any], module: str, rank: int | None) -> float:
    """The factor of B·A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).

    `rank` is that of the tensors; None: they do not show it. AdapterError where the configuration has
    another one.
    """
    alpha_key = "alpha" if config["peft_type"] in ("LOHA", "LOKR") else "lora_alpha"
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get(alpha_key, 8))
    if config["peft_type"] == "ADALORA":
        # The rank at the start, whatever was left of it: tuners/adalora/layer.py `get_delta_weight`.
        start = config.get("init_r", 12)
        return float((alpha if alpha > 0 else start) / (start + 1e-5))
    configured = _by_pattern(config.get("rank_pattern"), module, config.get("r", rank or 8))
    if rank is None:
        rank = configured
    if configured != rank:
        raise AdapterError(
            f"{adapter}: {module} has rank {rank}, its configuration says {configured}"
        )
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def check_patterns(adapter: Path, config: dict[str, Any], names: Iterable[str]) -> None:
    """AdapterError for a regular expression that is none, or that takes too long on some name.

    peft matches target_modules, exclude_modules, rank_pattern and alpha_pattern with `re`, which can
    take for ever. It cannot be stopped, so another process tries the patterns first. Patterns with
    one repetition are quick on names of modules.
    """
    patterns = {
        value: value for key in ("target_modules", "exclude_modules")
        if isinstance(value := config.get(key), str) and value != "all-linear"
    }  # fmt: skip
    for key in ("alpha_pattern", "rank_pattern"):
        if key == "alpha_pattern" or config["peft_type"] != "ADALORA":
            patterns |= {text: _at_end(text) for text in config.get(key) or {}}
    for text, pattern in patterns.items():
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise AdapterError(
                f"adapter_config.json: {reprlib.repr(text)} is no pattern: {error}", _ASK
            ) from None
    slow = {text: p for text, p in patterns.items() if len(re.findall(r"[*+?{]", text)) > 1}
    if slow and not _in_time(list(slow.values()), sorted(names)):
        raise AdapterError(
            f"{adapter / 'adapter_config.json'}: {reprlib.repr(next(iter(slow)))} takes over "
            f"{MATCH_LIMITS.cpu_s:g} s on the names of the modules",
            "write the modules' names in place of the pattern",
        )


def _in_time(patterns: list[str], names: list[str]) -> bool:
    """Whether a process with MATCH_LIMITS matches all patterns on all names."""
    worker = Worker(Path(__file__), "match_all", MATCH_LIMITS)
    try:
        worker.ask([patterns, names])
    except Ended:
        return False
    finally:
        worker.close(kill=True)
    return True


def match_all(request: tuple[list[str], list[str]]) -> None:
    """Match each pattern on each name. Runs in the process with limits."""
    patterns, names = request
    for pattern in patterns:
        for name in names:
            re.match(pattern, name)


def adapter_manifest(adapter: Path) -> dict[str, Any]:
    """{"options": …, "facts": …} of the training; {} for an adapter of another program.

    A base folder that edgeft trained (`--method full`) has the same.
    """
    manifest = store.read_manifest(adapter)
    if manifest is None or manifest.kind not in ("adapter", "base"):
        return {}
    return {"options": manifest.options, "facts": manifest.facts}


def lora_shape(adapter: Path) -> dict[str, int]:
    """{"lora_r": …, "lora_alpha": …} by the folder's adapter_config.json, where they are whole numbers."""
    config = read_json(adapter / "adapter_config.json")
    names = {"lora_r": "r", "lora_alpha": "lora_alpha"}
    values = {name: config.get(key) for name, key in names.items()}
    return {name: value for name, value in values.items() if type(value) is int and value > 0}


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Value of the first pattern that matches the end of a module's name (peft: `get_pattern_key`).

    `check_patterns` has tried the patterns.
    """
    matches = (v for k, v in (patterns or {}).items() if re.match(_at_end(k), module))
    return next(matches, default)


def _at_end(pattern: str) -> str:
    """peft's expression for a pattern that matches the end of a module's name."""
    return rf"(.*\.)?({pattern})$"


def has_reward_head(config: dict[str, Any]) -> bool:
    """Whether a configuration of peft names a trained head `score`."""
    saved = config.get("modules_to_save")
    return config.get("task_type") == "SEQ_CLS" and isinstance(saved, list) and "score" in saved


def _check_mergeable(adapter: Path, config: dict[str, Any], reward: bool) -> None:
    peft_type, task = config.get("peft_type"), config.get("task_type")
    if peft_type in RUNTIME_TYPES:
        raise AdapterError(
            f"{adapter} is a {peft_type} adapter, which {RUNTIME_TYPES[peft_type]}",
            "train a LoRA adapter: what runs without peft has no place for this one",
        )
    if peft_type not in MERGED_TYPES:
        raise AdapterError(f"{adapter} is a {peft_type} adapter", merge_command(adapter))
    if task in CLASSIFIER_TASKS and not (reward and has_reward_head(config)):
        raise AdapterError(
            f"{adapter} is the adapter of a classifier (task_type {task}), which generates no text",
            "an adapter of a causal language model is needed (task_type CAUSAL_LM)",
        )
    known = IGNORED_KEYS | MERGED_KEYS | TYPE_KEYS.get(peft_type, set())
    unknown = {key: value for key, value in config.items() if key not in known}
    in_use = sorted(k for k, v in unknown.items() if v and not _is_harmless(k, v, config))
    if in_use:
        raise AdapterError(
            f"{adapter} uses {', '.join(in_use)}, which edgeft does not merge",
            merge_command(adapter),
        )
    if ignored := sorted(k for k, v in unknown.items() if v):
        say(f"{adapter}: ignored {', '.join(ignored)}: they do not change the merged weights")


def _is_harmless(key: str, value: Any, config: dict[str, Any]) -> bool:
    """Whether an unknown key is of the training, or a number of something that is switched off."""
    if TRAINING_KEY.search(key):
        return True
    words = key.split("_")
    stems = ["_".join(words[:count]) for count in range(1, len(words))]
    switches = (
        switch
        for stem in stems
        for switch in (f"use_{stem}", f"enable_{stem}", f"{stem}_config", f"{stem}_flag")
    )
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and any(switch in config and not config[switch] for switch in switches)


def _check_types(file: Path, config: dict[str, Any]) -> None:
    """AdapterError where a key that is read has a type that peft does not write."""
    ranks = _masks if config.get("peft_type") == "ADALORA" else _dict_of(_rank)
    checks: dict[str, Callable[[Any], bool]] = {
        **{key: check for keys, check in _CHECKS.items() for key in keys},
        "rank_pattern": ranks,
    }
    for key, fits in checks.items():
        value = config.get(key, ...)
        absent = value is ... or (value is None and key not in ("r", "lora_alpha", "alpha"))
        if not absent and not fits(value):
            raise AdapterError(f"{file}: {key} is {reprlib.repr(value)}", _ASK)
    try:
        json.dumps(config, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise AdapterError(f"{file} holds half of a surrogate pair", _ASK) from None


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not _flag(value) and abs(value) <= MAX_NUMBER


def _rank(value: Any) -> bool:
    return isinstance(value, int) and not _flag(value) and 0 < value <= MAX_NUMBER


def _index(value: Any) -> bool:
    return isinstance(value, int) and not _flag(value) and 0 <= value <= MAX_NUMBER


def _layer(value: Any) -> bool:
    return _index(value) or (_text(value) and bool(re.fullmatch(r"[0-9]{1,6}", value)))


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _dict_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


_names, _indices, _masks = _list_of(_text), _list_of(_index), _dict_of(_list_of(_flag))
_CHECKS: dict[tuple[str, ...], Callable[[Any], bool]] = {
    ("peft_type", "task_type", "bias", "base_model_name_or_path"): _text,
    ("fan_in_fan_out", "lora_bias", "use_dora", "use_rslora"): _flag,
    ("lora_alpha", "alpha"): _number,
    ("r", "init_r"): _rank,
    ("alpha_pattern",): _dict_of(_number),
    ("target_modules", "exclude_modules"): lambda value: _text(value) or _names(value),
    ("target_parameters", "modules_to_save"): _names,
    ("layers_to_transform",): lambda value: _index(value) or _list_of(_layer)(value),
    ("init_lora_weights",): lambda value: _text(value) or _flag(value),
    ("trainable_token_indices",): lambda value: _indices(value) or _dict_of(_indices)(value),
    ("token_indices",): _indices,
}
"""keys -> what their value must be"""
