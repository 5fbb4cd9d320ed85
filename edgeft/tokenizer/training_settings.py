"""JSON files of a model's folder -> the same without the settings of training that harm an artifact.

    undo(folder, 49152, stops, chat.stops, "model")     # rewrites config.json, … where needed

HARMFUL is what training tools leave behind and what would break or change generation; each entry is
undone with a note. HARMLESS is left as it is: no program that generates text reads it, or its effect
is what the base's publisher wants.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.files import read_json
from edgeft.progress import say_once

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_CONFIG, TOKENIZER = "tokenizer_config.json", "tokenizer.json"


@dataclass(frozen=True)
class Model:
    """What a rule knows of the model beside the setting."""

    vocabulary: int
    """rows of the embedding"""
    stops: frozenset[int]
    """ids of the tokens that end an answer"""
    stop_texts: frozenset[str]


Repair = Callable[[Any, Model], Any]
"""value of a setting -> the value that an artifact gets; None removes the setting"""


@dataclass(frozen=True)
class Rule:
    files: tuple[str, ...]
    key: str
    repair: Repair
    reason: str
    """what the setting would do"""


def _instead(harmful: Callable[[Any], bool], value: Any = None) -> Repair:
    return lambda setting, _: value if harmful(setting) else setting


def _more_than(limit: int) -> Callable[[Any], bool]:
    return lambda setting: isinstance(setting, int) and setting > limit


def _without_stops(setting: Any, model: Model) -> Any:
    """A list of ids, or of lists of ids, without those that are a stop."""
    if not isinstance(setting, list):
        return setting
    stops = [*model.stops, *([stop] for stop in model.stops)]
    return [entry for entry in setting if entry not in stops] or None


def _without_stop_texts(setting: Any, model: Model) -> Any:
    texts = [setting] if isinstance(setting, str) else setting
    if not isinstance(texts, list) or not model.stop_texts & set(map(str, texts)):
        return setting
    return [text for text in texts if text not in model.stop_texts] or None


def _without_biased_stops(setting: Any, model: Model) -> Any:
    """A list of [ids, bias] without those that keep a stop down."""
    if not isinstance(setting, list):
        return setting
    stops = [[stop] for stop in model.stops]
    return [[ids, bias] for ids, bias in setting if ids not in stops or bias > 0] or None


def _is_missing_kernel(setting: Any) -> bool:
    """Whether it names kernels of a package, as training on a GPU does."""
    return setting not in ("eager", "sdpa")


def _in_vocabulary(setting: Any, model: Model) -> Any:
    return None if isinstance(setting, int) and setting >= model.vocabulary else setting


def _without_eos(processor: Any, model: Model) -> Any:
    """A post-processor of tokenizer.json that adds no stop after a text."""
    if not isinstance(processor, dict):
        return processor
    if parts := processor.get("processors"):
        return processor | {"processors": [_without_eos(part, model) for part in parts]}
    if processor.get("type") != "TemplateProcessing":
        return processor
    templates = {
        name: [part for part in processor[name] if _name(part) not in model.stop_texts]
        for name in ("single", "pair") if name in processor
    }  # fmt: skip
    if _name(next(iter(processor.get("single", [])), {})) in model.stop_texts:
        return processor  # a token that is the bos as well
    return processor | templates


def _name(part: Any) -> str:
    return str((part.get("SpecialToken") or {}).get("id", ""))


_IS_FALSE, _IS_TRUE = (lambda setting: setting is False), (lambda setting: setting is True)
_IS_SET = bool

HARMFUL = (
    Rule((CONFIG, GENERATION), "use_cache", _instead(_IS_FALSE, True),
         "transformers would compute the whole text again for every token"),
    Rule((CONFIG,), "output_router_logits", _instead(_IS_TRUE, False),
         "transformers would compute the routers' training loss at every step"),
    Rule((CONFIG,), "pretraining_tp", _instead(_more_than(1), 1),
         "transformers 4 would cut the layers, which quantized ones do not allow"),
    Rule((CONFIG, GENERATION), "pad_token_id", _in_vocabulary,
         "the embedding has no row for it, and transformers does not load such a model"),
    Rule((CONFIG,), "attn_implementation", _instead(_is_missing_kernel),
         "transformers does not load the model where the package is missing"),
    Rule((CONFIG,), "_attn_implementation", _instead(_is_missing_kernel),
         "transformers does not load the model where the package is missing"),
    Rule((CONFIG, TOKENIZER_CONFIG), "auto_map", _instead(_IS_SET),
         "it names code that the folder does not hold"),
    Rule((GENERATION,), "suppress_tokens", _without_stops, "an answer could not end"),
    Rule((GENERATION,), "begin_suppress_tokens", _without_stops, "an answer could not be empty"),
    Rule((GENERATION,), "sequence_bias", _without_biased_stops, "an answer could hardly end"),
    Rule((GENERATION,), "min_length", _instead(_more_than(0)), "a short answer could not end"),
    Rule((GENERATION,), "min_new_tokens", _instead(_more_than(0)), "a short answer could not end"),
    Rule((GENERATION,), "penalty_alpha", _instead(_IS_SET), "transformers 5 refuses it"),
    Rule((GENERATION,), "dola_layers", _instead(_IS_SET), "transformers 5 refuses it"),
    Rule((GENERATION,), "token_healing", _instead(_IS_SET),
         "transformers refuses it without the tokenizer"),
    Rule((GENERATION,), "num_return_sequences", _instead(_more_than(1)),
         "transformers refuses it without sampling"),
    Rule((GENERATION,), "stop_strings", _without_stop_texts,
         "transformers refuses it without the tokenizer; the tokens are in eos_token_id"),
    Rule((TOKENIZER_CONFIG,), "add_eos_token", _instead(_IS_TRUE, False),
         "a prompt would end with the eos, and the answer before it begins"),
    Rule((TOKENIZER,), "post_processor", _without_eos,
         "a prompt would end with the eos, and the answer before it begins"),
)  # fmt: skip

KEEP_FROM_LOADING = ("pad_token_id", "attn_implementation", "_attn_implementation")
"""keys of config.json with which transformers may not load a model at all"""

HARMLESS = {
    "_name_or_path": "a note of where the model came from",
    "transformers_version": "a note",
    "gradient_checkpointing": "of training only",
    "rope_scaling": "transformers, vLLM and edgeft read the old key `type` as `rope_type`",
    "torch_dtype": "an artifact's own dtype replaces it",
    "quantization_config": "left out: an artifact has its own or none",
    "pad_token": "equal to eos_token: generation reads the attention mask, not the token",
    "padding_side": "the caller's choice for batches",
    "model_max_length": "it counts only where a caller asks for truncation",
    "do_sample, temperature, top_p, top_k, min_p": "the publisher's advice for sampling; greedy runtimes"
    " do not read it, transformers may warn",
    "repetition_penalty, no_repeat_ngram_size": "the publisher's advice; edgeft's runtimes do not read it",
    "max_length, max_new_tokens": "a limit that a caller sees and sets",
    "forced_eos_token_id": "it takes effect at the length limit only",
    "forced_bos_token_id": "it takes effect after a single token only",
    "bad_words_ids": "transformers takes the stops out of it",
    "num_beams, guidance_scale": "a caller's way to search, which costs time; edgeft's runtimes are greedy",
}
"""setting -> why it stays, or why nobody misses it"""


def config_overrides(base: Path) -> dict[str, Any]:
    """Arguments of transformers' from_pretrained without which it does not load such a base."""
    config = read_json(base / CONFIG)
    model = Model(config.get("vocab_size", sys.maxsize), frozenset(), frozenset())
    return {
        rule.key: None
        for rule in HARMFUL
        if rule.key in KEEP_FROM_LOADING and rule.key in config
        and rule.repair(config[rule.key], model) is None
    }  # fmt: skip


