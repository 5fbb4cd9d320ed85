"""Packed rows: nothing is lost, rows are full, and their loss is that of their examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Family

from edgeft.data.encoded_rows import IGNORED, Encoded
from edgeft.train.packing import pack
from helpers.families import CHATGLM, TINY, by_family

TRAINED = [case for case, tiny in TINY.items() if tiny.config != CHATGLM and case != "phi3-long"]
"""not phi3-long: the longest text of a batch chooses the factors of all (transformers' longrope)"""


def some_examples(lengths: tuple[int, ...], prompt: int = 3) -> list[Encoded]:
    import random

    draw = random.Random(1)
    examples = []
    for length in lengths:
        ids = [draw.randrange(256) for _ in range(length)]
        examples.append(Encoded(ids, [IGNORED] * prompt + ids[prompt:]))
    return examples


def test_every_example_is_whole_in_one_row_and_rows_are_full() -> None:
    lengths = (9, 30, 5, 21, 11, 4, 2, 16, 40, 7)
    examples = some_examples(lengths, prompt=0)
    rows = pack(examples, 32)
    assert [len(row.ids) for row in rows] == [40, 32, 32, 32, 9]
    found = []
    for row in rows:
        starts = [i for i, position in enumerate(row.positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(row.ids)], strict=True):
            assert row.positions[start:end] == list(range(end - start))
            assert row.labels[start:end] == [IGNORED, *row.ids[start + 1 : end]]
            found.append(row.ids[start:end])
    assert sorted(found) == sorted(example.ids for example in examples)


@pytest.mark.parametrize("case", by_family(TRAINED))
def test_the_loss_of_packed_rows_is_that_of_their_examples(
    make: Family, case: str, tmp_path: Path
) -> None:
    """No example sees a token of another one, in every family."""
    import torch
    import transformers

    from edgeft.train.batches import Rows, collate
    from edgeft.train.objectives.sft import AnswerTrainer

    model: Any = make(case)[2]
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none"
    )
    trainer = AnswerTrainer(model=model, args=options)
    examples = some_examples((17, 25, 9, 12, 20))
    rows = pack(examples, 40)
    assert [len(row.ids) for row in rows] == [37, 37, 9]
    packed = collate(list(Rows(rows)), pad=0)
    plain = collate(list(Rows(examples)), pad=0)
    assert "position_ids" in packed and "position_ids" not in plain
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, packed, num_items_in_batch=1))
        own = sum(
            float(
                model(
                    input_ids=torch.tensor([example.ids]),
                    labels=torch.tensor([example.labels]),
                    num_items_in_batch=1,
                ).loss
            )
            for example in examples
        )
        assert float(trainer.compute_loss(model, plain, num_items_in_batch=1)) == pytest.approx(
            own, rel=1e-5
        )
    assert loss == pytest.approx(own, rel=1e-5)
