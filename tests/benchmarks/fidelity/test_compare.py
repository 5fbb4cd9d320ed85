"""Fidelity against plain numpy in double precision, and its errors against simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edgeft.benchmarks.fidelity.compare import (
    Estimate,
    Fidelity,
    ScoredSequence,
    answer_sequence,
    compare_fidelity,
    divergence,
    kl_ratio,
    log_likelihood,
    paired_difference,
    ratio,
    text_chunks,
)
from edgeft.benchmarks.quality.evaluate import answer_nll
from edgeft.data.encoded_rows import IGNORED, Encoded
from edgeft.errors import InputError, ProofError
from edgeft.records import Example, Message
from edgeft.tokenizer.chat_template import ChatTemplate
from helpers.tiny import CHATML

pytestmark = pytest.mark.unit

VOCABULARY = 50


class Bigrams:
    """A runtime whose logits depend on the last token alone."""

    def __init__(self, table: Any) -> None:
        self.table = np.asarray(table, np.float32)
        self.vocab_size = self.table.shape[1]
        self.asked: list[tuple[list[int], int | None]] = []

    def logits(self, ids: Sequence[int], last: int | None = None) -> Any:
        self.asked.append((list(ids), last))
        return self.table[list(ids)][-(last or len(ids)) :]


def log_softmax(logits: Any) -> Any:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("width", [2, 50, 300_000])
@pytest.mark.parametrize("offset", [0.0, 80.0, -80.0])
def test_divergence_and_likelihood_in_float32_are_those_in_double(
    draw: np.random.Generator, width: int, offset: float
) -> None:
    p = draw.normal(0, 3, (5, width)).astype(np.float32)
    q = p + draw.normal(0, 0.3, p.shape).astype(np.float32)
    log_p, log_q = log_softmax(p), log_softmax(q)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    shifted = (q + np.float32(offset)).astype(np.float32)
    assert divergence(p, shifted) == pytest.approx(expected, abs=2e-5 if offset else 1e-6)
    before = p.copy()
    assert (divergence(p, p) == 0).all()
    ids = draw.integers(0, width, 5)
    assert log_likelihood(p, ids) == pytest.approx(log_p[np.arange(5), ids], abs=2e-6)
    assert (p == before).all(), "the logits are the caller's"


def test_divergence_by_hand() -> None:
    p = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    q = np.log(np.array([[0.25, 0.25, 0.5]], np.float32))
    assert divergence(p, q) == pytest.approx([0.25 * np.log(2)], abs=1e-7)
    assert log_likelihood(q, np.array([2])) == pytest.approx([np.log(0.5)], abs=1e-7)


def test_figures_are_those_of_the_tokens_that_count(draw: np.random.Generator) -> None:
    p = draw.normal(0, 2, (VOCABULARY, VOCABULARY))
    q = p + draw.normal(0, 0.8, p.shape)
    sequences = [
        ScoredSequence(
            draw.integers(0, VOCABULARY, 30).tolist(), np.sort(draw.permutation(29)[:count])
        )
        for count in (3, 20, 0, 11)
    ]
    reference, model = Bigrams(p), Bigrams(q)
    same, other = compare_fidelity(reference, [Bigrams(p), model], sequences)  # type: ignore[list-item, arg-type]
    log_p, log_q = log_softmax(p), log_softmax(q)
    before = [item.ids[row] for item in sequences for row in item.rows]
    after = [item.ids[row + 1] for item in sequences for row in item.rows]
    kl = [float((np.exp(log_p[t]) * (log_p[t] - log_q[t])).sum()) for t in before]
    surprise = [float(log_p[t, u] - log_q[t, u]) for t, u in zip(before, after, strict=True)]
    assert (other.tokens, other.sequences) == (34, 3)
    assert other.kl.value == pytest.approx(np.mean(kl), abs=1e-6)
    assert other.kl_p99 == pytest.approx(np.quantile(kl, 0.99), abs=1e-6)
    assert other.top1.value == np.mean([p[t].argmax() == q[t].argmax() for t in before])
    assert other.log_ppl_ratio.value == pytest.approx(np.mean(surprise), abs=1e-6)
    perplexities = np.exp([-np.mean(x[before, after]) for x in (log_q, log_p)])
    assert other.perplexity_ratio == pytest.approx(perplexities[0] / perplexities[1], rel=1e-5)
    assert other.perplexity == pytest.approx(perplexities[0], rel=1e-5)
    assert same.kl == Estimate(0, 0) and same.top1 == Estimate(1, 0)
    assert same.perplexity_ratio == 1 and same.log_ppl_ratio.error == 0
    assert other.kl.error > 0 and other.log_ppl_ratio.error > 0
    assert model.asked == reference.asked, "both must read the same"
    item = sequences[0]
    end = int(item.rows[-1]) + 1
    assert model.asked[0] == (list(item.ids[:end]), end - item.rows[0])
    raw = other.to_json()
    assert raw["kl"]["value"] == other.kl.value and "sums" not in raw


def simulated(draw: np.random.Generator, count: int) -> tuple[Fidelity, Fidelity]:
    """Two models over sequences of unequal length, where the tokens of one have much in common."""
    tokens = draw.integers(5, 60, count).astype(float)
    hard = draw.gamma(2, 0.1, count)  # what both models find hard about a sequence
    own = [draw.normal(0, 0.02, count) + draw.normal(0, 0.3, count) / tokens for _ in range(2)]
    sums = [tokens * (hard + mine + 0.05 * (i == 1)) for i, mine in enumerate(own)]
    none = Estimate(0, 0)

    def model(kl: Any) -> Fidelity:
        value, error = ratio(list(zip(kl, tokens, strict=True)))
        assert value is not None
        together = {"kl": kl, "tokens": tokens}
        return Fidelity(
            int(tokens.sum()), count, Estimate(value, error), none, none, 0, 0, together
        )

    return model(sums[0]), model(sums[1])


@pytest.mark.parametrize(
    "figure",
    [
        lambda a, b: a.kl,
        lambda a, b: paired_difference(b, a, "kl"),
        lambda a, b: kl_ratio(b, a),
    ],
    ids=["one model", "difference", "ratio"],
)
def test_errors_are_the_spread_over_repetitions(
    draw: np.random.Generator, figure: Callable[[Fidelity, Fidelity], Estimate]
) -> None:
    estimates = [figure(*simulated(draw, 60)) for _ in range(600)]
    spread = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.error for estimate in estimates]) == pytest.approx(spread, rel=0.1)


def test_a_pair_is_known_better_than_its_members(draw: np.random.Generator) -> None:
    a, b = simulated(draw, 200)
    gap = paired_difference(b, a, "kl")
    assert gap.value == pytest.approx(b.kl.value - a.kl.value)
    assert abs(gap.value - 0.05) < 4 * gap.error
    assert gap.error < 0.5 * np.hypot(a.kl.error, b.kl.error)
    with pytest.raises(InputError, match="not compared on the same sequences"):
        paired_difference(a, simulated(draw, 200)[0], "kl")


def test_only_the_answers_of_a_chat_count() -> None:
    item = answer_sequence(Encoded([5, 6, 7, 8, 9], [IGNORED, IGNORED, 7, IGNORED, 9]))
    assert item.rows.tolist() == [1, 3]
    assert item.next_ids.tolist() == [7, 9]


def test_loss_on_answers_is_that_of_their_tokens(draw: np.random.Generator) -> None:
    class Chatting(Bigrams):
        chat = ChatTemplate(CHATML, "", "<|im_end|>", ("<|im_end|>",))

        def encode(self, text: str) -> list[int]:
            return [ord(letter) % VOCABULARY for letter in text]

    model = Chatting(draw.normal(0, 2, (VOCABULARY, VOCABULARY)))
    log_p = log_softmax(model.table)
    examples = [Example((Message("user", "hello"), Message("assistant", text))) for text in "ab"]
    expected = []
    for text in "ab":
        ids = model.encode(f"assistant\n{text}<|im_end|>")
        pairs = list(itertools.pairwise(ids))[len("assistant\n") - 1 :]
        expected += [-log_p[pair] for pair in pairs]
    assert len(expected) == 2 * (1 + len("<|im_end|>"))
    nll = answer_nll(model, examples)  # type: ignore[arg-type]
    assert nll == pytest.approx(np.mean(expected), abs=1e-6)


def test_pieces_of_a_text() -> None:
    ids = list(range(100, 195))
    first, last = text_chunks(ids, chunks=2, size=10)
    assert (first.ids, last.ids) == (ids[:10], ids[40:50])
    assert first.rows.tolist() == [5, 6, 7, 8]
    assert first.next_ids.tolist() == ids[6:10]
    assert text_chunks(ids, 1, size=10, bos=1)[0].ids == [1, *ids[1:10]]
    with pytest.raises(InputError, match="9 pieces of 10 tokens, 10 are asked for"):
        text_chunks(ids, 10, size=10)


def test_what_cannot_be_compared(draw: np.random.Generator) -> None:
    table = draw.normal(0, 1, (VOCABULARY, VOCABULARY))
    items = [ScoredSequence([1, 2, 3], np.array([0, 1]))] * 2
    broken = table.copy()
    broken[2, 4] = np.nan
    for model, given, error, says in (
        (table[:, :40], items, InputError, "one knows 40 tokens, the reference 50"),
        (table, items[:1], InputError, "1 sequences tell no error"),
        (broken, items, ProofError, "no numbers"),
    ):
        with pytest.raises(error, match=says):
            compare_fidelity(Bigrams(table), [Bigrams(model)], given)  # type: ignore[list-item, arg-type]
