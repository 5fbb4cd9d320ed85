"""A reference, models and token sequences -> how far each model's next-token distributions are away.

    sequences = chat_answers(examples, chat, encode)          # the answers of the user's own chats
    sequences = text_chunks(f16.encode(text), chunks=40)      # plain text, cut as llama-perplexity does
    q4, q8 = compare_fidelity(f16, [q4_model, q8_model], sequences)
    q4.kl.value, q4.kl.error, paired_difference(q4, q8, "kl")

All models read one sequence before any reads the next, so the logits of only two models and one sequence
are in memory. The reference is a model, or a file that `edgeft.benchmarks.fidelity.kept_baseline` saved.
Tokens of one sequence are not independent. Standard errors are therefore the jackknife's over the
sequences, and those of a difference between two models pair the models by sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from edgeft.benchmarks.fidelity.llama_perplexity import TokenScores, statistics
from edgeft.data.encoded_rows import IGNORED, Encoded
from edgeft.data.encoding import encode
from edgeft.errors import InputError, ProofError
from edgeft.progress import Progress
from edgeft.records import Example
from edgeft.runtimes.protocol import Runtime
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

CHUNK_TOKENS = 512
"""tokens of a piece of plain text, llama-perplexity's default"""
BLOCK_LOGITS = 1 << 18
"""logits that are computed on at once; a block should stay in the processor's cache"""

Figure = Literal["kl", "top1", "log_ppl_ratio"]
JSON_KEYS = {"log_ppl_ratio": "surprise"}
"""fields of Fidelity that have another name in report.json, schema 1"""


@dataclass(frozen=True)
class ScoredSequence:
    """Token ids, and which of them are scored."""

    ids: Sequence[int]
    rows: Integers
    """ascending rows of the logits to score; row i predicts token i + 1"""

    @property
    def next_ids(self) -> Integers:
        """The true token of each scored row."""
        return np.asarray(self.ids, np.int64)[self.rows + 1]


@dataclass(frozen=True)
class Estimate:
    value: float
    error: float
    """standard error over the sequences"""


@dataclass(frozen=True)
class Fidelity:
    """One model compared with the reference."""

    tokens: int
    """scored tokens"""
    sequences: int
    kl: Estimate
    """Kullback-Leibler divergence of the model from the reference, nats per token"""
    top1: Estimate
    """share of the tokens for which both models have the same likeliest token"""
    log_ppl_ratio: Estimate
    """logarithm of the model's perplexity over the reference's, on the true tokens"""
    kl_p99: float
    """nats; 1 % of the tokens have a larger divergence"""
    perplexity: float
    """of the model on the true tokens"""
    sums: dict[str, Floats] = field(repr=False)
    """"tokens" and each figure summed over the tokens of a sequence, shape (sequences,)"""
    per_token: TokenScores | None = field(default=None, repr=False)
    bound: bool = False
    """whether `kl` is a lower bound, because the reference is a kept baseline"""

    @property
    def perplexity_ratio(self) -> float:
        return float(np.exp(self.log_ppl_ratio.value))

    def to_json(self) -> dict[str, Any]:
        """The object `fidelity` of report.json."""
        raw = asdict(self) | {"perplexity_ratio": self.perplexity_ratio}
        raw = {JSON_KEYS.get(key, key): value for key, value in raw.items()}
        del raw["sums"], raw["per_token"]
        if self.per_token:
            raw["llama_perplexity"] = statistics(self.per_token)
        return raw


class ReferenceScores(Protocol):
    """A reference on the scored rows of one sequence."""

    @property
    def top(self) -> Integers:
        """Likeliest token of each row, shape (rows,)."""

    @property
    def nll(self) -> Floats:
        """Negative log-likelihood of the true tokens, nats, shape (rows,)."""

    def divergence(self, logits: Logits) -> Floats:
        """Divergence of a model's `logits` (rows, vocabulary) from the reference, nats, shape (rows,)."""


class Reference(Protocol):
    """What models are compared with: a runtime (`LiveReference`), or a `KeptBaseline`."""

    vocab_size: int

    def score(self, item: ScoredSequence) -> ReferenceScores: ...


class LiveReference:
    """An open runtime as the reference."""

    def __init__(self, model: Runtime) -> None:
        self._model, self.vocab_size = model, model.vocab_size

    def score(self, item: ScoredSequence) -> ReferenceScores:
        return _LiveScores(logits_of(self._model, item), item)


class _LiveScores:
    def __init__(self, logits: Logits, item: ScoredSequence) -> None:
        self._logits = logits
        self.top = logits.argmax(1)
        self.nll = -log_likelihood(logits, item.next_ids)

    def divergence(self, logits: Logits) -> Floats:
        return divergence(self._logits, logits)