def undo(
    folder: Path, vocabulary: int, stops: Iterable[int], stop_texts: Iterable[str], name: str
) -> None:
    """Rewrite the files of `folder` that hold a harmful setting; one note each.

    `stops`: ids of the tokens that end an answer, `stop_texts`: their texts. `name`: of the base.
    """
    model = Model(vocabulary, frozenset(stops), frozenset(stop_texts))
    for file in (CONFIG, GENERATION, TOKENIZER_CONFIG, TOKENIZER):
        settings = read_json(folder / file)
        repaired = _repaired(file, settings, model, name)
        if repaired != settings:
            text = json.dumps(repaired, indent=1, ensure_ascii=False)
            (folder / file).write_text(text + "\n", encoding="utf-8")


def _repaired(file: str, settings: dict[str, Any], model: Model, name: str) -> dict[str, Any]:
    repaired = dict(settings)
    for rule in HARMFUL:
        before = settings.get(rule.key)
        if file not in rule.files or before is None:
            continue
        after = rule.repair(before, model)
        if after == before:
            continue
        repaired[rule.key] = after
        if after is None and file != TOKENIZER:  # tokenizer.json has its keys always
            del repaired[rule.key]
        say_once(f"{name}: {rule.key} of {file} is undone in the artifact: {rule.reason}")
    return repaired
