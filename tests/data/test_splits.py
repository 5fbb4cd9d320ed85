"""Splits: a partition that only the seed decides, and the fingerprint of its examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.data.splits import (
    fingerprint,
    load_splits,
    split,
    training_examples,
    validation_examples,
)
from edgeft.errors import InputError
from edgeft.records import Example
from helpers.chats import some_examples

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("size", "held"), [(0.1, 10), (0.005, 0), (1, 1), (7, 7), (0.994, 99)])
def test_split_is_a_partition(size: float, held: int) -> None:
    examples = some_examples(100)
    if not held:
        with pytest.raises(InputError, match=r"share of 0\.005 of 100 examples is empty"):
            split(examples, size, seed=1)
        return
    train, validation = split(examples, size, seed=1)
    assert len(validation) == held and len(train) == 100 - held
    lines = sorted(example.line for example in train + validation)
    assert lines == list(range(100)), "each example once"
    for part in (train, validation):
        assert [e.line for e in part] == sorted(e.line for e in part), "in the file's order"
    assert split(examples, size, seed=1) == (train, validation)


def test_the_seed_decides_the_split() -> None:
    orders = {tuple(e.line for e in split(some_examples(50), 5, seed)[1]) for seed in range(8)}
    assert len(orders) == 8
    # Written down, because a run that goes on after an upgrade must keep its held-out examples.
    assert [e.line for e in split(some_examples(20), 4, seed=0)[1]] == [10, 14, 16, 18]


def test_size_0_is_no_split_and_a_too_large_one_is_refused() -> None:
    assert split(some_examples(3), 0, seed=1) == (some_examples(3), [])
    for size in (3, 4, 0.9):
        with pytest.raises(InputError, match=r"split of \d leaves nothing of 3 examples") as caught:
            split(some_examples(3), size, seed=1)
        assert caught.value.hint == "lower --validation-size"


def test_the_fingerprint_depends_on_the_conversations_and_their_order() -> None:
    one, two = some_examples(2)
    assert fingerprint([one, two]) == fingerprint([Example(one.messages, ("t",), 9), two])
    prints = [fingerprint(e) for e in ([one, two], [two, one], [one], [], [one, one])]
    assert len(set(prints)) == 5


def test_mapped_columns_give_the_same_examples_again(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "reply": f"a{i}", "output": "wrong"} for i in range(40)]
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("prompt=question", "answer=reply")
    splits = load_splits(file, None, 0.25, 0, columns=columns)
    assert {e.answer for e in splits.train + splits.validation} == {f"a{i}" for i in range(40)}
    assert splits.files["data"].ignored == {"output": 40}
    recorded = {"data": str(file), "validation_size": 0.25, "seed": 0, "columns": list(columns)}
    assert validation_examples(recorded) == splits.validation
    assert training_examples(recorded) == splits.train
    assert load_splits(file, None, 0.25, 0).train[0].answer == "wrong"
