"""The name of a data file -> the split that it belongs to, by the words that `datasets` looks for.

split_of("data/train-00000-of-00002.parquet")       # "train"
split_of("chats.jsonl")                             # "": of no split
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}  # fmt: skip
"""word of a name -> split (datasets' `SPLIT_KEYWORDS`)"""


def split_of(name: str) -> Split | Literal[""]:
    """The split that a path names, its file before its folders; "" where it names none."""
    for part in reversed(PurePosixPath(name).parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return ""


def of_split(names: Sequence[str], split: Split) -> list[str]:
    """The names of a split, else those of no split; [] where all are of other splits."""
    named = [name for name in names if split_of(name) == split]
    return named or [name for name in names if not split_of(name)]
