"""Quality of one arm on a list of items: greedy answers, a scorer, and answer likelihood.

    asking = Asking("smart_home")                               # a suite, or a JSONL file
    items = load_items(asking)
    score = measure(Path("q4_k_m.gguf"), items, asking)         # Score with one bool per item
    score.accuracy

An arm is an artifact with a way to ask: as it is (a fine-tune), or with instructions and a few
worked examples (what a base model gets, so that the comparison with it is fair). Scores are kept
under `edgeft.files.home()`, keyed by the artifact's identity, the items and the way to ask, so bench
and ab do not answer twice.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import __version__, files, store
from edgeft.benchmarks.fidelity.compare import Floats, Measured, answers, log_likelihood
from edgeft.benchmarks.options import Asking
from edgeft.benchmarks.quality.scorers import CHOICE, scorer_named
from edgeft.benchmarks.suites import load_suite, suite_names
from edgeft.data.encoding import encode
from edgeft.data.rows import load_examples
from edgeft.data.splits import fingerprint
from edgeft.errors import InputError, ProofError
from edgeft.files import home
from edgeft.formats import format_of
from edgeft.progress import Progress, say
from edgeft.records import Example, Limits, Message, Score
from edgeft.runtimes.protocol import Runtime, open_runtime

SHOTS_SEED = 0


@dataclass(frozen=True)
class Items:
    """What to ask, and how an answer is judged."""

    examples: tuple[Example, ...]
    scorer: str
    max_tokens: int
    instructions: str = ""
    """system prompt for arms that were not fine-tuned"""
    shots_from: tuple[Example, ...] = ()
    """examples that few-shot prompts are drawn from"""
    may_be_cut: bool = False
    """whether an answer counts that max_tokens cut off"""

    def part(self, numbers: Sequence[int]) -> Items:
        """Only these items, in this order."""
        return dataclasses.replace(self, examples=tuple(self.examples[i] for i in numbers))


def load_items(asking: Asking) -> Items:
    """An embedded suite's test split by name, or a data file by path."""
    name, scorer = asking.items or "", asking.scorer
    if name in suite_names():
        suite = load_suite(name)
        items = Items(
            examples=tuple(load_examples(suite.test)),
            scorer=suite.scorer,
            max_tokens=suite.max_tokens,
            instructions=suite.instructions,
            shots_from=tuple(load_examples(suite.train)),
        )
    elif Path(name).exists():
        items = Items(tuple(load_examples(Path(name))), scorer="exact", max_tokens=256)
    else:
        raise InputError(
            f"no such suite or file: {name}", f"suites: {', '.join(suite_names())}; or a JSONL file"
        )
    if asking.examples:
        items = dataclasses.replace(items, shots_from=tuple(load_examples(asking.examples)))
    items = dataclasses.replace(
        items,
        examples=_distinct(items.examples)[: asking.limit],
        scorer=scorer or items.scorer,
        max_tokens=asking.max_tokens or items.max_tokens,
    )
    if items.scorer != CHOICE:
        scorer_named(items.scorer)
    elif bare := [example for example in items.examples if len(set(example.choices)) < 2]:
        raise InputError(f"{name}: item {bare[0].line} has no choices", "choices: [text, text]")
    return items


