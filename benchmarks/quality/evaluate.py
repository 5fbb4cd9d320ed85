"""Artifact and items -> Score: greedy answers, and one value per item from a scorer.

    options = EvalOptions("smart_home")                         # a suite, or a JSONL file
    items = load_items(options)
    score = measure(Path("q4_k_m.gguf"), items, options)
    score.accuracy, score.values                                # .958, one number per item

A fine-tune gets only the items. A base model also gets instructions and a few worked examples
(shots), for a fair comparison. Scores are cached under `edgeft.files.home()`. The key depends on the
artifact, the items and the prompt, so bench and ab share answers.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import __version__, files, store
from edgeft.benchmarks.fidelity.compare import (
    Floats,
    ScoredSequence,
    answer_sequence,
    log_likelihood,
)
from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality.fewshot import FewShot, FewShotPrompts
from edgeft.benchmarks.quality.scorers import (
    CHECKED,
    CHOICE,
    Scorer,
    is_user_file,
    scorers_by_tag,
    tool_call,
)
from edgeft.benchmarks.suites import load_suite, suite_names
from edgeft.data.encoding import encode
from edgeft.data.rows import BadRow, BadRows, load_examples, report_bad_rows
from edgeft.data.splits import fingerprint
from edgeft.errors import FormatError, InputError, ProofError
from edgeft.files import home
from edgeft.formats import format_of
from edgeft.progress import Progress, say
from edgeft.records import Example, Limits, Message, Score
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.llama_context import BATCH_TOKENS
from edgeft.runtimes.protocol import Runtime, open_runtime
from edgeft.tokenizer.answer_parts import with_calls_read

SCORE_LISTS = ("replies", "values", "stopped", "prompt_tokens")
"""fields of a Score with one value per item"""


@dataclass(frozen=True)
class Items:
    """Examples to answer, and the rules of their scores."""

    examples: tuple[Example, ...]
    scorer: str
    max_tokens: int
    instructions: str = ""
    """system prompt for models that were not fine-tuned"""
    fewshot_pool: tuple[Example, ...] = ()
    """examples that few-shot prompts are drawn from"""
    allow_truncated: bool = False
    """whether to score answers that max_tokens cut off; else they score 0"""

    def part(self, numbers: Sequence[int]) -> Items:
        """The items with these indices, in this order."""
        return dataclasses.replace(self, examples=tuple(self.examples[i] for i in numbers))


def load_items(options: EvalOptions) -> Items:
    """The test split of an embedded suite by name, or a data file by path; InputError for neither."""
    name = options.items or ""
    if name in suite_names():
        suite = load_suite(name)
        items = Items(
            examples=tuple(load_examples(suite.test)),
            scorer=suite.scorer,
            max_tokens=suite.max_tokens,
            instructions=suite.instructions,
            fewshot_pool=tuple(load_examples(suite.train)) if suite.train.is_file() else (),
            allow_truncated=suite.allow_truncated,
        )
    elif Path(name).exists():
        examples = _with_scorable_answers(Path(name), options.bad_rows, options.scorer or "exact")
        items = Items(tuple(examples), scorer="exact", max_tokens=256)
    else:
        raise InputError(
            f"no such suite or file: {name}", f"suites: {', '.join(suite_names())}; or a JSONL file"
        )
    if options.few_shot_data:
        pool = load_examples(options.few_shot_data, options.bad_rows)
        items = dataclasses.replace(items, fewshot_pool=tuple(pool))
    items = dataclasses.replace(
        items,
        examples=_distinct(items.examples)[: options.limit],
        scorer=options.scorer or items.scorer,
        max_tokens=options.max_tokens or items.max_tokens,
    )
    check_scorer(items, name)
    return items


def check_scorer(items: Items, name: str) -> None:
    """FormatError for an unknown scorer, InputError for items that it cannot score; `name`: theirs."""
    if items.scorer == CHOICE:
        lacking = [example for example in items.examples if len(set(example.choices)) < 2]
        problem, hint = "choices", "choices: [text, text]"
    else:
        scorers = scorers_by_tag(items.scorer)
        lacking = [example for example in items.examples if _scorer_of(example, scorers) is None]
        problem, hint = "scorer", "a first scorer without a tag is for all others"
    if lacking:
        raise InputError(f"{name}: item {lacking[0].line} has no {problem}", hint)
    if items.scorer != CHOICE:
        _check_references(items, scorers, name)


def _check_references(items: Items, scorers: Mapping[str, Scorer], name: str) -> None:
    """InputError for the first reference answer that its scorer cannot read, before any answer."""
    for example in items.examples:
        score = _scorer_of(example, scorers)
        if score in CHECKED:
            try:
                score("", example.answer)
            except InputError as error:
                problem = f"{name}: item {example.line}: {error.message}"
                raise InputError(problem, error.hint) from None


def _with_scorable_answers(path: Path, bad_rows: BadRows, spec: str) -> list[Example]:
    """The items of a file. An answer that calls a function is a bad row for a scorer of texts."""
    examples = load_examples(path, bad_rows)
    scorers = {} if spec == CHOICE else scorers_by_tag(spec)

    def is_bad(example: Example) -> bool:
        calls = bool(example.messages[-1].tool_calls)
        return calls and _scorer_of(example, scorers) is not tool_call

    problem, hint = "the answer calls a function", "--scorer tool-call, or end the row with a text"
    calls = [BadRow.of(example, problem, hint) for example in filter(is_bad, examples)]
    report_bad_rows(path, calls, len(examples), bad_rows)
    return [example for example in examples if not is_bad(example)]


def _distinct(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples without duplicates, which would not be independent evidence; keeps the first."""
    distinct = {(e.messages, e.choices, e.tools): e for e in reversed(examples)}
    if len(distinct) < len(examples):
        say(f"{len(examples) - len(distinct)} items are duplicates and count once")
    return tuple(reversed(distinct.values()))


