"""The tasks of the studies keep the promises of their README: counts, new phrases, one right answer, no leak."""

from __future__ import annotations

import functools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.quality.scorers import scorer_named
from edgeft.benchmarks.studies.tasks import (
    TASKS,
    order_extract,
    support_intents,
    tool_calls,
    write_task,
)
from edgeft.benchmarks.studies.tasks.writing import rows_of
from edgeft.benchmarks.studies.tool_calling import call_fits
from edgeft.benchmarks.suites import Suite
from edgeft.benchmarks.suites.smart_home.grammar import Row, normalise
from edgeft.data.checking import check
from edgeft.data.options import CheckOptions

pytestmark = pytest.mark.unit


@functools.cache
def rows_by_split(name: str) -> dict[str, list[Row]]:
    return rows_of(TASKS[name], seed=0)


def exchanges(name: str, *splits: str) -> list[tuple[str, str, list[str]]]:
    """(message, answer, tags) of the rows of some splits, or of all."""
    return [
        (row["messages"][0]["content"], row["messages"][1]["content"], row["tags"])
        for split, rows in rows_by_split(name).items()
        for row in rows
        if not splits or split in splits
    ]


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_writes_the_same_files_with_the_counts_of_each_group(
    name: str, tmp_path: Path
) -> None:
    task, suite = TASKS[name], write_task(name, tmp_path / "a")
    again = write_task(name, tmp_path / "b")
    for file in sorted(suite.folder.iterdir()):
        assert file.read_bytes() == (again.folder / file.name).read_bytes()
    for split, groups in task.splits.items():
        lines = (suite.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        last_tags = [json.loads(line)["tags"][-1] for line in lines]
        assert {group: last_tags.count(group) for group in groups} == groups
        assert len(lines) == sum(groups.values())
    facts = json.loads((suite.folder / "task.json").read_text())
    assert (facts["scorer"], facts["max_tokens"]) == (suite.scorer, suite.max_tokens)
    assert rows_of(task, seed=1) != rows_by_split(name)


@pytest.mark.parametrize("name", TASKS)
def test_no_message_stands_twice_and_every_answer_is_right_for_the_scorer(name: str) -> None:
    rows = exchanges(name)
    assert len({normalise(message) for message, _, _ in rows}) == len(rows)
    score = scorer_named(TASKS[name].scorer)
    assert all(score(answer, answer) == 1 for _, answer, _ in rows)


@pytest.mark.parametrize("name", TASKS)
def test_the_data_check_finds_no_error_and_no_leak(name: str, tmp_path: Path) -> None:
    suite: Suite = write_task(name, tmp_path)
    others = (suite.validation, suite.test)
    report = check(CheckOptions((suite.train,), against=others, test_sets=(), near=0))
    assert report.exit_code == 0 and not report.count("error") + report.count("warning")


def test_every_intent_has_phrases_of_its_own_for_the_test() -> None:
    labels = support_intents.WORDS["labels"]
    phrases = [p for of in labels.values() for p in of["seen"] + of["new"]]
    assert len(labels) == 40 and len(set(map(normalise, phrases))) == len(phrases)
    assert {answer for _, answer, _ in exchanges("support_intents", "train")} == set(labels)
    assert all(answer == tags[0] for _, answer, tags in exchanges("support_intents"))
    assert set(labels) < set(re.split(r"[,\s]+", support_intents.INSTRUCTIONS))


def test_typos_change_so_many_words_and_nothing_else() -> None:
    text = "Where is my order 48213 please"
    for seed in range(50):
        before, after = text.split(), support_intents.with_typos(random.Random(seed), text, 2)
        changed = [(a, b) for a, b in zip(before, after.split(), strict=True) if a != b]
        assert len(changed) <= 2 and all(abs(len(a) - len(b)) <= 1 for a, b in changed)
        assert "48213" in after


AMOUNTS = {word: i for i, word in enumerate(order_extract.WORDS["numbers"], 1)}
AMOUNTS |= {word: int(n) for n, word in order_extract.WORDS["groups"].items()} | {"an": 1, "one": 1}
AMOUNTS |= {str(n): n for n in range(1, 13)}
PLURALS = {
    one: many for part in ("seen", "new") for one, many in order_extract.WORDS[part]["things"]
}


def quantity_said(message: str, name: str, corrected: bool) -> set[int]:
    """The quantities before an item's name; where the order is corrected, also those of the correction."""
    material, _, thing = name.rpartition(" ")
    amounts = "|".join(sorted(AMOUNTS, key=len, reverse=True))
    said = re.findall(rf"\b({amounts}) {material} (?:{PLURALS[thing]}|{thing})\b", message)
    if corrected:
        said += re.findall(rf"\b({amounts})\b", message)
    return {AMOUNTS[text] for text in said}


def test_what_an_order_extracts_stands_in_its_mail() -> None:
    for message, text, tags in exchanges("order_extract"):
        answer: dict[str, Any] = json.loads(text)
        assert [*answer] == [
            key for key in ("items", "address", "date", "remarks") if key in answer
        ]
        assert answer["address"] in message and answer.get("remarks", "") in message
        for item in answer["items"]:
            said = quantity_said(message, item["name"], "corrected" in tags)
            assert item["quantity"] in said, (message, item)
        if "date" in answer:
            month, day = map(int, answer["date"].split("-"))
            name = order_extract.WORDS["months"][month - 1]
            assert re.search(rf"\b{day}/{month}\b|\b{name[:3]}", message), message
            assert re.search(rf"\b{day}(?!\d)", message)


def test_words_of_the_test_split_are_not_in_the_training() -> None:
    training = " ".join(message for message, _, _ in exchanges("order_extract", "train"))
    test = " ".join(message for message, _, _ in exchanges("order_extract", "test"))
    new = [*order_extract.WORDS["new"]["materials"], *order_extract.WORDS["new"]["remark_texts"]]
    assert all(word in test for word in new)
    assert not [word for word in new if re.search(rf"\b{word}\b", training)]


def test_the_number_of_an_order_is_the_only_one_in_its_line() -> None:
    for message, answer, _ in exchanges("order_number"):
        assert re.findall(r"\d+", message) == [answer]


def tool_rows(*splits: str) -> list[Row]:
    by_split = rows_by_split("tool_calls")
    return [row for split, rows in by_split.items() for row in rows if split in splits]


def calls_of(row: Any) -> list[tuple[str, dict[str, Any]]]:
    calls = (call["function"] for call in row["messages"][1].get("tool_calls", ()))
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


def test_calls_fit_the_functions_of_their_row_and_say_what_the_user_said() -> None:
    for row in map(dict, tool_rows("train", "validation", "test")):
        calls, message = calls_of(row), row["messages"][0]["content"]  # type: ignore[index]
        names = [tool["function"]["name"] for tool in row["tools"]]  # type: ignore[attr-defined]
        assert len(set(names)) == len(names)
        assert len(calls) == {"none": 0, "one": 1, "two": 2}[row["tags"][0]]  # type: ignore[index]
        for name, arguments in calls:
            assert call_fits(name, json.dumps(arguments), row["tools"]), row  # type: ignore[arg-type]
            for key, value in arguments.items():
                is_free = isinstance(value, str) and "enum" not in parameter(row, name, key)
                assert not is_free or value.removeprefix("0").lower() in message.lower(), row


def parameter(row: Any, function: str, key: str) -> dict[str, Any]:
    (schema,) = (
        tool["function"]["parameters"]["properties"][key]
        for tool in row["tools"]
        if tool["function"]["name"] == function
    )
    assert isinstance(schema, dict)
    return schema


def test_a_function_has_names_of_its_own_and_new_ones_are_in_the_test_alone() -> None:
    names = [name for entry in tool_calls.FUNCTIONS.values() for name in entry["names"]]
    assert len(set(names)) == len(names)
    held_out = {
        name
        for entry in tool_calls.FUNCTIONS.values()
        if entry.get("held_out")
        for name in entry["names"]
    }
    assert not held_out & {
        name for row in tool_rows("train", "validation") for name, _ in calls_of(row)
    }
    new = [row for row in tool_rows("test") if row["tags"][-1] == "new_tools"]
    assert {name for row in new for name, _ in calls_of(row)} == held_out


def test_the_same_function_has_other_parameters_in_other_rows() -> None:
    lamps = [
        tool["function"]["parameters"]["properties"]
        for row in map(dict, tool_rows("train"))
        for tool in row["tools"]  # type: ignore[attr-defined]
        if tool["function"]["name"] == "set_lamp"
    ]
    assert len({tuple(properties) for properties in lamps}) >= 6
    assert len({json.dumps(properties) for properties in lamps}) >= 6
