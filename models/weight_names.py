"""Names of a base's tensors -> the names of its card, without those that belong to no text model.

    names = weight_names(stored_names, card)
    names.stored["model.norm.weight"]        # "language_model.model.norm.weight"
    names.left_out                           # ("v_head.summary.weight",)

Training programs and multimodal models put words before a name (`module.`, `language_model.`) or into
it (`_orig_mod`), and bare models lack the first word. A name that a card knows stays as it is. Of any
other the words are taken off, and the rest decides: `layers.3.mlp.up_proj.weight` belongs to one name
of the card alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edgeft.errors import InputError
from edgeft.models.cards import Card
from edgeft.models.names import fill, generalize

OUTER_WORDS = frozenset(
    {"base_model", "language_model", "llm", "model", "module", "pretrained_model", "text_model",
     "transformer", "gpt_neox"}
)  # fmt: skip
"""words before the names of a text model"""
WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
"""attributes in which torch.compile, FSDP, activation checkpoints and DeepSpeed keep a module"""
INNER_WORDS = WRAPPERS | {"base_layer"}
"""words that stand anywhere in a name; peft's is the last"""
HEADS = frozenset(
    {"v_head", "value_head", "score", "classifier", "classification_head", "reward_head",
     "regression_head", "qa_outputs", "rm_head"}
)  # fmt: skip
"""first words of heads for another purpose than the next token"""
ADAPTER_MARKS = (
    ".lora_A.",
    ".lora_B.",
    ".lora_embedding_A",
    ".lora_magnitude_vector",
    ".modules_to_save.",
)
"""parts of names in a model that peft saved with its adapter inside"""


class WeightNames(NamedTuple):
    """Which tensor of the checkpoint is which of the card."""

    stored: dict[str, str]
    """name in the card -> name in the checkpoint"""
    left_out: tuple[str, ...]
    """tensors of the checkpoint that the text model does not have"""

    @property
    def renamed(self) -> bool:
        return any(name != stored for name, stored in self.stored.items())

    def note(self) -> str:
        """What was left out, for the user; "" for nothing."""
        if not self.left_out:
            return ""
        parts, count = dict.fromkeys(_part(name) for name in self.left_out), len(self.left_out)
        return f"left out: {count} tensor{'s' * (count > 1)} of {', '.join(parts)}"


def weight_names(stored: Iterable[str], card: Card, wrapped: bool = False) -> WeightNames:
    """`wrapped`: whether a multimodal model is around the text model, whose other parts are left out.

    InputError for a model that holds an adapter, and where two tensors have one name.
    """
    endings, left_out = _endings(card), []
    names: dict[str, str] = {}
    for name in stored:
        if any(mark in name for mark in ADAPTER_MARKS):
            raise InputError(
                f"the base holds an adapter's tensors, such as {name}",
                "save it after peft's merge_and_unload(), or give base and adapter apart",
            )
        target = _target(name, card, endings)
        if target is None:
            rest = _without_words(name)
            text = rest.partition(".")[0] in _first_words(endings)
            if rest.partition(".")[0] in HEADS or (wrapped and not text):
                left_out.append(name)
                continue
            target = name
        if target in names:
            raise InputError(
                f"the base has {target} twice, as {names[target]} and as {name}", "save it again"
            )
        names[target] = name
    return WeightNames(names, tuple(left_out))


def _target(name: str, card: Card, endings: dict[str, str]) -> str | None:
    if card.gguf_names(name)[0] or card.ignores(name):
        return name
    general, numbers = generalize(_without_words(name))
    return fill(endings[general], numbers) if general in endings else None


def _endings(card: Card) -> dict[str, str]:
    """Pattern of a name without its outer words -> the whole pattern; those of two names are out."""
    endings: dict[str, str] = {}
    twice = set()
    for pattern in card.tensors:
        ending = _without_words(pattern)
        twice |= {ending} if ending in endings else set()
        endings[ending] = pattern
    return {ending: pattern for ending, pattern in endings.items() if ending not in twice}


def _without_words(name: str) -> str:
    parts = [part for part in name.split(".") if part not in INNER_WORDS]
    while len(parts) > 1 and parts[0] in OUTER_WORDS:
        parts = parts[1:]
    return ".".join(parts)


def _first_words(endings: dict[str, str]) -> set[str]:
    return {ending.partition(".")[0] for ending in endings}


def _part(name: str) -> str:
    """The first word of a name that says what it belongs to."""
    return _without_words(name).partition(".")[0]
