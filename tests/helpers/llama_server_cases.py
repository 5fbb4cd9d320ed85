"""`llama_server_cases.toml` -> the table in docs/results, which `python tests/helpers/llama_server_cases.py` writes."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1] / "server"
RESULT = TESTS.parents[1] / "docs" / "results" / "2026-11-29-llama-server-tests.md"
MARK = "<!-- cases: tests/helpers/llama_server_cases.py writes this -->"
OUTCOMES = {"passed": "passed", "refused": "refused by design", "none": "not applicable"}
ALL = "all"
"""stands for every case of a file"""


@dataclass(frozen=True)
class Case:
    file: str
    """of llama.cpp"""
    name: str
    outcome: str
    reason: str
    """the test here that asks the same, or why there is none"""

    @property
    def test(self) -> tuple[Path, str]:
        """(file, function) of the test here, where it passed."""
        file, _, name = self.reason.rpartition("::")
        return TESTS / (file or "test_llama_server_cases.py"), name


def cases() -> Iterator[Case]:
    listed = tomllib.loads((TESTS / "llama_server_cases.toml").read_text(encoding="utf-8"))
    for file, outcomes in listed.items():
        for name, text in outcomes.items():
            outcome, _, reason = text.partition(": ")
            yield Case(file, name, outcome, reason)


def table() -> str:
    """The counts, and a table for each file of which a case passed."""
    made = list(cases())
    single = [case for case in made if case.name != ALL]
    counts = Counter(case.outcome for case in single)
    lines = [f"{counts[name]} {text}" for name, text in OUTCOMES.items()]
    text = f"Of {len(single)} cases: {', '.join(lines)}.\n"
    for file in dict.fromkeys(case.file for case in single):
        text += f"\n## {file}\n\n| case | outcome | test here, or reason |\n|---|---|---|\n"
        for case in single:
            if case.file == file:
                reason = f"`{case.reason}`" if case.outcome == "passed" else case.reason
                text += f"| `{case.name}` | {OUTCOMES[case.outcome]} | {reason} |\n"
    text += "\n## Other files\n\n| file | outcome of all cases | reason |\n|---|---|---|\n"
    for case in made:
        if case.name == ALL:
            text += f"| {case.file} | {OUTCOMES[case.outcome]} | {case.reason} |\n"
    return text


def written(page: str) -> str:
    """The page with the table of today behind the mark."""
    return re.sub(f"{re.escape(MARK)}.*", lambda _: f"{MARK}\n\n{table()}", page, flags=re.DOTALL)


if __name__ == "__main__":
    RESULT.write_text(written(RESULT.read_text(encoding="utf-8")), encoding="utf-8")
