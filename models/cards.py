"""Model families as data: one TOML card each, plus where the embedded base models come from.

    card = card_for({"architectures": ["LlamaForCausalLM"]})
    card.gguf_names("model.layers.3.mlp.up_proj.weight")  # (("blk.3.ffn_up.weight",), None)

A new family is a new card, which may start from another (`like = "llama"`). What a card cannot say
in data is a named transform (`transforms.py`) or a derived value (`derived.py`).
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.errors import FormatError, did_you_mean, require
from edgeft.models.derived import DERIVED
from edgeft.models.names import fill, generalize
from edgeft.models.transforms import IDENTITY, TRANSFORMS, Transform

FOLDER = Path(__file__).resolve().parent
_NOT_CARDS = ("sources.toml", "pretokenizers.toml")


@dataclass(frozen=True)
class Card:
    family: str
    about: str
    """the models that it is for, as people call them"""
    architectures: tuple[str, ...]
    gguf_arch: str
    formats: tuple[str, ...]
    """names in `edgeft.formats` that this family can be written in"""
    lora_targets: tuple[str, ...]
    """module names that LoRA adapts by default: every linear layer of a block"""
    tensors: dict[str, str | list[str]]
    """name in the checkpoint -> GGUF name, or the names of what it is cut into; {i} is the layer,
    {e} the expert, whose tensors GGUF stacks into one"""
    hparams: dict[str, str]
    """GGUF key below the architecture's -> key of config.json, or "=" and a name in `derived`"""
    transforms: dict[str, str] = field(default_factory=dict)
    """GGUF name -> `transforms.TRANSFORMS`"""
    constants: dict[str, Any] = field(default_factory=dict)
    """GGUF keys that config.json does not have"""
    defaults: dict[str, Any] = field(default_factory=dict)
    """what transformers takes where config.json leaves a key out"""
    modules: dict[str, str] = field(default_factory=dict)
    """part of a module's name in transformers -> in the checkpoint, where they differ"""
    fused: dict[str, list[str]] = field(default_factory=dict)
    """3-D parameter in transformers -> the checkpoint's tensors, side by side in each expert"""
    trains: bool = True
    """transformers has this architecture, so that `edgeft train-qlora` can train it"""
    ignored: tuple[str, ...] = ()
    """regular expressions of tensors that hold no weights"""
    requires: dict[str, Any] = field(default_factory=dict)
    """as in `hparams`, key of config.json -> the value that llama.cpp computes, a list of them, or
    "=" and a name in `derived`; false stands for all that turns an option off"""
    unwindowed: bool = False
    """transformers has a sliding window and llama.cpp none: usable as long as it hides no token"""

    def gguf_names(self, name: str) -> tuple[tuple[str, ...], int | None]:
        """(GGUF names of a tensor of the checkpoint, its expert); no name: it has no place."""
        general, numbers = generalize(name)
        found = self.tensors.get(general, ())
        names = (found,) if isinstance(found, str) else tuple(found)
        expert = numbers[1] if "{e}" in general else None
        return tuple(fill(entry, numbers) for entry in names), expert

    def hf_name(self, gguf_name: str) -> str | None:
        """The way back, for tensors that became one GGUF tensor each."""
        general, numbers = generalize(gguf_name)
        found = next((hf for hf, gguf in self.tensors.items() if gguf == general), None)
        return fill(found, numbers) if found and "{e}" not in found else None

    def transform(self, gguf_name: str) -> Transform:
        """Hugging Face -> GGUF for this tensor."""
        named = self.transforms.get(generalize(gguf_name)[0])
        return TRANSFORMS[named] if named else IDENTITY

    def value(self, config: dict[str, Any], key: str) -> Any:
        """A hyper-parameter as `hparams` names it; None where the model has none."""
        known = {k: v for k, v in {**self.defaults, **config}.items() if v is not None}
        derive = DERIVED.get(key.removeprefix("="))
        found = known.get(key) if derive or not key.startswith("=") else known.get(key[1:])
        return derive(known) if found is None and derive else found

    def check_runs(self, config: dict[str, Any]) -> None:
        """FormatError where llama.cpp would silently compute something else than this model."""
        for key, wanted in self.requires.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            if isinstance(wanted, str) and wanted.startswith("="):
                allowed = [self.value(config, wanted)]
            value = self.value(config, key)
            if value is not None and (value or False) not in allowed:
                raise FormatError(
                    f"llama.cpp does not compute {self.family} with {key.removeprefix('=')} = "
                    f"{json.dumps(value)}",
                    f"only with {' or '.join(map(json.dumps, allowed))}; --format hf keeps it as it is",
                )

    def in_checkpoint(self, module: str) -> str:
        """The name in the checkpoint of a module as transformers names it."""
        for now, stored in self.modules.items():
            module = module.replace(now, stored)
        return module

    def ignores(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.ignored)

    def in_4bit(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether QLoRA freezes this weight in 4 bits: linear layers without head and router.

        transformers holds the experts of a layer in one parameter, which is no linear layer. It is
        what bitsandbytes does with a model of transformers 5, but for tied OLMo: there transformers
        takes the last linear layer for the head.
        """
        names, expert = self.gguf_names(name)
        kept = re.search(r"^(token_embd|output)\.|ffn_gate_inp\.", "".join(names[:1]))
        return len(shape) == 2 and expert is None and not kept

    def in_float32(self, name: str) -> bool:
        """Whether transformers holds this weight in float32 in a model of any type."""
        return any(".exp_probs_b." in gguf for gguf in self.gguf_names(name)[0])


@dataclass(frozen=True)
class Source:
    """A base model that a Python package carries."""

    name: str
    package: str
    file: str
    license: str
    about: str
    dither_seed: int | None = None


def card_for(config: dict[str, Any]) -> Card:
    """The card of a model by its config.json; FormatError where no card knows it."""
    wanted = _architecture(config)
    for card in cards():
        if wanted in card.architectures:
            return card
    known = [name for card in cards() for name in card.architectures]
    near = difflib.get_close_matches(wanted, known, n=1)
    raise FormatError(
        f"no model card for architecture {wanted!r}",
        f"{f'near: {near[0]}; ' if near else ''}there are {', '.join(c.family for c in cards())}",
    )


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures") or ["(none named)"]
    return str(named[0] if isinstance(named, list) else named)


def transformers_class(config: dict[str, Any]) -> Any:
    """transformers' class of a model; FormatError where it has none."""
    name = _architecture(config)
    found = getattr(require("transformers", "train"), name, None)
    if found is None:
        raise FormatError(
            f"transformers has no {name}, and code that comes with a model is never run",
            "merge-export --format gguf --quant q4_k_m makes a file that runs",
        )
    return found


def card_for_gguf(arch: str) -> Card:
    """The card of a GGUF file by its general.architecture."""
    for card in cards():
        if arch == card.gguf_arch:
            return card
    known = [card.gguf_arch for card in cards()]
    raise FormatError(f"no model card for GGUF architecture {arch!r}", did_you_mean(arch, known))


@functools.cache
def cards() -> tuple[Card, ...]:
    return tuple(
        _card(path) for path in sorted(FOLDER.glob("*.toml")) if path.name not in _NOT_CARDS
    )


@functools.cache
def sources() -> dict[str, Source]:
    raw = tomllib.loads((FOLDER / "sources.toml").read_text())
    return {name: Source(name=name, **entry) for name, entry in raw.items()}


def _card(path: Path) -> Card:
    raw = _tables(path)
    for key in ("architectures", "formats", "lora_targets", "ignored"):
        raw[key] = tuple(raw.get(key, ()))
    return Card(**raw)


def _tables(path: Path) -> dict[str, Any]:
    """A card's entries; with `like`, those of another card first. "" takes an entry out."""
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
