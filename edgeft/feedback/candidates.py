"""Data rows -> prompts with two answers each: the row's own, or those that a model writes.

for row in read_candidates(path, {}, has_model=False): row.prompt, row.answers
written(runtime, row, options).answers          # ("56", "It is 56.")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.data.columns import renamed
from edgeft.data.fields import RowError
from edgeft.data.preferences import read_pair, read_prompt
from edgeft.data.reading import read_rows
from edgeft.data.rows import BadRow
from edgeft.errors import DataError
from edgeft.feedback.options import LabelOptions
from edgeft.records import Example, Limits, Message
from edgeft.runtimes.protocol import Runtime

RESPONSES = ("responses", "completions", "candidates", "generations")
"""keys of a row's two answers"""
HINT = "prompt and responses, a list of two texts; with --model a prompt alone"


@dataclass(frozen=True)
class Candidate:
    """One row: what is asked, and two answers to it."""

    line: int
    prompt: tuple[Message, ...]
    answers: tuple[str, str] | None = None
    """None: `--model` writes them"""
    preferred: int | None = None
    """0 or 1: the better answer by the row's own label"""
    is_cut_off: bool = False
    """`--max-tokens` ended an answer"""

    @property
    def why(self) -> str:
        """Why there is nothing to judge: equal, empty or cut_off; else ""."""
        texts = {text.strip() for text in self.answers or ()}
        if self.is_cut_off:
            return "cut_off"
        return "equal" if len(texts) == 1 else "empty" if "" in texts else ""


def read_candidates(
    file: Path, columns: Mapping[str, str], has_model: bool
) -> Iterator[Candidate | BadRow]:
    """The rows of a file in its order. With `has_model` their prompts alone."""
    for line, raw in read_rows(file):
        try:
            if isinstance(raw, DataError):
                raise RowError(raw.problem, raw.hint)
            row, _ = renamed(raw, columns)
            yield _prompt(row, line) if has_model else _candidate(row, line)
        except RowError as error:
            yield BadRow(line, error.problem[:300], error.hint)
        except RecursionError:
            yield BadRow(line, "the row is nested too deeply")


def _prompt(row: Any, line: int) -> Candidate:
    example, _ = read_prompt(row, line)
    _check_texts(example)
    return Candidate(line, example.prompt)


def _candidate(row: Any, line: int) -> Candidate:
    """RowError for a row without two answers."""
    if not isinstance(row, dict):
        raise RowError(f"not an object but {type(row).__name__}")
    key = next((key for key in row if key.strip().lower() in RESPONSES), None)
    if key is None:
        pair, _ = read_pair(row, line)
        _check_texts(pair)
        if len(pair.messages) != len(pair.prompt) + 1 or len(pair.rejected) != len(pair.messages):
            raise RowError("the answers are conversations of several turns", HINT)
        return Candidate(line, pair.prompt, (pair.answer, pair.rejected[-1].content), preferred=0)
    answers = row[key]
    if not isinstance(answers, list) or len(answers) != 2 or not all(
        isinstance(answer, str) and answer.strip() for answer in answers
    ):  # fmt: skip
        raise RowError(f"{key} is no list of two texts", HINT)
    rest = {name: value for name, value in row.items() if name != key}
    example, _ = read_prompt(rest, line)
    _check_texts(example)
    return Candidate(line, example.prompt, (answers[0], answers[1]))


def _check_texts(example: Example) -> None:
    if example.tools or any(m.tool_calls for m in (*example.messages, *example.rejected)):
        raise RowError("the row has tools, and the judge compares texts", "leave it out")


def written(model: Runtime, row: Candidate, options: LabelOptions) -> Candidate:
    """The row with two answers that a model samples; the row's line and --seed decide them."""
    ids = model.encode(model.chat.render(row.prompt))
    texts, is_cut_off = [], False
    for which in range(2):
        limits = Limits(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=(options.seed * 1_000_003 + 2 * row.line + which) % 2**32,
        )
        tokens = list(model.stream(ids, limits))
        is_cut_off |= len(tokens) >= options.max_tokens
        texts.append("".join(token.text for token in tokens).strip())
    return dataclasses.replace(row, answers=(texts[0], texts[1]), is_cut_off=is_cut_off)
