"""Batches: every example once, similar lengths together, padded right."""

from __future__ import annotations

import pytest

from edgeft.data.encoded_rows import IGNORED

LENGTHS = [7, 90, 8, 11, 80, 85, 9, 10, 79, 12, 84, 6, 81, 5, 88, 83, 13, 4, 86, 87, 14, 82]


@pytest.mark.parametrize("grouped", [True, False])
def test_each_epoch_has_every_example_once_in_its_own_order(grouped: bool) -> None:
    from edgeft.train.batches import GroupedSampler

    sampler = GroupedSampler(LENGTHS, batch_size=4, seed=1, grouped=grouped)
    first = list(sampler)
    assert sorted(first) == list(range(len(LENGTHS))) and len(sampler) == len(LENGTHS)
    assert list(GroupedSampler(LENGTHS, 4, 1, grouped)) == first
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first) and list(sampler) != first


def test_batches_have_similar_lengths_and_the_short_one_is_last() -> None:
    from edgeft.train.batches import GroupedSampler

    order = [LENGTHS[i] for i in GroupedSampler(LENGTHS, batch_size=4, seed=1)]
    batches = [order[i : i + 4] for i in range(0, len(order), 4)]
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
    mixed = [batch for batch in batches if min(batch) < 50 < max(batch)]
    assert len(mixed) <= 1


def test_padding_goes_right_and_is_not_learned() -> None:
    from edgeft.train.batches import collate

    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = {name: values.tolist() for name, values in collate(rows, pad=0).items()}
    assert batch == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[IGNORED, 6, 7], [8, IGNORED, IGNORED]],
    }


def test_fillers_make_full_batches_and_nothing_of_them_is_learned() -> None:
    import torch

    from edgeft.data.encoded_rows import Encoded
    from edgeft.train.batches import GroupedSampler, Rows

    rows = Rows([Encoded([5, 6, 7], [IGNORED, 6, 7])] * 5, multiple_of=4)
    assert (len(rows), rows.fillers, Rows(rows.encoded).fillers) == (8, 3, 0)
    assert len(list(rows)) == 8, "a loop ends"
    assert rows[5] == rows[7] == {"input_ids": [5, 6], "labels": [IGNORED, IGNORED]}
    order = list(GroupedSampler([3] * 5, 2, seed=0, fillers=rows.fillers))
    assert order[5:] == [5, 6, 7] and sorted(order) == list(range(8))
    # The mean over four batches of two, of which the last holds fillers alone.
    labels = torch.tensor([rows[i]["labels"] + [0] * (2 - len(rows[i]["labels"])) for i in (5, 6)])
    learned = torch.tensor([[IGNORED, 6, 7]] * 2)
    half = torch.tensor([[IGNORED, 6, 7], [IGNORED] * 3])
    shares = [rows.share(batch) for batch in (learned, learned, half, labels)]
    assert shares == [1.6, 1.6, 0.8, 0] and sum(shares) == pytest.approx(4)
    assert Rows(rows.encoded).share(half) == 1
