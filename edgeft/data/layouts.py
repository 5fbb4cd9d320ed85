"""Training objective -> the layout of the rows that it learns from.

layout_of({"objective": "dpo", …})      # "pairs"; options of an adapter's manifest
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from edgeft.data.documents import TEXT_SUFFIXES

Layout = Literal["chats", "documents", "pairs", "verdicts", "prompts"]
"""conversations that end with an answer, plain texts, preference pairs (a better and a worse answer), 
answers that are labelled good or bad, or prompts with or without a reference answer"""
LAYOUTS: dict[str, Layout] = {
    "sft": "chats",
    "pretrain": "documents",
    **dict.fromkeys(("dpo", "orpo", "cpo", "simpo", "reward"), "pairs"),
    "kto": "verdicts",
    **dict.fromkeys(("grpo", "rloo", "ppo"), "prompts"),
}


def layout_of(options: Mapping[str, Any]) -> Layout:
    """The layout of an adapter's training data; `options`: those of its manifest."""
    return LAYOUTS.get(options.get("objective", "sft"), "chats")


def text_suffixes(layout: Layout) -> tuple[str, ...]:
    """Suffixes of files of a folder that count beside those of rows."""
    return TEXT_SUFFIXES if layout == "documents" else ()