def _distinct(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Each question once: one that is asked twice would count as two that agree."""
    found = {(example.messages, example.choices): example for example in reversed(examples)}
    if len(found) < len(examples):
        say(f"{len(examples) - len(found)} items are there twice and count once")
    return tuple(reversed(found.values()))


def measure(artifact: Path, items: Items, asking: Asking, shots: int | None = None) -> Score:
    """Answer every item greedily and score it.

    `shots`: None asks as a fine-tune is asked; a number gives the items' instructions and so many
    worked examples.
    """
    format_of(artifact)
    if shots and len(items.shots_from) < shots:
        raise InputError(f"there are no {shots} examples to show", "--shots 0, or a suite")
    found = None if asking.fresh else kept(artifact, items, shots)
    if found:
        return found
    with open_runtime(artifact, threads=asking.threads) as model:
        score = answer(model, items, shots, artifact.stem)
    keep(artifact, items, score, shots)
    return score


def kept(artifact: Path, items: Items, shots: int | None = None) -> Score | None:
    """The score that an earlier `measure` kept."""
    file = _kept_file(artifact, items, shots)
    if file.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: answered again
            raw: dict[str, Any] = json.loads(file.read_text())
            raw |= {key: tuple(raw[key]) for key in ("replies", "values", "stopped")}
            score = Score(**raw | {"arm": _arm(artifact.stem, shots)})
            if Path(items.scorer.partition(":")[0]).suffix == ".py":  # may be another by now
                values = _scored(items, score.replies, score.stopped)
                score = dataclasses.replace(score, values=tuple(values))
            return score
    return None


def keep(artifact: Path, items: Items, score: Score, shots: int | None = None) -> None:
    file = _kept_file(artifact, items, shots)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, json.dumps(dataclasses.asdict(score), ensure_ascii=False))


def _kept_file(artifact: Path, items: Items, shots: int | None) -> Path:
    return home() / "scores" / f"{_key(artifact, items, shots)}.json"


def answer(model: Runtime, items: Items, shots: int | None, name: str) -> Score:
    """The uncached part of `measure`, over an open runtime."""
    arm = _arm(name, shots)
    lead = [] if shots is None else _lead(items, shots)
    started = time.perf_counter()
    with Progress(f"answering ({arm})", len(items.examples)) as bar:
        how = _chosen if items.scorer == CHOICE else _written
        replies, stopped, values = how(model, items, lead, bar)
    return Score(
        arm=arm,
        items=fingerprint(items.examples),
        scorer=items.scorer,
        replies=tuple(replies),
        values=tuple(values),
        stopped=tuple(stopped),
        seconds=round(time.perf_counter() - started, 2),
    )


Answers = tuple[list[str], list[bool], list[float]]
"""replies, whether the model ended them, their scores"""


def _written(model: Runtime, items: Items, lead: list[Message], bar: Progress) -> Answers:
    prompts = [
        model.encode(model.chat.render([*lead, *example.prompt])) for example in items.examples
    ]
    replies = model.replies(
        prompts, Limits(max_tokens=items.max_tokens), lambda done: bar.update(done - bar.done)
    )
    texts, stopped = [reply.text for reply in replies], [reply.stopped for reply in replies]
    return texts, stopped, _scored(items, texts, stopped)


def _scored(items: Items, replies: Sequence[str], stopped: Sequence[bool]) -> list[float]:
    score = scorer_named(items.scorer)
    return [
        score(reply, example.answer) if ended or items.may_be_cut else 0.0
        for reply, ended, example in zip(replies, stopped, items.examples, strict=True)
    ]


def _chosen(model: Runtime, items: Items, lead: list[Message], bar: Progress) -> Answers:
    """The likeliest of the choices, each as a whole turn with the token that ends it: the probability
    that the model says just this, so that no choice gains by being short or the start of another."""
    replies = []
    for example in items.examples:
        turns = [
            dataclasses.replace(
                example, messages=(*lead, *example.prompt, Message("assistant", choice))
            )
            for choice in example.choices
        ]
        likely = [_last_turn(model, turn) for turn in turns]
        if not all(map(math.isfinite, likely)):
            raise ProofError("a model computes logits that are no numbers")
        alone = likely.count(max(likely)) == 1  # of two that are as likely it chooses none
        replies.append(example.choices[likely.index(max(likely))] if alone else "")
        bar.update(1)
    values = [
        float(reply == example.answer)
        for reply, example in zip(replies, items.examples, strict=True)
    ]
    return replies, [True] * len(replies), values


def _arm(name: str, shots: int | None) -> str:
    return name if shots is None else f"{name}, {shots}-shot"


def answer_nll(model: Runtime, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood of the answer tokens, nats per token, stop token included."""
    total, count = 0.0, 0
    for example in examples:
        found = _likelihoods(model, answers(encode(example, model.chat, model.encode)))
        total -= float(found.sum())
        count += len(found)
    return total / count


def _last_turn(model: Runtime, example: Example) -> float:
    """Log-likelihood of the last answer with the token that ends it, nats."""
    item = answers(encode(example, model.chat, model.encode))
    (breaks,) = np.nonzero(np.diff(item.rows) > 1)
    rows = item.rows[breaks[-1] + 1 :] if len(breaks) else item.rows
    return float(_likelihoods(model, Measured(item.ids, rows)).sum())


def _likelihoods(model: Runtime, item: Measured) -> Floats:
    first = int(item.rows[0])
    rows = model.logits(item.ids, last=len(item.ids) - first)[item.rows - first]
    return log_likelihood(rows, item.next_ids)


def _lead(items: Items, shots: int) -> list[Message]:
    """Instructions and worked examples, one of each first tag in turn so that all kinds show."""
    kinds: dict[str, list[Example]] = {}
    for example in items.shots_from:
        kinds.setdefault(example.tags[0] if example.tags else "", []).append(example)
    draw = random.Random(SHOTS_SEED)
    shown: list[Message] = []
    names = sorted(kinds)
    draw.shuffle(names)
    for i in range(shots):
        shown += draw.choice(kinds[names[i % len(names)]]).messages
    system = [Message("system", items.instructions)] if items.instructions else []
    return [*system, *shown]


def _key(artifact: Path, items: Items, shots: int | None) -> str:
    hashes = {} if artifact.is_file() else {
        path.name: files.sha256(path) for path in sorted(artifact.iterdir()) if path.is_file()
    }  # fmt: skip
    parts: list[Any] = [
        hashes, __version__, [version(name) for name in format_of(artifact).engines],
        store.identity(artifact), fingerprint(items.examples), items.scorer,
        items.max_tokens, shots, items.instructions if shots is not None else "",
        fingerprint(items.shots_from) if shots else "",
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """File names, or paths where these are equal."""
    counts = collections.Counter(path.name for path in paths)
    return {path: path.name if counts[path.name] == 1 else str(path) for path in paths}


def size_of(artifact: Path) -> int:
    """Bytes on disk, the manifest left out."""
    if artifact.is_file():
        return artifact.stat().st_size
    return sum(f.stat().st_size for f in artifact.rglob("*") if f.name != "manifest.json")
