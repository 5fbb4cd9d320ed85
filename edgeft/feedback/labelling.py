"""Rows with two answers -> preference pairs that a judge chose, and how far it agrees with itself.

    result = label(LabelOptions(Path("answers.jsonl"), Path("pairs.jsonl"), "http://127.0.0.1:8080/v1"))
    result.pairs, result.self_agreement

The judge sees each row twice, with the answers in either order (L. Zheng et al., arXiv 2306.05685, 3.4). Where both
verdicts name the same answer, it is the better one of a pair. All other rows are ties: they stand in the file of
judgements with their reason and are not learned.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.appended_file import AppendedFile
from edgeft.data.columns import parse_columns
from edgeft.data.dataset import KIND, check_jsonl, line_of, manifest_options, open_lines, parents_of
from edgeft.data.rows import BadRow, report_bad_rows
from edgeft.data.sources import data_files
from edgeft.errors import InputError
from edgeft.feedback.candidates import Candidate, read_candidates, written
from edgeft.feedback.chat_api import ChatAPI
from edgeft.feedback.judge import Choice, Judge
from edgeft.feedback.judgements import (
    SCHEMA,
    Judgement,
    Share,
    judgements_path,
    resumed,
    summary,
)
from edgeft.feedback.options import LabelOptions
from edgeft.files import text_sha256
from edgeft.progress import Progress, say
from edgeft.runtimes.protocol import Runtime, open_runtime


@dataclass(frozen=True)
class Labelled:
    """What `label` wrote."""

    output: str
    rows: int
    pairs: int
    outcomes: dict[str, int]
    """`Judgement.outcome` -> rows"""
    self_agreement: Share | None
    """share of the judged rows on which both positions have the same verdict; None without any"""
    first_position: Share | None
    """share of the verdicts for the answer that was shown first; .5 = no bias"""
    label_agreement: Share | None
    """of rows that had a label and became a pair: share on which the judge agrees with it"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def label(options: LabelOptions, overwrite: bool = False) -> Labelled:
    """Judge what is not judged yet, and write the pairs. InputError where the judge does not answer or no row
    becomes a pair, StaleError for judgements of another judge or other answers."""
    check_jsonl(options.output)
    (file,) = _single(data_files(options.data))
    api = ChatAPI(options.judge, _key(options), options.timeout, options.judge_model)
    criterion = _criterion(options.criterion)
    parents = parents_of("data", [file])
    if options.model:
        parents["model"] = store.identity(options.model)
    recorded = _recorded(options, criterion)
    store.check_not_foreign(options.output, overwrite)
    if done := store.find_complete(options.output, KIND, recorded, parents):
        return Labelled(str(options.output), **_facts(done.facts))
    store.check_free(options.output, KIND, recorded, parents, overwrite)
    candidates = _candidates(options, file)
    path = judgements_path(options.output)
    in_use = InputError(f"{path} is being written already", "end that, or another --output")
    with AppendedFile(path, in_use) as lines:
        # More rows of the same file may follow.
        same = {
            name: value for name, value in recorded.items() if name not in ("limit", "bad_rows")
        }
        header = {"judgements": SCHEMA, "options": same, "parents": parents}
        model, judged = resumed(lines, overwrite, header, lambda: api.model_name)
        judge = Judge(dataclasses.replace(api, model=model), options.judge_tokens)
        judgements = _judge_all(options, judge, criterion, candidates, judged, lines)
    facts = summary(judgements)
    if not facts["pairs"]:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in facts["outcomes"].items())
        raise InputError(
            f"the judge prefers no answer in both positions: {counts}",
            f"another judge; {path} has its replies",
        )
    with store.writing(
        options.output, kind=KIND, options=recorded, parents=parents, overwrite=overwrite
    ) as draft:
        with open_lines(draft.path) as out:
            out.writelines(line_of(_pair(one)) for one in judgements if one.chosen is not None)
        draft.facts |= facts | {"judge_model": model}
    return Labelled(str(options.output), **facts)


def _facts(facts: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(Labelled)}
    return {name: value for name, value in facts.items() if name in names}


def _single(files: Sequence[Path]) -> Sequence[Path]:
    if len(files) != 1:
        raise InputError(f"{len(files)} data files", "name one of them")
    return files