def measure(
    artifact: Path, items: Items, options: EvalOptions, few_shot: FewShot | None = None
) -> Score:
    """Answer every item greedily and score the answers, unless the score is cached.

    `few_shot`: None for a fine-tune, without instructions; otherwise the items' instructions and
    worked examples are added. InputError where there are fewer examples.
    """
    format_of(artifact)
    if few_shot and len(items.fewshot_pool) < few_shot.shots:
        problem = f"there are no {few_shot.shots} examples to show"
        raise InputError(problem, "--shots 0, or --few-shot-data FILE")
    cached = None if options.no_cache else cached_score(artifact, items, few_shot)
    if cached:
        return cached
    with open_runtime(artifact, threads=options.threads) as model:
        score = answer(model, items, few_shot, artifact.stem)
    cache_score(artifact, items, score, few_shot)
    return score


def cached_score(artifact: Path, items: Items, few_shot: FewShot | None = None) -> Score | None:
    """The score that an earlier `measure` cached, if any."""
    file = _cache_file(artifact, items, few_shot)
    if files.is_file(file):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: answered again
            raw: dict[str, Any] = json.loads(file.read_text())
            raw |= {key: tuple(raw[key]) for key in SCORE_LISTS}
            score = Score(**raw | {"arm": _arm_name(artifact.stem, few_shot)})
            if is_user_file(items.scorer):
                values = _score_replies(items, score.replies, score.stopped)
                score = dataclasses.replace(score, values=tuple(values))
            return score
    return None


def cache_score(
    artifact: Path, items: Items, score: Score, few_shot: FewShot | None = None
) -> None:
    """Keep a score for the next comparison; a folder that cannot be written only costs time then."""
    file = _cache_file(artifact, items, few_shot)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps(dataclasses.asdict(score), ensure_ascii=False))
    except OSError as error:
        say(f"the answers are not kept: {error.strerror}: {file.parent} (set EDGEFT_HOME)")


def _cache_file(artifact: Path, items: Items, few_shot: FewShot | None) -> Path:
    return home() / "scores" / f"{_cache_key(artifact, items, few_shot)}.json"


def answer(model: Runtime, items: Items, few_shot: FewShot | None, name: str) -> Score:
    """The uncached part of `measure`, with an open runtime; `name`: the model's."""
    arm = _arm_name(name, few_shot)
    started = time.perf_counter()
    examples = _as_asked(model, items, few_shot)
    prompts = [_prompt_ids(model, example) for example in examples]
    with Progress(f"answering ({arm})", len(items.examples)) as bar:
        if items.scorer == CHOICE:
            replies, stopped, values = _choose(model, examples, bar)
        else:
            asked = dataclasses.replace(items, examples=tuple(examples))
            replies, stopped, values = _generate(model, asked, prompts, bar)
    return Score(
        arm=arm,
        items=fingerprint(items.examples),
        scorer=items.scorer,
        replies=tuple(replies),
        values=tuple(values),
        stopped=tuple(stopped),
        seconds=round(time.perf_counter() - started, 2),
        prompt_tokens=tuple(map(len, prompts)),
    )


Answers = tuple[list[str], list[bool], list[float]]
"""(replies, whether the model ended each, scores)"""


def _as_asked(model: Runtime, items: Items, few_shot: FewShot | None) -> list[Example]:
    """The items with their whole prompts: as they are for a fine-tune."""
    if few_shot is None:
        return list(items.examples)
    embed = functools.partial(_embed, model)
    prompts = FewShotPrompts(few_shot, items.fewshot_pool, items.instructions, embed)
    return [
        dataclasses.replace(e, messages=(*prompts.prompt(e), e.messages[-1]))
        for e in items.examples
    ]


