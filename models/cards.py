"""The cards of the model families: names, values, what trains. `text_model.py` finds a model's card.

    card = card_for_gguf("llama")
    card.gguf_names("model.layers.3.mlp.up_proj.weight")  # (("blk.3.ffn_up.weight",), None)

A card is a TOML file in this folder. A new family is a new card, which may start from another
(`like = "llama"`). What a card cannot express as data is a named transform (`transforms.py`) or a
derived value (`derived.py`). sources.toml lists the embedded base models.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.errors import FormatError, did_you_mean
from edgeft.models.derived import DERIVED
from edgeft.models.names import fill, generalize
from edgeft.models.transforms import IDENTITY, TRANSFORMS, Transform

FOLDER = Path(__file__).resolve().parent
"""where the cards are"""
IGNORED = (
    r"rotary_(pos_)?emb\.(inv_freq|cos_cached|sin_cached)$",
    r"\.(attention|attn|self_attn)\.(bias|masked_bias)$",
    r"(^|\.)position_ids$",
)
"""buffers that old versions of transformers saved, computed anew by every reader"""
OTHER_TABLES = ("sources.toml", "pretokenizers.toml", "wrappers.toml")
"""TOML files in FOLDER that are no cards"""


@dataclass(frozen=True)
class Card:
    """What the toolchain knows about a model family."""

    family: str
    """its name here, also of the card's file"""
    about: str
    """names of its models"""
    architectures: tuple[str, ...]
    """transformers' class names in config.json"""
    gguf_arch: str
    """`general.architecture` of its GGUF files"""
    formats: tuple[str, ...]
    """artifact formats (`edgeft.formats`) that it can be exported to"""
    lora_targets: tuple[str, ...]
    """module names that LoRA adapts by default: every linear layer of a block"""
    tensors: dict[str, str | list[str]]
    """name in the checkpoint -> GGUF name, or several where GGUF splits the tensor; {i} is the
    layer, {e} the expert, whose tensors GGUF stacks into one"""
    hparams: dict[str, str]
    """GGUF key without the architecture in front -> key of config.json, or "=" and a name in
    `derived.DERIVED`"""
    model_types: tuple[str, ...] = ()
    """transformers' `model_type`: the family's own, then those of the same model in a wrapper"""
    transforms: dict[str, str] = field(default_factory=dict)
    """GGUF name -> name in `transforms.TRANSFORMS`"""
    constants: dict[str, Any] = field(default_factory=dict)
    """GGUF key -> its value, the same for the whole family"""
    defaults: dict[str, Any] = field(default_factory=dict)
    """key of config.json -> transformers' default"""
    aliases: dict[str, str] = field(default_factory=dict)
    """other name of a key that transformers reads, too (`attribute_map`) -> the key"""
    modules: dict[str, str] = field(default_factory=dict)
    """part of a module's name in transformers -> the same part in the checkpoint, where they differ"""
    fused: dict[str, list[str]] = field(default_factory=dict)
    """3-D parameter of all experts in transformers -> the checkpoint's tensors of one expert"""
    trains: bool = True
    """whether transformers has this architecture, so that it can be trained"""
    ignored: tuple[str, ...] = ()
    """regular expressions of tensors that hold no weights"""
    requires: dict[str, Any] = field(default_factory=dict)
    """key (as the values of `hparams`) -> the only value that llama.cpp computes, a list of such
    values, or "=" and a name in `derived.DERIVED`; false stands for every value that is off"""
    reward_head: str = ""
    """GGUF name of the head of a reward model, where llama.cpp computes one; the transform gives its rows"""
    unwindowed: bool = False
    """transformers has a sliding window and llama.cpp none: texts up to its size are the same"""

    def gguf_names(self, name: str) -> tuple[tuple[str, ...], int | None]:
        """(GGUF names, expert) of a tensor of the checkpoint; no names: the card does not know it.

        The expert is None for a tensor outside of experts.
        """
        general, numbers = generalize(name)
        entry = self.tensors.get(general, ())
        gguf_names = (entry,) if isinstance(entry, str) else tuple(entry)
        expert = numbers[1] if "{e}" in general else None
        return tuple(fill(gguf_name, numbers) for gguf_name in gguf_names), expert

    def hf_name(self, gguf_name: str) -> str | None:
        """The checkpoint's name of a GGUF tensor, None where it is a part or a stack of tensors."""
        general, numbers = generalize(gguf_name)
        name = next((hf for hf, gguf in self.tensors.items() if gguf == general), None)
        return fill(name, numbers) if name and "{e}" not in name else None

    def transform(self, gguf_name: str) -> Transform:
        """The transform from the Hugging Face tensor to this GGUF tensor."""
        name = self.transforms.get(generalize(gguf_name)[0])
        return TRANSFORMS[name] if name else IDENTITY

    def value(self, config: dict[str, Any], key: str) -> Any:
        """A hyper-parameter by its key in `hparams`; None where the model has none.

        config.json goes before the card's defaults. A derived value is computed only where
        config.json does not have its key.
        """
        known = {k: v for k, v in {**self.defaults, **config}.items() if v is not None}
        derive = DERIVED.get(key.removeprefix("="))
        stored = known.get(key) if derive or not key.startswith("=") else known.get(key[1:])
        if stored is not None or not derive:
            return stored
        try:
            return derive(known)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise FormatError(
                f"config.json does not say {key.removeprefix('=')}: {error!r}", "download it again"
            ) from None

    def check_runs(self, config: dict[str, Any]) -> None:
        """FormatError where llama.cpp would silently compute another model than config.json says."""
        for key, required in self.requires.items():
            allowed = required if isinstance(required, list) else [required]
            if isinstance(required, str) and required.startswith("="):
                allowed = [self.value(config, required)]
            value = self.value(config, key)
            if value is not None and (value or False) not in allowed:
                raise FormatError(
                    f"llama.cpp does not compute {self.family} with {key.removeprefix('=')} = "
                    f"{json.dumps(value)}",
                    f"only with {' or '.join(map(json.dumps, allowed))}; --format hf keeps it as it is",
                )

    def in_checkpoint(self, module: str) -> str:
        """transformers' name of a module (or parameter) -> its name in the checkpoint."""
        for live, stored in self.modules.items():
            module = module.replace(live, stored)
        return module

    def ignores(self, name: str) -> bool:
        """Whether a tensor of the checkpoint holds no weights."""
        return any(re.search(pattern, name) for pattern in (*self.ignored, *IGNORED))

    def in_4bit(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether QLoRA freezes this weight of the checkpoint in 4 bits.

        True for linear layers, but not for the head, the router and experts, which transformers
        holds in one parameter and not in linear layers. bitsandbytes chooses the same in a model of
        transformers 5, except in tied OLMo, where transformers takes the last linear layer for the
        head.
        """
        names, expert = self.gguf_names(name)
        excluded = re.search(r"^(token_embd|output)\.|ffn_gate_inp\.", "".join(names[:1]))
        return len(shape) == 2 and expert is None and not excluded

    def in_float32(self, name: str) -> bool:
        """Whether transformers holds this weight in float32 in a model of any dtype."""
        return any(".exp_probs_b." in gguf for gguf in self.gguf_names(name)[0])


@dataclass(frozen=True)
class Source:
    """A base model that a Python package carries."""

    name: str
    """what `--base` calls it"""
    package: str
    """importable name of the package"""
    file: str
    """the GGUF file in it"""
    license: str
    about: str
    dither_seed: int | None = None
    """seed of the noise that moves Q4_1 weights off their grid; None for no noise"""


def card_for_gguf(arch: str) -> Card:
    """The card of a GGUF file by its `general.architecture`; FormatError where no card has it.

    Of several families with one GGUF architecture it is the one of the same name.
    """
    for card in sorted(cards(), key=lambda card: card.family != arch):
        if arch == card.gguf_arch:
            return card
    known = [card.gguf_arch for card in cards()]
    raise FormatError(f"no model card for GGUF architecture {arch!r}", did_you_mean(arch, known))


@functools.cache
def cards() -> tuple[Card, ...]:
    """Every family's card, by the name of its file."""
    return tuple(
        _card(path) for path in sorted(FOLDER.glob("*.toml")) if path.name not in OTHER_TABLES
    )


@functools.cache
def sources() -> dict[str, Source]:
    """The embedded base models by name."""
    raw = tomllib.loads((FOLDER / "sources.toml").read_text())
    return {name: Source(name=name, **entry) for name, entry in raw.items()}


def _card(path: Path) -> Card:
    raw = _tables(path)
    for key in ("architectures", "model_types", "formats", "lora_targets", "ignored"):
        raw[key] = tuple(raw.get(key, ()))
    return Card(**raw)


def _tables(path: Path) -> dict[str, Any]:
    """A card's entries. With `like`, those of another card hold where this one has none; in a table
    the value "" deletes an entry of the other card."""
    raw = tomllib.loads(path.read_text())
    if "like" not in raw:
        return raw
    tables = _tables(FOLDER / f"{raw.pop('like')}.toml")
    for key, value in raw.items():
        if isinstance(value, dict):
            value = {**tables.get(key, {}), **value}
            value = {name: entry for name, entry in value.items() if entry != ""}
        tables[key] = value
    return tables
