"""The word of `edgeft baseline` on scores that are made up."""

from __future__ import annotations

import json

import pytest

from edgeft.benchmarks.quality.fewshot import FewShot
from edgeft.benchmarks.statistics.noninferiority import wilson
from edgeft.release.advice import Attempt, advise, rows_needed

pytestmark = pytest.mark.unit


def attempt(
    right: int, base: str = "small", shots: int = 0, pick: str = "fixed", size: int = 100,
    tokens: float = 50, rows: int = 100, first: int = 0,
) -> Attempt:  # fmt: skip
    """`right` of `rows` items right, from number `first` on."""
    values = tuple(float(first <= i < first + right) for i in range(rows))
    way = FewShot(shots, pick)  # type: ignore[arg-type]
    return Attempt(base, way, size, values, wilson(right, rows), tokens, 0.1, 1.0)


def test_a_prompt_that_reaches_the_target_is_enough() -> None:
    attempts = [attempt(98), attempt(100, shots=4, tokens=400), attempt(99, "large", size=900)]
    advice = advise(attempts, 0.9)
    assert (advice.word, advice.base, advice.proven) == ("prompt", "small", True)
    assert advice.attempt is attempts[0]


def test_examples_that_reach_it_come_before_a_fine_tune_and_the_shortest_prompt_is_taken() -> None:
    attempts = [
        attempt(40), attempt(97, shots=8, tokens=600), attempt(96, shots=4, pick="similar", tokens=300),
        attempt(70, shots=4, tokens=310),
    ]  # fmt: skip
    advice = advise(attempts, 0.9)
    assert (advice.word, advice.attempt) == ("few-shot", attempts[2])
    assert "4-shot, similar" in advice.reasons[0]
    assert "250 tokens of each prompt, 300 in place of 50" in advice.reasons[-1]


def test_a_smaller_base_with_examples_does_not_beat_a_prompt_alone() -> None:
    attempts = [attempt(96, shots=4), attempt(95, "large", size=900)]
    assert (advise(attempts, 0.9).word, advise(attempts, 0.9).base) == ("prompt", "large")


def test_a_score_above_the_target_that_few_rows_do_not_prove() -> None:
    advice = advise([attempt(93)], 0.9)
    assert advice.word == "prompt" and not advice.proven
    needed = rows_needed(0.93, 0.9)
    assert needed is not None and f"about {needed} rows" in advice.reasons[-1]
    assert wilson(0.93 * needed, needed)[0] >= 0.9 > wilson(0.93 * (needed - 1), needed - 1)[0]
    assert "too near" in advise([attempt(90)], 0.9).reasons[-1]


def test_all_below_the_target_is_a_fine_tune_of_the_best_base() -> None:
    attempts = [attempt(5), attempt(30, shots=4, tokens=350), attempt(60, "large", size=900)]
    advice = advise(attempts, 0.9)
    assert (advice.word, advice.base, advice.proven) == ("fine-tune", "large", True)
    assert "30.0 points below the target of 90.0%" in advice.reasons[0]
    assert "scores best of the bases" in advice.reasons[-1]
    alone = advise(attempts[:2], 0.9)
    assert (
        "(4-shot) change the score of small by +25.0 points and cost 300 tokens"
        in alone.reasons[-1]
    )


def test_a_smaller_base_that_is_not_measurably_worse_is_fine_tuned() -> None:
    attempts = [attempt(50, "large", size=900), attempt(48, "small")]
    advice = advise(attempts, 0.9)
    assert (advice.word, advice.base) == ("fine-tune", "small")
    assert "not measurably worse (48.0% against 50.0% on 100 rows)" in advice.reasons[-1]
    # The same two scores on other items each: that many changed answers are still no proof.
    apart = [attempts[0], attempt(48, "small", first=52)]
    assert advise(apart, 0.9).base == "small"
    assert advise([attempts[0], attempt(30, "small")], 0.9).base == "large"


def test_an_interval_that_reaches_the_target_is_named() -> None:
    advice = advise([attempt(88)], 0.9)
    assert advice.word == "fine-tune" and not advice.proven
    assert any("more rows" in reason for reason in advice.reasons)


def test_the_result_is_json() -> None:
    advice = advise([attempt(5, shots=4, pick="similar")], 0.9)
    made = json.loads(json.dumps(advice.to_json()))
    assert made["attempt"]["few_shot"] == {"shots": 4, "pick": "similar"}
    assert "values" not in made["attempt"] and made["attempt"]["n"] == 100
    with pytest.raises(ValueError, match="no attempt"):
        advise([], 0.9)
