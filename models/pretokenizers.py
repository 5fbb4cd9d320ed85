"""llama.cpp's name of a pre-tokenizer <-> the `pre_tokenizer` entry of tokenizer.json.

    pre = pretokenizer_named("qwen2")
    pretokenizer_json(pre)                      # {"type": "Sequence", "pretokenizers": […]}
    pretokenizer_steps(entry) == pre.steps      # whether an entry is this pre-tokenizer

A pre-tokenizer cuts text into pieces; byte pair encoding merges only within a piece.
pretokenizers.toml lists those that both llama.cpp and the `tokenizers` package have.
"""

from __future__ import annotations

import functools
import json
import tomllib
from dataclasses import dataclass
from typing import Any

from edgeft.errors import FormatError
from edgeft.models.cards import FOLDER


@dataclass(frozen=True)
class PreTokenizer:
    """A row of pretokenizers.toml."""

    name: str
    """llama.cpp's"""
    steps: tuple[str, ...]
    """"digits", "digits:runs", "punctuation", "bytes", "bytes:gpt2" or "split:" and a regex"""
    ignore_merges: bool
    """a piece that is a token stays whole, even where no merges lead to it"""
    aliases: tuple[str, ...]
    """other names by which llama.cpp cuts the same"""


@functools.cache
def pretokenizers() -> dict[str, PreTokenizer]:
    """Every row by llama.cpp's name, without the aliases."""
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
    """The pre-tokenizer with this name or alias, None where the table has none."""
    rows = pretokenizers()
    return rows.get(name) or next((row for row in rows.values() if name in row.aliases), None)


def pretokenizer_json(pre: PreTokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` entry of tokenizer.json."""
    return {"type": "Sequence", "pretokenizers": [_step_json(step) for step in pre.steps]}


def pretokenizer_steps(entry: dict[str, Any] | None) -> tuple[str, ...]:
    """The steps of a `pre_tokenizer` entry; FormatError for a part that is none of the steps."""
    return tuple(_step(part) for part in flat_parts(entry))


def flat_parts(entry: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A `pre_tokenizer` or `normalizer` entry as a list, sequences within sequences resolved."""
    if not entry:
        return []
    if entry.get("type") != "Sequence":
        return [entry]
    parts = entry.get("pretokenizers") or entry.get("normalizers") or []
    return [part for item in parts for part in flat_parts(item)]


def _step_json(step: str) -> dict[str, Any]:
    """A step as a part of a `pre_tokenizer` entry."""
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
    """A part of a `pre_tokenizer` entry as a step; FormatError where it is none."""
    match part:
        case {"type": "Digits"}:
            return "digits" if part.get("individual_digits") else "digits:runs"
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return "punctuation"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior}:
            regex = regex.replace("\r", "\\r").replace("\n", "\\n")
            # A regex that matches all of a text leaves nothing between its matches, so keeping only
            # the matches is the same as isolating them.
            only_matches = behavior == "Removed" and part.get("invert") and regex.endswith(r"|\s+")
            if only_matches or (behavior == "Isolated" and not part.get("invert")):
                return f"split:{regex}"
        case {"type": "ByteLevel"} if not part.get("add_prefix_space"):
            return "bytes:gpt2" if part.get("use_regex", True) else "bytes"
    raise FormatError(f"unknown pre-tokenizer step {json.dumps(part, ensure_ascii=False)[:120]}")
