"""The gates on simulated runs: how often they let a worse model pass, and find an equal one equal."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from edgeft.benchmarks.statistics import graded
from edgeft.benchmarks.statistics.early_stop import SequentialTest
from edgeft.benchmarks.statistics.graded import judge_graded
from edgeft.benchmarks.statistics.noninferiority import Outcome, Paired, items_needed, judge
from edgeft.benchmarks.statistics.retention import measure_retention
from edgeft.release.wording import retention_text, verdict_reason

DRAWS = 10_000
SLOW = pytest.mark.slow


@functools.cache
def outcome(n: int, lost: int, won: int, margin: float) -> Outcome:
    return judge(Paired(n, n - lost - won, lost, won, 0), margin).outcome


def rates(n: int, psi: float, difference: float, margin: float) -> dict[Outcome, float]:
    """Share of `DRAWS` runs by outcome, where the candidate's true difference is `difference`."""
    lose, win = (psi - difference) / 2, (psi + difference) / 2
    draws = np.random.default_rng(n).multinomial(n, [lose, win, 1 - psi], DRAWS)
    outcomes = [outcome(n, int(lost), int(won), margin) for lost, won, _ in draws]
    return {name: outcomes.count(name) / DRAWS for name in ("PASS", "FAIL", "INCONCLUSIVE")}


@pytest.mark.parametrize(("n", "margin"), [(60, 0.05), (200, 0.05), (400, 0.03), (1500, 0.02)])
@pytest.mark.parametrize("psi", [0.05, 0.1, 0.3])
def test_a_model_worse_by_the_margin_passes_at_most_once_in_twenty(
    n: int, margin: float, psi: float
) -> None:
    assert rates(n, psi, -margin, margin)["PASS"] <= 0.05


@pytest.mark.parametrize("margin", [0.05, 0.03, 0.02])
@pytest.mark.parametrize("psi", [0.02, 0.06, 0.1])
def test_an_equal_model_passes_as_often_as_the_table_says(margin: float, psi: float) -> None:
    shares = rates(items_needed(psi, margin), psi, 0.0, margin)
    assert 0.77 <= shares["PASS"] <= 0.87
    assert shares["FAIL"] <= 0.025


def test_a_model_against_itself_passes() -> None:
    scores = [1.0] * 350 + [0.0] * 50
    assert judge(Paired.count(scores, scores)).outcome == "PASS"
    assert judge_graded([0.7] * 200, [0.7] * 200, 0.03).outcome == "PASS"


@pytest.mark.parametrize(
    ("psi", "n"), [(0.3, 400), *(pytest.param(psi, 600, marks=SLOW) for psi in (0.06, 0.1))]
)
def test_early_stopping_errs_at_most_once_in_twenty(psi: float, n: int) -> None:
    """However often one looks: PASS at a true loss of the margin, FAIL just above it."""
    draw = np.random.default_rng(5)
    chances = [(psi - 0.05) / 2, (psi + 0.05) / 2, 1 - psi]
    outcomes = []
    for xs in draw.choice([1, -1, 0], p=chances, size=(1000, n)):
        test = SequentialTest(0.05)
        outcomes.append(next((test.outcome for x in xs if test.update(0, float(x))), None))
    error = 3 * (0.05 * 0.95 / 1000) ** 0.5
    assert outcomes.count("PASS") / 1000 <= 0.05 + error
    assert outcomes.count("FAIL") / 1000 <= 0.05 + error


def test_early_stopping_has_power_and_saves_items() -> None:
    draw = np.random.default_rng(6)
    counts = []
    for xs in draw.choice([1, -1, 0], p=[0.01, 0.01, 0.98], size=(500, 600)):
        test = SequentialTest(0.05)
        for x in xs:
            if test.update(0, float(x)):
                break
        counts.append(test.items if test.outcome == "PASS" else 600)
    assert np.mean(np.array(counts) < 600) > 0.95
    assert np.median(counts) < items_needed(0.02, 0.05) / 1.5  # of a test of one look
    worse = SequentialTest(0.05)
    for x in draw.choice([1, -1, 0], p=[0.02, 0.18, 0.8], size=600):
        worse.update(0, float(x))
    assert worse.outcome == "FAIL"


