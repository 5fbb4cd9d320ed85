"""config.json of a base -> the text model in it: its card, and the config that its own class takes.

    text = text_model({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {…}})
    text.card.family, text.config["architectures"]      # "gemma3", ["Gemma3ForCausalLM"]

A model for images or sound holds its text model's settings under `text_config` (wrappers.toml). Where
config.json names no architecture, or the same model with another head, `model_type` decides. A
config that names a card's architecture is returned as it is.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from edgeft.errors import FormatError, InputError, require
from edgeft.models.cards import FOLDER, Card, cards
from edgeft.models.hyperparameters import check_config

TEXT_CONFIG_KEYS = ("text_config", "llm_config", "language_config")
"""keys of config.json that hold the text model's settings"""
OTHER_HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification",
               "ForQuestionAnswering", "ForRewardModel")  # fmt: skip
"""ends of the class names of one family in transformers, beside ForCausalLM"""
TRAINING_CLASSES = ("PeftModelForCausalLM", "PeftModel", "AutoModelForCausalLMWithValueHead",
                    "OptimizedModule", "AutoModelForCausalLM")  # fmt: skip
"""class names that training programs leave in config.json, around a model of any family"""
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
"""keys of config.json that say how the weights are stored"""
SCORE = "score.weight"
"""transformers' name of the head of a reward model, (1, width of the model)"""
REWARD_ARCHITECTURE = "ForSequenceClassification"
"""end of the name of transformers' classes with a head that rates texts"""
SHARED_KEYS = ("eos_token_id", "bos_token_id", "pad_token_id", "dtype", "torch_dtype",
               *QUANTIZATION_KEYS)  # fmt: skip
"""keys of the whole that hold for its text model, where that has none of its own"""


@dataclass(frozen=True)
class Wrapper:
    """A multimodal model around a text model; a row of wrappers.toml."""

    model_type: str
    text: str = ""
    """model_type of the text model where config.json does not say it"""
    tied: bool = False
    """whether the output layer is the embedding where config.json does not say it"""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """values that its text config has and the text model's own class has not"""
    refused: str = ""
    """why text alone is not the text model; "" where it is"""


class TextModel(NamedTuple):
    """A text model, as config.json describes it."""

    card: Card
    config: dict[str, Any]
    """settings of the card's architecture"""
    wrapper: str = ""
    """architecture of the multimodal model around it"""
    notes: tuple[str, ...] = ()
    """messages to the user"""


def text_model(config: dict[str, Any]) -> TextModel:
    """FormatError where no card has the architecture, where it is not a text model's, and for numbers
    that no model can have."""
    text = _text_model(config)
    check_config(text.config, text.card.hparams, text.card.defaults)
    return text


def _text_model(config: dict[str, Any]) -> TextModel:
    name = _architecture(config)
    wrapper = _wrapper_name(name, config)
    if wrapper:
        config, name = _unwrapped(wrapper, config), ""
    card, note = _card(name, config)
    if name in card.architectures and not _missing_aliases(card, config):
        return TextModel(card, config)
    config = {**config, **_missing_aliases(card, config)}
    if name not in card.architectures:
        config |= {"architectures": [card.architectures[0]]}
        config |= {"model_type": card.model_types[0]} if wrapper else {}
    if wrapper:
        note = f"{wrapper}: its text model is read, as {card.architectures[0]}"
    return TextModel(card, config, wrapper, (note,) if note else ())


def card_for(config: dict[str, Any]) -> Card:
    """The card of a model by its config.json; FormatError where no card has its architecture."""
    return text_model(config).card


def transformers_class(config: dict[str, Any]) -> Any:
    """transformers' class of a model; FormatError where it has none."""
    name = _architecture(text_model(config).config)
    model_class = getattr(require("transformers", "train"), name, None)
    if model_class is None:
        raise FormatError(
            f"transformers has no {name}, and code that comes with a model is never run",
            "merge-export --format gguf --quant q4_k_m makes a file that runs",
        )
    return model_class


def transformers_config(config: dict[str, Any]) -> Any:
    """transformers' configuration object of a text model; FormatError where it has no class."""
    text = text_model(config).config
    without = {key: value for key, value in text.items() if key not in QUANTIZATION_KEYS}
    return transformers_class(text).config_class.from_dict(without)


def names_classifier(config: dict[str, Any]) -> bool:
    """Whether a config.json names a class of transformers with a head that rates texts, or sorts them."""
    return _architecture(config).endswith(REWARD_ARCHITECTURE)


def no_language_model(path: Path) -> InputError:
    """The error for a model with such a head where a language model is asked for."""
    return InputError(
        f"{path} rates texts and writes none: it has a head of its own in place of the output layer",
        f"a language model is needed here; edgeft score --model {path} rates with a reward model",
    )


