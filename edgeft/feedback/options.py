"""The options of `edgeft data label`. The string after a field is the help of its option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CRITERION = "The better answer is more helpful, correct and to the point."


@dataclass(frozen=True)
class LabelOptions:
    """Which answers are compared, and by whom: the options of `edgeft data label`."""

    data: Path
    """Rows with two answers: a list `responses` beside prompt or messages, or preference pairs, which are judged
    anew. With --model rows with a prompt."""
    output: Path
    """JSONL file of preference pairs to write. OUTPUT.judgements.jsonl keeps every answer of the judge."""
    judge: str
    """URL of an API in OpenAI's style, as http://127.0.0.1:8080/v1 of edgeft serve."""
    judge_model: str = ""
    """Model that the judge's server is asked for. Default: the first that it lists."""
    criterion: str = CRITERION
    """What makes an answer the better one, a sentence or a text file."""
    api_key_env: str = ""
    """Environment variable that holds the judge's API key. Default: no key is sent."""
    judge_tokens: int = 16
    """Tokens of a verdict at most; more for a judge that thinks before it answers."""
    clients: int = 1
    """Rows that are judged at the same time."""
    timeout: float = 120.0
    """Seconds that a request may take."""
    model: Path | None = None
    """Artifact, or folder of a model, that writes two answers to each prompt."""
    temperature: float = 1.0
    """Temperature of --model."""
    max_tokens: int = 256
    """Tokens of an answer of --model at most."""
    seed: int = 0
    """Seed of the answers of --model."""
    limit: int | None = None
    """Only the first so many rows."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row that cannot be judged does: stop = an error that lists the first ten, skip = it is left out
    and counted."""
    columns: tuple[str, ...] = ()
    """Columns to read, comma-separated, as prompt=question,answer=reply."""