def test_graded_scores_worse_by_the_margin_rarely_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graded, "DRAWS", 1000)
    draw = np.random.default_rng(1)
    passed = 0
    for _ in range(500):
        before = draw.uniform(0.4, 0.8, 150)
        change = np.where(draw.random(150) < 0.3, draw.normal(-0.1, 0.2, 150), 0)  # -.03 on average
        passed += judge_graded(before, np.clip(before + change, 0, 1), 0.03).outcome == "PASS"
    assert passed / 500 <= 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5


@pytest.mark.parametrize(
    ("n", "drop"),
    [
        (100, 1.0),
        *(pytest.param(*case, marks=SLOW) for case in ((100, 0.9), (200, 1.0), (400, 0.5))),
    ],
)
def test_rare_large_losses_rarely_pass(
    n: int, drop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of graded scores, few of which lose much: many draws of the bootstrap have none of them."""
    monkeypatch.setattr(graded, "DRAWS", 1000)
    draw = np.random.default_rng(4)
    before = np.full(n, 0.95)
    passed = sum(
        judge_graded(
            before, before - drop * 0.95 * (draw.random(n) < 0.05 / drop / 0.95), 0.05
        ).outcome
        == "PASS"
        for _ in range(800)
    )
    assert passed / 800 <= 0.05 + 3 * (0.05 * 0.95 / 800) ** 0.5


def test_nothing_to_lose_is_no_pass_for_graded_scores() -> None:
    low = np.random.default_rng(0).uniform(0, 0.04, 200)
    verdict = judge_graded(low, np.zeros(200), 0.05)
    assert verdict.outcome == "INCONCLUSIVE" and "check the items" in verdict_reason(verdict)


@pytest.mark.parametrize("n", [25, pytest.param(40, marks=SLOW), pytest.param(80, marks=SLOW)])
def test_a_base_that_knows_nothing_proves_no_retention_by_luck(n: int) -> None:
    """Fine-tune 1, base 0: a tenth of the gain is lost in truth."""
    draw = np.random.default_rng(n)
    base, full = np.zeros(n), np.ones(n)
    proven = sum(
        bool(measure_retention(base, full, draw.random(n) < 0.9).retained) for _ in range(300)
    )
    assert proven / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert not measure_retention(base[:18], full[:18], full[:18]).retained
    assert measure_retention(np.zeros(400), np.ones(400), np.ones(400)).retained


def test_graded_scores_that_are_far_worse_fail_and_few_items_decide_nothing() -> None:
    before = np.random.default_rng(2).uniform(0.5, 1, 150)
    assert judge_graded(before, before - 0.2, 0.03).outcome == "FAIL"
    assert judge_graded(before, before, 0.03).outcome == "PASS"
    few = judge_graded(before[:50], before[:50], 0.03)
    assert few.outcome == "INCONCLUSIVE" and few.items_needed == 100


def _arms(left: float, n: int, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Base, fine-tune and artifact, of which `left` of the gain is left."""
    base, full = draw.random(n) < 0.2, draw.random(n) < 0.9
    kept = full & (draw.random(n) >= (1 - left) * 0.7 / 0.9)
    return base.astype(float), full.astype(float), kept.astype(float)


@pytest.mark.slow
def test_the_retained_share_lies_in_its_interval_and_is_rarely_proven_wrongly() -> None:
    draw = np.random.default_rng(3)
    inside = proven = 0
    for _ in range(300):
        result = measure_retention(*_arms(0.9, 200, draw), rho=0.9)
        assert result.low is not None and result.high is not None
        inside += result.low <= 0.9 <= result.high
        proven += bool(result.retained)
    assert inside / 300 >= 0.92
    assert proven / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert measure_retention(*_arms(1.0, 400, draw)).retained


def test_no_gain_gives_no_ratio() -> None:
    same = [1.0, 0.0] * 100
    result = measure_retention(same, same, same)
    assert (
        result.value is None
        and result.retained is None
        and "no measurable" in retention_text(result)
    )


def test_an_artifact_without_a_change_keeps_an_interval() -> None:
    base, full = [0.0] * 60, [1.0] * 60
    result = measure_retention(base, full, full)
    assert result.value == 1.0
    assert result.low is not None and result.low < 0.97