def reward_config(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json of a causal language model gets where a scalar head replaces its output layer.

    transformers reads the score at the last token that is not the padding token, so there must be one.
    """
    ends, pad = config.get("eos_token_id"), config.get("pad_token_id")
    end = ends[0] if isinstance(ends, list) else ends
    if pad is None or not 0 <= pad < config.get("vocab_size", pad + 1):
        pad = end or 0
    name = _architecture(config).removesuffix("ForCausalLM")
    if str(config.get("model_type")).endswith("_text") and not name.endswith("Text"):
        name += "Text"  # Gemma3ForSequenceClassification is the one that sees pictures, too
    return {
        "architectures": [name + REWARD_ARCHITECTURE], "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0}, "pad_token_id": pad,
    }  # fmt: skip


@functools.cache
def wrappers() -> dict[str, Wrapper]:
    """Architecture -> multimodal model around a text model."""
    raw = tomllib.loads((FOLDER / "wrappers.toml").read_text())
    return {name: Wrapper(**entry) for name, entry in raw.items()}


def _architecture(config: dict[str, Any]) -> str:
    """The first of `architectures`, "" where config.json names none."""
    names = config.get("architectures") or [""]
    return str(names[0] if isinstance(names, list) else names)


def _wrapper_name(name: str, config: dict[str, Any]) -> str:
    """Architecture in wrappers.toml; "" for a text model."""
    known = wrappers()
    if name in known:
        return name
    if not name:
        kept = config.get("model_type")
        return next((n for n, wrapper in known.items() if wrapper.model_type == kept), "")
    if any(name in card.architectures for card in cards()) or not _nested(config):
        return ""
    raise FormatError(
        f"the text model of {name} is not known to run alone",
        f"those of {', '.join(n for n, wrapper in known.items() if not wrapper.refused)} are read",
    )


def _nested(config: dict[str, Any]) -> dict[str, Any]:
    """The text model's settings within those of the whole; {} where they are not apart."""
    nested = (config.get(key) for key in TEXT_CONFIG_KEYS)
    return next((value for value in nested if isinstance(value, dict)), {})


def _unwrapped(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The text model's config of a multimodal model."""
    wrapper, text = wrappers()[name], _nested(config)
    if wrapper.refused:
        raise FormatError(
            f"{name} is no text model: {wrapper.refused}", "take the text model of the same maker"
        )
    tied = [part["tie_word_embeddings"] for part in (config, text) if "tie_word_embeddings" in part]
    model_type = text.get("model_type") or wrapper.text
    text = text or {k: v for k, v in config.items() if not isinstance(v, dict) or "rope" in k}
    shared = {key: config[key] for key in SHARED_KEYS if config.get(key) is not None}
    entries = {key: value for key, value in text.items() if value is not None or key not in shared}
    result = {
        **wrapper.defaults,
        **shared,
        **entries,
        "model_type": model_type if _nested(config) else wrapper.text,
    }
    result |= {
        key: _plain_rope(result[key])
        for key in ("rope_scaling", "rope_parameters")
        if key in result
    }
    result["tie_word_embeddings"] = any(tied) if tied else wrapper.tied
    return result


def _plain_rope(rope: Any) -> Any:
    """The rope of text alone: the positions of a text are the same in all sections of "mrope"."""
    if not isinstance(rope, dict):
        return rope
    plain = {key: value for key, value in rope.items() if not key.startswith("mrope_")}
    return {
        k: "default" if v == "mrope" and k in ("type", "rope_type") else v for k, v in plain.items()
    }


def _card(name: str, config: dict[str, Any]) -> tuple[Card, str]:
    """(card, a note where config.json names another class)."""
    for card in cards():
        if name.lower() in map(str.lower, card.architectures):
            return card, ""
    model_type = config.get("model_type")
    for card in cards():
        if model_type in card.model_types and (not name or name in _other_names(card)):
            note = f"config.json names {name or 'no architecture'}: it is read as {card.architectures[0]}"
            return card, note
    raise _no_card(name, model_type)


def _other_names(card: Card) -> tuple[str, ...]:
    """Class names of the same model with another head, or as a training program wraps it."""
    causal = card.architectures[0]
    stem = causal.removesuffix("ForCausalLM")
    return (*(stem + head for head in OTHER_HEADS), f"FSDP{causal}", *TRAINING_CLASSES)


def _no_card(name: str, model_type: Any) -> FormatError:
    there = f"there are {', '.join(card.family for card in cards())}"
    if not name and not model_type:
        example = '"architectures": ["LlamaForCausalLM"]'
        return FormatError(
            "config.json names neither architectures nor model_type",
            f"put the model's own into it, such as {example}; {there}",
        )
    known = [
        each for card in cards() for each in (card.architectures if name else card.model_types)
    ]
    near = difflib.get_close_matches(name or str(model_type), known, n=1)
    what = (
        f"architecture {name[:100]!r}"
        if name
        else f"model_type {str(model_type)[:100]!r}, and no architecture"
    )
    return FormatError(
        f"no model card for {what}", f"{f'near: {near[0]}; ' if near else ''}{there}"
    )


def _missing_aliases(card: Card, config: dict[str, Any]) -> dict[str, Any]:
    """Settings that config.json has only under another name which transformers reads, too."""
    return {
        key: config[alias]
        for alias, key in card.aliases.items()
        if config.get(key) is None and config.get(alias) is not None
    }