def chat_answers(
    examples: Sequence[Example], chat: ChatTemplate, tokens: Encode, longest: int = 4096
) -> list[ScoredSequence]:
    """Score the answers of conversations, stop tokens included.

    Conversations of more than `longest` tokens are left out.
    """
    encoded = [encode(example, chat, tokens) for example in examples]
    return [answer_sequence(item) for item in encoded if len(item.ids) <= longest]


def answer_sequence(encoded: Encoded) -> ScoredSequence:
    """Score only the tokens that training learns: the answers."""
    return ScoredSequence(encoded.ids, np.flatnonzero(np.array(encoded.labels[1:]) != IGNORED))


def text_chunks(
    ids: Sequence[int], chunks: int, size: int = CHUNK_TOKENS, bos: int | None = None
) -> list[ScoredSequence]:
    """`chunks` pieces of `size` tokens, spread evenly over a text; their second halves are scored.

    llama-perplexity scores the same half: every scored token has at least `size` / 2 tokens before
    it, as in real use, and the figures can be compared with that tool's. `bos` replaces the first
    token of each piece, for models that expect one. InputError where the text is too short.
    """
    available = len(ids) // size
    if chunks > available:
        problem = f"the text has {available} pieces of {size} tokens, {chunks} are asked for"
        raise InputError(problem, "a longer text, or fewer of them")
    rows = np.arange(size // 2, size - 1)
    starts = [i * available // chunks * size for i in range(chunks)]
    lead = [] if bos is None else [bos]
    return [ScoredSequence([*lead, *ids[at + len(lead) : at + size]], rows) for at in starts]


def file_chunks(
    path: Path, model: Runtime, chunks: int, size: int = CHUNK_TOKENS
) -> list[ScoredSequence]:
    """`text_chunks` of a UTF-8 file, with the bos if the model's vocabulary adds one."""
    try:
        ids = model.encode(path.read_bytes().decode("utf-8"))  # bytes: text mode changes line ends
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"cannot read {path}: {reason}", "plain text in UTF-8") from None
    if not getattr(model, "adds_bos", False):
        return text_chunks(ids, chunks, size)
    bos = model.encode(model.chat.bos_token)[0]
    return text_chunks([bos, *ids], chunks, size, bos)


def compare_fidelity(
    reference: Runtime | Reference,
    models: Sequence[Runtime],
    sequences: Sequence[ScoredSequence],
    title: str = "fidelity",
) -> list[Fidelity]:
    """Compare each model with the reference on the same ids; `title` is shown as progress.

    InputError where the vocabularies have different sizes or fewer than two sequences are scored,
    ProofError where a model's logits are not finite.
    """
    is_kept = hasattr(reference, "score")
    scorer: Reference = reference if is_kept else LiveReference(reference)  # type: ignore[assignment, arg-type]
    for model in models:
        if model.vocab_size != reference.vocab_size:
            sizes = f"{model.vocab_size} tokens, the reference {reference.vocab_size}"
            raise InputError(f"the models cannot be compared: one knows {sizes}")
    sequences = [item for item in sequences if len(item.rows)]
    if len(sequences) < 2:
        raise InputError(f"{len(sequences)} sequences tell no error", "give more text or chats")
    figures: list[list[dict[str, Floats]]] = [[] for _ in models]
    total = sum(len(item.ids) for item in sequences) * (1 + len(models))
    with Progress(title, total) as bar:
        for item in sequences:
            expected = scorer.score(item)
            bar.update(len(item.ids), units=len(item.ids))
            for model, of_model in zip(models, figures, strict=True):
                of_model.append(_compare_sequence(expected, logits_of(model, item), item))
                bar.update(len(item.ids), units=len(item.ids))
    return [_summary(of_model, is_kept) for of_model in figures]


def _compare_sequence(
    expected: ReferenceScores, logits: Logits, item: ScoredSequence
) -> dict[str, Floats]:
    """Each figure per scored token, shape (rows,)."""
    nll = -log_likelihood(logits, item.next_ids)
    return {
        "kl": expected.divergence(logits),
        "top1": (expected.top == logits.argmax(1)).astype(np.float64),
        "log_ppl_ratio": nll - expected.nll,
        "nll": nll,
    }


def logits_of(model: Runtime, item: ScoredSequence) -> Logits:
    """Logits of the scored rows, shape (rows, vocabulary)."""
    first = int(item.rows[0])
    ids = item.ids[: int(item.rows[-1]) + 1]
    logits: Logits = model.logits(ids, last=len(ids) - first)
    return logits if len(logits) == len(item.rows) else logits[item.rows - first]


def _summary(sequences: Sequence[dict[str, Floats]], is_kept: bool) -> Fidelity:
    kl, nll, log_ratio, same = (
        np.concatenate([figures[name] for figures in sequences])
        for name in ("kl", "nll", "log_ppl_ratio", "top1")
    )
    if not np.isfinite(kl).all():
        raise ProofError("a model computes logits that are no numbers")
    sums = {name: np.array([figures[name].sum() for figures in sequences]) for name in sequences[0]}
    sums["tokens"] = np.array([len(figures["kl"]) for figures in sequences], np.float64)
    return Fidelity(
        tokens=len(kl),
        sequences=len(sequences),
        **{name: _ratio_estimate(sums[name], sums["tokens"]) for name in get_args(Figure)},
        kl_p99=float(np.quantile(kl, 0.99)),
        perplexity=float(np.exp(sums["nll"].sum() / len(kl))),
        sums=sums,
        per_token=TokenScores(kl, nll, nll - log_ratio, same),
        bound=is_kept,
    )


def paired_difference(model: Fidelity, other: Fidelity, figure: Figure) -> Estimate:
    """`figure` of a model minus that of another, paired by sequence."""
    _check_same(model, other)
    return _ratio_estimate(model.sums[figure] - other.sums[figure], model.sums["tokens"])


def kl_ratio(model: Fidelity, other: Fidelity) -> Estimate:
    """Divergence of a model over that of another, paired by sequence."""
    _check_same(model, other)
    return _ratio_estimate(model.sums["kl"], other.sums["kl"])


def _check_same(model: Fidelity, other: Fidelity) -> None:
    if not np.array_equal(model.sums["tokens"], other.sums["tokens"]):
        raise InputError("the two models were not compared on the same sequences")


def _ratio_estimate(numerators: Floats, denominators: Floats) -> Estimate:
    value, error = ratio(list(zip(numerators.tolist(), denominators.tolist(), strict=True)))
    return Estimate(float("nan") if value is None else value, error)


def ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float]:
    """(sum of the first over sum of the second, jackknife standard error); (None, 0) for a sum of 0."""
    top, bottom = np.array(pairs).sum(axis=0)
    if bottom == 0:
        return None, 0.0
    left_out = np.array([(top - a) / (bottom - b) for a, b in pairs if b < bottom])
    spread = ((left_out - left_out.mean()) ** 2).sum() if len(left_out) else 0.0
    error = np.sqrt(spread * (len(left_out) - 1) / max(len(left_out), 1))
    return float(top / bottom), float(error)


