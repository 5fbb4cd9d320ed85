"""Pre-tokenizers: how text is cut before byte pair encoding, by llama.cpp's name for it."""

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
    """How a byte-level tokenizer cuts text before it merges; see pretokenizers.toml."""

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool
    aliases: tuple[str, ...]


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
