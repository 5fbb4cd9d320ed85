"""An artifact and held-out rows -> what it prefers, what it writes, and how far it is from its start.

    with open_runtime(aligned) as model, open_runtime(start) as reference:
        pairs = pair_log_probabilities(model, held_out)     # [(better, worse), …]
        answers = sampled(model, prompts, max_tokens=48)
        divergence = kl(model, reference, answers)

The study `alignment` measures with these; `mean` and `share` give its figures their intervals.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.benchmarks.statistics.noninferiority import wilson
from edgeft.data.encoded_rows import IGNORED, Encoded
from edgeft.data.encoding import encode
from edgeft.records import Example, Limits
from edgeft.runtimes.protocol import Runtime

Z = 1.96
"""of a two-sided interval of 95 %"""
Interval = tuple[float, float, float]
"""(value, low, high), 95 %"""


@dataclass(frozen=True)
class Answer:
    """One answer that a model has written."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    """of the answer; the token that ended it is not among them"""
    text: str


def worse(row: dict[str, Any], others: Sequence[dict[str, Any]], rng: random.Random) -> str:
    """The JSON answer of a chat row with one field changed to the value of another row's answer.

    ValueError where no other answer has another value for one of its fields.
    """
    answer = answer_of(row)
    names = list(answer)
    rng.shuffle(names)
    for name in names:
        values = [other[name] for other in others if other.get(name, answer[name]) != answer[name]]
        if values:
            return json.dumps(answer | {name: rng.choice(values)}, separators=(",", ":"))
    raise ValueError(f"nothing to change in {answer}")


def answer_of(row: dict[str, Any]) -> dict[str, Any]:
    """The JSON object that a chat row's last message holds."""
    answer: dict[str, Any] = json.loads(row["messages"][-1]["content"])
    return answer


def pair_log_probabilities(
    model: Runtime, pairs: Sequence[tuple[Example, Example]]
) -> list[tuple[float, float]]:
    """Of each (better, worse): log p of the answer and of the end of its turn, in nats."""
    return [(_log_probability(model, a), _log_probability(model, b)) for a, b in pairs]


def _log_probability(model: Runtime, example: Example) -> float:
    row: Encoded = encode(example, model.chat, model.encode)
    start = next(i for i, label in enumerate(row.labels) if label != IGNORED)
    ids = row.ids[start:]
    rows = _log_softmax(model.logits(row.ids, last=len(ids) + 1)[:-1])
    return float(rows[np.arange(len(ids)), ids].sum())


def sampled(
    model: Runtime, prompts: Sequence[Example], max_tokens: int, temperature: float = 1.0
) -> list[Answer]:
    """One answer to each prompt; the number of the prompt is its seed."""
    answers = []
    for number, example in enumerate(prompts):
        ids = model.encode(model.chat.render(example.prompt))
        limits = Limits(max_tokens=max_tokens, temperature=temperature, seed=number)
        tokens = list(model.stream(ids, limits))
        text = "".join(token.text for token in tokens)
        answers.append(Answer(tuple(ids), tuple(token.id for token in tokens), text))
    return answers


def kl(model: Runtime, reference: Runtime, answers: Sequence[Answer]) -> list[float]:
    """KL(model || reference) of each answer that `model` wrote: mean over its tokens and its end, nats."""
    means = []
    for answer in answers:
        ids, count = [*answer.prompt, *answer.ids], len(answer.ids) + 1
        ours, theirs = (_log_softmax(one.logits(ids, last=count)) for one in (model, reference))
        means.append(float((np.exp(ours) * (ours - theirs)).sum(axis=1).mean()))
    return means


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def mean(values: Sequence[float]) -> Interval:
    """The mean with a normal interval; its bounds are the mean of a single value."""
    centre = statistics.fmean(values)
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return centre, centre - Z * spread, centre + Z * spread


def share(flags: Sequence[bool]) -> Interval:
    """The share of true ones with Wilson's interval."""
    return sum(flags) / len(flags), *wilson(sum(flags), len(flags))