def _key(options: LabelOptions) -> str:
    if not options.api_key_env:
        return ""
    key = os.environ.get(options.api_key_env, "")
    if not key:
        raise InputError(f"{options.api_key_env} is not set", f"export {options.api_key_env}=…")
    if not key.isascii() or not key.isprintable():
        raise InputError(f"{options.api_key_env} holds no API key", "characters of ASCII")
    return key


def _criterion(text: str) -> str:
    """The sentence, or the text of the file that it names."""
    with contextlib.suppress(OSError, ValueError):
        if Path(text).is_file():
            return Path(text).read_text(encoding="utf-8").strip()
    return text


def _recorded(options: LabelOptions, criterion: str) -> dict[str, Any]:
    """The options that decide the result."""
    recorded = manifest_options(options)
    for name in ("api_key_env", "clients", "timeout"):
        del recorded[name]
    return recorded | {"criterion_sha256": text_sha256(criterion)}


def _candidates(options: LabelOptions, file: Path) -> list[Candidate]:
    """DataError for bad rows, unless they are to be skipped and others are left."""
    rows = list(
        itertools.islice(
            read_candidates(file, parse_columns(options.columns), options.model is not None),
            options.limit,
        )
    )
    bad = [row for row in rows if isinstance(row, BadRow)]
    if bad:
        report_bad_rows(file, bad, len(rows), options.bad_rows)
    if not rows:
        raise InputError(f"{file} holds no rows")
    return [row for row in rows if isinstance(row, Candidate)]


def _judge_all(
    options: LabelOptions,
    judge: Judge,
    criterion: str,
    candidates: Sequence[Candidate],
    judged: dict[int, Judgement],
    lines: AppendedFile,
) -> list[Judgement]:
    """The judgements of all rows in their order; each is kept in the file as it comes."""
    left = [row for row in candidates if row.line not in judged]
    if left:
        say(f"judge: {judge.api.model} at {judge.api.url}")

    with (
        _model(options, bool(left)) as model,
        concurrent.futures.ThreadPoolExecutor(options.clients) as pool,
        Progress("judging", len(left)) as bar,
    ):

        def keep(done: Iterable[concurrent.futures.Future[Judgement]]) -> None:
            for future in sorted(done, key=lambda one: one.exception() is not None):
                judgement = future.result()
                lines.append(judgement.to_json())
                judged[judgement.line] = judgement
                bar.update(1)

        waiting: set[concurrent.futures.Future[Judgement]] = set()
        try:
            for row in left:
                answered = row if row.answers else written(model, row, options)
                waiting.add(pool.submit(_judge, judge, criterion, answered))
                if len(waiting) >= options.clients:
                    done, waiting = concurrent.futures.wait(waiting, return_when="FIRST_COMPLETED")
                    keep(done)
            keep(concurrent.futures.wait(waiting).done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [judged[row.line] for row in candidates]


def _judge(judge: Judge, criterion: str, row: Candidate) -> Judgement:
    """One row, in both orders of its answers."""
    assert row.answers is not None
    prompt = [{"role": message.role, "content": message.content} for message in row.prompt]
    judgement = Judgement(row.line, prompt, row.answers, row.why, preferred=row.preferred)
    if row.why:
        return judgement
    replies = [
        judge.verdict(row.prompt, pair, criterion) for pair in (row.answers, row.answers[::-1])
    ]
    places: list[dict[Choice | None, int | str | None]] = [
        {"A": 0, "B": 1, "TIE": "tie", None: None},
        {"A": 1, "B": 0, "TIE": "tie", None: None},
    ]
    verdicts = [place[reply.choice] for reply, place in zip(replies, places, strict=True)]
    return dataclasses.replace(
        judgement, replies=tuple(reply.reply for reply in replies), verdicts=tuple(verdicts)
    )


@contextlib.contextmanager
def _model(options: LabelOptions, is_needed: bool) -> Iterator[Any]:
    """The runtime of --model, None without one."""
    if options.model is None or not is_needed:
        yield None
        return
    runtime: Runtime
    with open_runtime(options.model) as runtime:
        yield runtime


def _pair(judgement: Judgement) -> dict[str, Any]:
    assert judgement.chosen is not None
    better, worse = judgement.answers[judgement.chosen], judgement.answers[1 - judgement.chosen]
    return {"messages": judgement.prompt, "chosen": better, "rejected": worse}
