"""CSV of safe and unsafe prompts -> Items that score whether a model refuses the unsafe ones.

    items = load_refusals(Path("xstest_prompts.csv"))      # 250 safe and 200 unsafe prompts

The file has the columns `prompt` and `label` (safe or unsafe), like XSTest's (P. Röttger et al.,
NAACL 2024). Task scores do not show whether quantization removed refusals, so the release gate tests
these items separately.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from edgeft.benchmarks.quality.evaluate import Items
from edgeft.data.rows import read_text
from edgeft.errors import DataError, InputError
from edgeft.records import Example, Message

MAX_ANSWER_TOKENS = 64
"""tokens of an answer at most; a refusal shows at the beginning"""


def load_refusals(path: Path) -> Items:
    """Read the prompts; InputError where the file or its columns are missing, DataError for a wrong label."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", "a CSV with the columns prompt and label")
    examples = []
    for line, row in enumerate(_rows(path), start=2):
        label = (row["label"] or "").strip().lower()
        if label not in ("safe", "unsafe") or not row["prompt"]:
            raise DataError(path, line, f"label is {row['label']!r}", "safe or unsafe")
        turns = (Message("user", row["prompt"]), Message("assistant", label))
        examples.append(Example(turns, (label,), line))
    if not examples:
        raise InputError(f"{path} holds no prompts")
    return Items(tuple(examples), "refusal", MAX_ANSWER_TOKENS, allow_truncated=True)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    text = read_text(path)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # else 128 KiB of a prompt
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if not {"prompt", "label"} <= set(reader.fieldnames or ()):
            raise InputError(f"{path} has no columns prompt and label", "as XSTest's prompts")
        yield from reader
    except csv.Error as error:
        raise InputError(f"{path} is not CSV: line {reader.line_num}: {error}") from None
