"""What votes say: counts, confidence, several raters, slices."""

from __future__ import annotations

import json

import pytest

from edgeft.human.tally import count_votes, result_text
from edgeft.human.votes import Vote
from helpers.voting import NAMES, make_pairs, make_votes

pytestmark = pytest.mark.unit


def test_counts_and_statistics() -> None:
    result = count_votes(make_pairs(20), 0, make_votes("aaaaaaaaaaaabbbttxaa"))
    total = result.total
    assert (total.wins, total.losses, total.ties, total.bad, total.n) == (14, 3, 3, 1, 20)
    assert total.rate == 15.5 / 20 and total.decided == 14 / 17
    # Wilson's interval of 14 of 17, and 2 [P(X < 3) + P(X = 3) / 2] of Bin(17, 1/2), by hand
    assert total.decided_interval == pytest.approx((0.5897, 0.9381), abs=2e-4)
    assert total.mid_p == pytest.approx(2 * (1 + 17 + 136 + 680 / 2) / 2**17)
    assert result.meaning.startswith(f"{NAMES[0]} is preferred to {NAMES[1]}")
    other = count_votes(make_pairs(20), 0, make_votes("bbbbbbbbbbbbaaattxbb"))
    assert other.meaning.startswith(f"{NAMES[1]} is preferred to {NAMES[0]}")
    assert other.total.mid_p == total.mid_p and other.total.rate == pytest.approx(1 - 15.5 / 20)


def test_few_votes_show_no_preference() -> None:
    result = count_votes(make_pairs(20), 0, make_votes("aaabb"))
    assert result.missing == 15 and "No preference is shown" in result.meaning
    assert count_votes(make_pairs(), 0, make_votes("ttxttt")).meaning.startswith("No difference")
    nothing = count_votes(make_pairs(), 0, make_votes("sss"))
    assert (nothing.total.n, nothing.total.rate, nothing.total.mid_p) == (0, None, None)
    assert nothing.meaning.startswith("No votes") and nothing.votes == {}
    json.dumps([result.to_json(), nothing.to_json()], allow_nan=False)


def test_identical_answers_are_ties_as_far_as_the_votes_reach() -> None:
    same = tuple(range(0, 40, 2))
    pairs = make_pairs(40, identical=same)
    order = pairs.order(5)
    asked = [item for item in order if item not in same]
    acts: list[Vote] = []
    for number, item in enumerate(asked, 1):
        acts.append(Vote(item, "b", "", "a"))
        total = count_votes(pairs, 5, acts).total
        end = order.index(asked[number]) if number < len(asked) else len(order)
        assert total.identical == sum(item in same for item in order[:end])
        assert (total.losses, total.n) == (number, end)
    assert count_votes(make_pairs(3, identical=(0, 1, 2)), 0, []).total.ties == 3


def test_raters_together_give_each_item_one_outcome() -> None:
    acts = [*make_votes("aabtx", "kim"), *make_votes("abbax", "sam")]
    result = count_votes(make_pairs(5), 0, acts)
    assert (result.total.wins, result.total.losses, result.total.ties) == (2, 1, 2)
    assert result.total.bad == 1 and result.votes == {"kim": 5, "sam": 5}
    assert result.agreement == 3 / 5
    assert result.left_rate == 4 / 7
    assert "2 raters; they agree on 60%" in result_text(result)


def test_slices_by_tag() -> None:
    result = count_votes(make_pairs(6), 0, make_votes("abab"))
    assert {tag: (own.wins, own.losses) for tag, own in result.slices.items()} == {
        "kind0": (2, 0), "kind1": (0, 2),
    }  # fmt: skip
    assert "| kind0 |" in result_text(result) and "2 pairs have no vote yet" in result_text(result)
