"""Model families as data: one TOML card each, plus where the embedded base models come from.

    card = card_for({"architectures": ["LlamaForCausalLM"]})
    card.gguf_name("model.layers.3.mlp.up_proj.weight")   # "blk.3.ffn_up.weight"

A new family is a new card. What a card cannot say in data is a named transform (`transforms.py`).
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import FormatError, did_you_mean

FOLDER = Path(__file__).resolve().parent
_NOT_CARDS = ("sources.toml", "pretokenizers.toml")


@dataclass(frozen=True)
class Card:
    family: str
    architectures: tuple[str, ...]
    gguf_arch: str
    formats: tuple[str, ...]
    """names in `edgeft.formats` that this family can be written in"""
    lora_targets: tuple[str, ...]
    """module names that LoRA adapts by default: every linear layer of a block"""
    tensors: dict[str, str]
    transforms: dict[str, str]
    hparams: dict[str, str]

    def gguf_name(self, name: str) -> str | None:
        """GGUF name of a Hugging Face tensor, None where the family has no such tensor."""
        return _rename(name, self.tensors)

    def hf_name(self, name: str) -> str | None:
        return _rename(name, {gguf: hf for hf, gguf in self.tensors.items()})

    def transform(self, gguf_name: str) -> str | None:
        """Name of the transform (Hugging Face -> GGUF) of this tensor, None for most."""
        return self.transforms.get(re.sub(r"\.\d+\.", ".{i}.", gguf_name, count=1))


@dataclass(frozen=True)
class PreTokenizer:
    """How a byte-level tokenizer cuts text before it merges; see pretokenizers.toml."""

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool
    aliases: tuple[str, ...]


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
    wanted = (config.get("architectures") or ["(none named)"])[0]
    for card in cards():
        if wanted in card.architectures:
            return card
    known = [name for card in cards() for name in card.architectures]
    raise FormatError(f"no model card for architecture {wanted!r}", did_you_mean(wanted, known))


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


@functools.cache
def pretokenizers() -> dict[str, PreTokenizer]:
    """By llama.cpp's name, without the aliases."""
    raw = tomllib.loads((FOLDER / "pretokenizers.toml").read_text(encoding="utf-8"))
    return {
        name: PreTokenizer(
            name,
            tuple(row["steps"]),
            row.get("ignore_merges", False),
            tuple(row.get("aliases", ())),
        )
        for name, row in raw.items()
    }


def pretokenizer_named(name: str) -> PreTokenizer | None:
    """The pre-tokenizer behind llama.cpp's name or one of its aliases."""
    every = pretokenizers()
    return every.get(name) or next((p for p in every.values() if name in p.aliases), None)


def pretokenizer_json(pre: PreTokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` entry of tokenizer.json."""
    return {"type": "Sequence", "pretokenizers": [_step_json(step) for step in pre.steps]}


def pretokenizer_steps(entry: dict[str, Any] | None) -> tuple[str, ...]:
    """The way back: steps of a `pre_tokenizer` entry; FormatError names the one without a word."""
    return tuple(step for part in flat_parts(entry) if (step := _step(part)))


def flat_parts(entry: dict[str, Any] | None) -> list[dict[str, Any]]:
    """An entry of `pre_tokenizer` or `normalizer` as a flat list."""
    if not entry:
        return []
    inner = entry.get("pretokenizers") or entry.get("normalizers")
    if entry.get("type") != "Sequence":
        return [entry]
    return [part for item in inner or [] for part in flat_parts(item)]


def _step_json(step: str) -> dict[str, Any]:
    if step.startswith("digits"):
        return {"type": "Digits", "individual_digits": step == "digits"}
    if step == "punctuation":
        return {"type": "Punctuation", "behavior": "Contiguous"}
    if step.startswith("split:"):
        pattern = {"Regex": step.removeprefix("split:")}
        return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": step == "bytes:gpt2",
    }  # fmt: skip


def _step(part: dict[str, Any]) -> str:
    match part:
        case {"type": "Digits"}:
            return "digits" if part.get("individual_digits") else "digits:runs"
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return "punctuation"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior}:
            regex = regex.replace("\r", "\\r").replace("\n", "\\n")
            # Where a regex matches everything, to keep the matches is to isolate them.
            kept = behavior == "Removed" and part.get("invert") and regex.endswith(r"|\s+")
            if kept or (behavior == "Isolated" and not part.get("invert")):
                return f"split:{regex}"
        case {"type": "ByteLevel"} if not part.get("add_prefix_space"):
            return "bytes:gpt2" if part.get("use_regex", True) else "bytes"
    raise FormatError(f"unknown pre-tokenizer step {json.dumps(part, ensure_ascii=False)[:120]}")


def _card(path: Path) -> Card:
    raw = tomllib.loads(path.read_text())
    for key in ("architectures", "formats", "lora_targets"):
        raw[key] = tuple(raw[key])
    return Card(**raw)


def _rename(name: str, table: dict[str, str]) -> str | None:
    layer = re.search(r"\.(\d+)\.", name)
    general = name[: layer.start()] + ".{i}." + name[layer.end() :] if layer else name
    found = table.get(general)
    return found.replace("{i}", layer[1]) if found and layer else found