def divergence(p: Logits | Floats, q: Logits | Floats) -> Floats:
    """Kullback-Leibler divergence of q from p per row of logits (rows, vocabulary), nats.

    For float32 logits the error is about 1e-6, at 40 times the speed of whole arrays in double
    precision; for float64 logits the result is exact.
    """

    def of_rows(p: Any, q: Any) -> Floats:
        p, q = _shifted(p), _shifted(q)
        weights = np.exp(p)
        p -= q
        p *= weights
        size = weights.sum(axis=1).astype(np.float64)
        kl: Floats = p.sum(axis=1) / size + np.log(np.exp(q, out=q).sum(axis=1) / size)
        return kl

    return _blocks(of_rows, p, q)


def log_likelihood(rows: Logits, ids: Integers) -> Floats:
    """Log-probability of one token id per row of logits, nats."""

    def of_rows(rows: Logits, ids: Integers) -> Floats:
        rows = _shifted(rows)
        chosen = rows[np.arange(len(rows)), ids].astype(np.float64)
        result: Floats = chosen - np.log(np.exp(rows, out=rows).sum(axis=1).astype(np.float64))
        return result

    return _blocks(of_rows, rows, ids)


def log_softmax(rows: Logits) -> Floats:
    """Per row, in double precision: four times the memory of the logits."""
    whole = rows.astype(np.float64)
    whole -= whole.max(axis=1, keepdims=True)
    whole -= np.log(np.exp(whole).sum(axis=1, keepdims=True))
    return whole


def _blocks(
    function: Callable[..., Floats], rows: Logits | Floats, *others: npt.NDArray[Any]
) -> Floats:
    """Call `function` with a few rows of all arrays at a time and join the results."""
    step = max(1, BLOCK_LOGITS // rows.shape[1])

    def parts() -> Iterator[Floats]:
        for at in range(0, len(rows), step):
            yield function(*(array[at : at + step] for array in (rows, *others)))

    return np.concatenate([np.zeros(0), *parts()])


def _shifted(rows: Logits) -> Logits:
    """A copy whose largest logit per row is 0."""
    shifted: Logits = rows - rows.max(axis=1, keepdims=True)
    return shifted