def _embed(model: Runtime, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """The model's own states of the beginnings of texts. FormatError for an engine that gives none."""
    if not isinstance(model, GGUFRuntime):
        raise FormatError("only a GGUF file embeds the examples", "--pick similar")
    return model.embed_all([model.encode(text or " ")[:BATCH_TOKENS] for text in texts])


def _prompt_ids(model: Runtime, example: Example) -> list[int]:
    """InputError that names the line of an item that cannot be rendered or tokenized."""
    try:
        return model.encode(model.chat.render(example.prompt, tools=example.tools))
    except InputError as error:
        raise InputError(f"the item of line {example.line}: {error.message}", error.hint) from None


def _generate(model: Runtime, items: Items, prompts: Sequence[list[int]], bar: Progress) -> Answers:
    replies = model.replies(
        prompts, Limits(max_tokens=items.max_tokens), lambda done: bar.update(done - bar.done)
    )
    scorers = scorers_by_tag(items.scorer)
    texts = [
        _with_calls_read(model, example, reply.text)
        if _scorer_of(example, scorers) is tool_call
        else reply.text
        for example, reply in zip(items.examples, replies, strict=True)
    ]
    stopped = [reply.stopped for reply in replies]
    return texts, stopped, _score_replies(items, texts, stopped)


def _with_calls_read(model: Runtime, example: Example, text: str) -> str:
    prompt = model.chat.render(example.prompt, tools=example.tools)
    return with_calls_read(model.chat, prompt, example.tools, text)


def _score_replies(items: Items, replies: Sequence[str], stopped: Sequence[bool]) -> list[float]:
    scorers = scorers_by_tag(items.scorer)
    values = []
    for reply, ended, example in zip(replies, stopped, items.examples, strict=True):
        score = _scorer_of(example, scorers)
        assert score, "checked when the items were loaded"
        values.append(score(reply, example.answer) if ended or items.allow_truncated else 0.0)
    return values


def _scorer_of(example: Example, scorers: Mapping[str, Scorer]) -> Scorer | None:
    """The scorer of the first of its tags that has one, else that of all others."""
    tags = (tag for tag in example.tags if tag in scorers)
    return scorers.get(next(tags, ""))


def _choose(model: Runtime, examples: Sequence[Example], bar: Progress) -> Answers:
    """Answer each item with its likeliest choice, "" where two are equally likely.

    A choice is scored as a whole turn with its stop token: the probability that the model answers
    exactly this. So a choice gains nothing by being short or the beginning of another.
    """
    replies = []
    for example in examples:
        turns = [
            dataclasses.replace(example, messages=(*example.prompt, Message("assistant", choice)))
            for choice in example.choices
        ]
        likelihoods = [_last_turn_likelihood(model, turn) for turn in turns]
        if not all(map(math.isfinite, likelihoods)):
            raise ProofError("a model computes NaN or infinite logits")
        best = max(likelihoods)
        unique = likelihoods.count(best) == 1
        replies.append(example.choices[likelihoods.index(best)] if unique else "")
        bar.update(1)
    values = [
        float(reply == example.answer) for reply, example in zip(replies, examples, strict=True)
    ]
    return replies, [True] * len(replies), values


def _arm_name(name: str, few_shot: FewShot | None) -> str:
    return name if few_shot is None else f"{name}, {few_shot}"


def answer_nll(model: Runtime, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood of the answer tokens, nats per token, stop token included."""
    total, count = 0.0, 0
    for example in examples:
        sequence = answer_sequence(encode(example, model.chat, model.encode))
        likelihoods = _log_likelihoods(model, sequence)
        total -= float(likelihoods.sum())
        count += len(likelihoods)
    return total / count


def _last_turn_likelihood(model: Runtime, example: Example) -> float:
    """Log-likelihood of the last answer with the token that ends it, nats."""
    sequence = answer_sequence(encode(example, model.chat, model.encode))
    (breaks,) = np.nonzero(np.diff(sequence.rows) > 1)  # between the answers of several turns
    rows = sequence.rows[breaks[-1] + 1 :] if len(breaks) else sequence.rows
    return float(_log_likelihoods(model, ScoredSequence(sequence.ids, rows)).sum())


def _log_likelihoods(model: Runtime, sequence: ScoredSequence) -> Floats:
    """Log-likelihood of each scored token, nats, (tokens,)."""
    first = int(sequence.rows[0])
    logits = model.logits(sequence.ids, last=len(sequence.ids) - first)[sequence.rows - first]
    return log_likelihood(logits, sequence.next_ids)


def _cache_key(artifact: Path, items: Items, few_shot: FewShot | None) -> str:
    """A hash of all inputs of the answers."""
    hashes = {} if artifact.is_file() else {
        path.name: files.sha256(path) for path in sorted(artifact.iterdir()) if path.is_file()
    }  # fmt: skip
    parts: list[Any] = [
        hashes, __version__, [version(name) for name in format_of(artifact).engines],
        store.identity(artifact), fingerprint(items.examples), items.scorer,
        items.max_tokens, items.allow_truncated, few_shot and str(few_shot), items.instructions if few_shot else "",
        fingerprint(items.fewshot_pool) if few_shot and few_shot.shots else "",
        [example.tags for example in items.examples] if "=" in items.scorer else "",
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """artifact -> its file name, or its whole path where two have the same file name."""
    counts = collections.Counter(path.name for path in paths)
    return {path: path.name if counts[path.name] == 1 else str(path) for path in paths}


def size_of(artifact: Path) -> int:
    """Bytes on disk, without the manifest."""
    if artifact.is_file():
        return artifact.stat().st_size
    return sum(f.stat().st_size for f in artifact.rglob("*") if f.name != "manifest.json")
