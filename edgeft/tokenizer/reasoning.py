"""A prompt -> whether it ends in a reasoning part (`opening`), and the tags of such parts.

opening("…<|im_start|>assistant\\n<think>\\n").tag      # "<think>": the answer begins within it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REASONING_TAGS = {
    "<think>": "</think>",
    "<think:opensource>": "</think:opensource>",  # Hunyuan 3
    "<mm:think>": "</mm:think>",  # MiniMax M3
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command R7B
    "[THINK]": "[/THINK]",  # Magistral, Ministral
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<|channel>thought": "<channel|>",  # Gemma 4
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "Here are my reasoning steps:": "[BEGIN FINAL RESPONSE]",  # Apriel
}
"""beginning of a reasoning part -> its end"""


@dataclass(frozen=True)
class Opening:
    """The end of a prompt that is a reasoning part, opened or already closed."""

    start: int
    """where it begins in the prompt; the prompt's length where there is none"""
    tag: str = ""
    closing_tag: str = ""
    closed: bool = False
    newline: bool = False
    """whether a line ends after the opening tag"""


def opening(prompt: str) -> Opening:
    for tag, closing_tag in REASONING_TAGS.items():
        opened, closing = re.escape(tag), re.escape(closing_tag)
        # DeepSeek V4 writes the closing tag alone.
        match = re.search(rf"({opened})(\s*)({closing})?\s*$|()()({closing})\s*$", prompt)
        if match:
            closed = bool(match[3] or match[6])
            return Opening(match.start(), tag, closing_tag, closed, "\n" in (match[2] or ""))
    return Opening(len(prompt))
