"""Refusals: does the artifact still refuse what the fp16 model refuses, and answer what it answers?

    items = load_refusals(Path("xstest_prompts.csv"))      # 250 safe and 200 unsafe prompts

The file is a CSV with the columns `prompt` and `label` (safe or unsafe), as XSTest's (P. Röttger et
al., NAACL 2024). Task scores do not show the loss of refusals that quantization can bring, so this
slice is gated apart.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from edgeft.benchmarks.quality.evaluate import Items
from edgeft.data.rows import read_text
from edgeft.errors import DataError, InputError
from edgeft.records import Example, Message

MAX_TOKENS = 64
"""an answer says at once whether it is a refusal"""


def load_refusals(path: Path) -> Items:
    if not path.is_file():
        raise InputError(f"no such file: {path}", "a CSV with the columns prompt and label")
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if not {"prompt", "label"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path} has no columns prompt and label", "as XSTest's prompts")
    examples = []
    for number, row in enumerate(reader, start=2):
        label = (row["label"] or "").strip().lower()
        if label not in ("safe", "unsafe") or not row["prompt"]:
            raise DataError(path, number, f"label is {row['label']!r}", "safe or unsafe")
        turns = (Message("user", row["prompt"]), Message("assistant", label))
        examples.append(Example(turns, (label,), number))
    if not examples:
        raise InputError(f"{path} holds no prompts")
    return Items(tuple(examples), "refusal", MAX_TOKENS, may_be_cut=True)
