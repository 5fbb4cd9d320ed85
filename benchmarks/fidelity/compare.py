"""How far a model's next-token distribution is from another's on given token sequences.

    sequences = chat_answers(examples, chat, encode)          # the answers of the user's own chats
    sequences = text_chunks(f16.encode(text), chunks=40)      # plain text, as llama-perplexity cuts
    q4, q8 = compare(f16, [q4_model, q8_model], sequences)
    q4.kl.value, q4.kl.error, apart(q4, q8, "kl")

All models read one sequence after the other, so that only two models' logits of one sequence are in
memory. The reference may be a model, or what `edgeft.benchmarks.fidelity.kept_baseline` kept of one. Tokens of one sequence depend on each other; standard errors are
therefore the jackknife's over the sequences, and those of a difference between two models pair
them by sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from edgeft.benchmarks.fidelity.llama_perplexity import Tokens, statistics
from edgeft.data.encoding import IGNORED, Encoded, encode
from edgeft.errors import InputError, ProofError
from edgeft.progress import Progress
from edgeft.records import Example
from edgeft.runtimes.protocol import Runtime
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

CHUNK = 512
"""tokens of a piece of plain text, llama-perplexity's default"""
BLOCK = 1 << 18
"""logits that are looked at together; a block should stay in the processor's cache"""

Figure = Literal["kl", "top1", "surprise"]


@dataclass(frozen=True)
class Measured:
    """Token ids, and which of them count."""

    ids: Sequence[int]
    rows: Integers
    """row i of the logits predicts token i + 1; ascending"""

    @property
    def next_ids(self) -> Integers:
        return np.asarray(self.ids, np.int64)[self.rows + 1]


@dataclass(frozen=True)
class Estimate:
    value: float
    error: float
    """standard error over the sequences"""


@dataclass(frozen=True)
class Fidelity:
    """One model against the reference."""

    tokens: int
    """that counted"""
    sequences: int
    kl: Estimate
    """Kullback-Leibler divergence of the model from the reference, nats per token"""
    top1: Estimate
    """share of the tokens for which both choose the same"""
    surprise: Estimate
    """log of the ratio of the perplexities on the true tokens, the model's over the reference's"""
    kl_p99: float
    """nats; one token in a hundred is further off"""
    perplexity: float
    """of the model on the true tokens"""
    sums: dict[str, Floats] = field(repr=False)
    """per sequence: tokens, and of each figure the sum over them"""
    each: Tokens | None = field(default=None, repr=False)
    """of each token"""
    bound: bool = False
    """whether `kl` is of a kept baseline, and so at most the true one"""

    @property
    def perplexity_ratio(self) -> float:
        return float(np.exp(self.surprise.value))

    def to_json(self) -> dict[str, Any]:
        raw = asdict(self) | {"perplexity_ratio": self.perplexity_ratio}
        del raw["sums"], raw["each"]
        if self.each:
            raw["llama_perplexity"] = statistics(self.each)
        return raw


class Told(Protocol):
    """What a reference says of one sequence."""

    @property
    def top(self) -> Integers:
        """The likeliest token of each row that counts."""

    @property
    def nll(self) -> Floats:
        """Of the true tokens, nats."""

    def divergence(self, got: Logits) -> Floats:
        """Of a model's logits of the same rows from the reference's, nats."""


class Reference(Protocol):
    """A model, as `Live` has it, or what was kept of one (`edgeft.benchmarks.fidelity.kept_baseline`)."""

    vocab_size: int

    def told(self, item: Measured) -> Told: ...


class Live:
    """An open runtime as the reference."""

    def __init__(self, model: Runtime) -> None:
        self._model, self.vocab_size = model, model.vocab_size

    def told(self, item: Measured) -> Told:
        return _Rows(logits_of(self._model, item), item)


class _Rows:
    def __init__(self, rows: Logits, item: Measured) -> None:
        self._rows = rows
        self.top = rows.argmax(1)
        self.nll = -log_likelihood(rows, item.next_ids)

    def divergence(self, got: Logits) -> Floats:
        return divergence(self._rows, got)


def chat_answers(
    examples: Sequence[Example], chat: ChatTemplate, tokens: Encode, longest: int = 4096
) -> list[Measured]:
    """Of each conversation what the model has to answer, its stop token included; conversations of
    more than `longest` tokens are left out."""
    encoded = [encode(example, chat, tokens) for example in examples]
    return [answers(item) for item in encoded if len(item.ids) <= longest]


def answers(encoded: Encoded) -> Measured:
    """Only the tokens that training learns."""
    return Measured(encoded.ids, np.flatnonzero(np.array(encoded.labels[1:]) != IGNORED))


def text_chunks(
    ids: Sequence[int], chunks: int, size: int = CHUNK, bos: int | None = None
) -> list[Measured]:
    """Pieces of a text, spread evenly over it; of each the second half counts.

    That half is llama-perplexity's choice: every token that counts has at least `size` / 2 before
    it, as in use, and the figures can be compared with that tool's. `bos` takes the place of each
    first token, for models that expect one.
    """
    there = len(ids) // size
    if chunks > there:
        problem = f"the text has {there} pieces of {size} tokens, {chunks} are asked for"
        raise InputError(problem, "a longer text, or fewer of them")
    rows = np.arange(size // 2, size - 1)
    starts = [i * there // chunks * size for i in range(chunks)]
    lead = [] if bos is None else [bos]
    return [Measured([*lead, *ids[at + len(lead) : at + size]], rows) for at in starts]


def file_chunks(path: Path, model: Runtime, chunks: int, size: int = CHUNK) -> list[Measured]:
    """`text_chunks` of a text file, with the bos where the model's vocabulary asks for one."""
    try:
        ids = model.encode(path.read_bytes().decode("utf-8"))  # line ends as they are
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"cannot read {path}: {reason}", "plain text in UTF-8") from None
    if not getattr(model, "adds_bos", False):
        return text_chunks(ids, chunks, size)
    bos = model.encode(model.chat.bos_token)[0]
    return text_chunks([bos, *ids], chunks, size, bos)


def compare(
    reference: Runtime | Reference,
    models: Sequence[Runtime],
    sequences: Sequence[Measured],
    title: str = "fidelity",
) -> list[Fidelity]:
    """Each model against the reference, on the same ids."""
    kept = hasattr(reference, "told")
    teller: Reference = reference if kept else Live(reference)  # type: ignore[assignment, arg-type]
    for model in models:
        if model.vocab_size != reference.vocab_size:
            sizes = f"{model.vocab_size} tokens, the reference {reference.vocab_size}"
            raise InputError(f"the models cannot be compared: one knows {sizes}")
    sequences = [item for item in sequences if len(item.rows)]
    if len(sequences) < 2:
        raise InputError(f"{len(sequences)} sequences tell no error", "give more text or chats")
    found: list[list[dict[str, Floats]]] = [[] for _ in models]
    total = sum(len(item.ids) for item in sequences) * (1 + len(models))
    with Progress(title, total) as bar:
        for item in sequences:
            wanted = teller.told(item)
            bar.update(len(item.ids), units=len(item.ids))
            for model, rows in zip(models, found, strict=True):
                got = logits_of(model, item)
                its_nll = -log_likelihood(got, item.next_ids)
                rows.append({
                    "kl": wanted.divergence(got),
                    "top1": (wanted.top == got.argmax(1)).astype(np.float64),
                    "surprise": its_nll - wanted.nll,
                    "nll": its_nll,
                })  # fmt: skip
                bar.update(len(item.ids), units=len(item.ids))
    return [_summary(rows, kept) for rows in found]


def logits_of(model: Runtime, item: Measured) -> Logits:
    """The rows that count."""
    first = int(item.rows[0])
    ids = item.ids[: int(item.rows[-1]) + 1]
    rows: Logits = model.logits(ids, last=len(ids) - first)
    return rows if len(rows) == len(item.rows) else rows[item.rows - first]


def _summary(rows: Sequence[dict[str, Floats]], kept: bool) -> Fidelity:
    kl, nll, surprise_each, same = (
        np.concatenate([row[name] for row in rows]) for name in ("kl", "nll", "surprise", "top1")
    )
    if not np.isfinite(kl).all():
        raise ProofError("a model computes logits that are no numbers")
    sums = {name: np.array([row[name].sum() for row in rows]) for name in rows[0]}
    sums["tokens"] = np.array([len(row["kl"]) for row in rows], np.float64)
    kl_mean, top1, surprise = (_over(sums[key], sums["tokens"]) for key in get_args(Figure))
    perplexity = float(np.exp(sums["nll"].sum() / len(kl)))
    p99 = float(np.quantile(kl, 0.99))
    each = Tokens(kl, nll, nll - surprise_each, same)
    return Fidelity(
        len(kl), len(rows), kl_mean, top1, surprise, p99, perplexity, sums, each, bound=kept
    )


def apart(model: Fidelity, other: Fidelity, figure: Figure) -> Estimate:
    """`figure` of a model minus that of another, compared on the same sequences."""
    _check_same(model, other)
    return _over(model.sums[figure] - other.sums[figure], model.sums["tokens"])


def kl_ratio(model: Fidelity, other: Fidelity) -> Estimate:
    """The divergence of a model over that of another, compared on the same sequences."""
    _check_same(model, other)
    return _over(model.sums["kl"], other.sums["kl"])


def _check_same(model: Fidelity, other: Fidelity) -> None:
    if not np.array_equal(model.sums["tokens"], other.sums["tokens"]):
        raise InputError("the two models were not compared on the same sequences")


def _over(above: Floats, below: Floats) -> Estimate:
    value, error = ratio(list(zip(above.tolist(), below.tolist(), strict=True)))
    return Estimate(float("nan") if value is None else value, error)


def ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float]:
    """(sum of the first over sum of the second, its jackknife standard error)."""
    along, size = np.array(pairs).sum(axis=0)
    if size == 0:
        return None, 0.0
    rest = np.array([(along - a) / (size - s) for a, s in pairs if s < size])
    spread = ((rest - rest.mean()) ** 2).sum() if len(rest) else 0.0
    return float(along / size), float(np.sqrt(spread * (len(rest) - 1) / max(len(rest), 1)))


def divergence(p: Logits | Floats, q: Logits | Floats) -> Floats:
    """Kullback-Leibler divergence of each row of logits, nats.

    To about 1e-6 of logits in float32, 40 times as fast as with whole arrays in double precision;
    exact of logits in float64.
    """

    def rows(p: Any, q: Any) -> Floats:
        p, q = _from_largest(p), _from_largest(q)
        weights = np.exp(p)
        p -= q
        p *= weights
        size = weights.sum(axis=1).astype(np.float64)
        apart: Floats = p.sum(axis=1) / size + np.log(np.exp(q, out=q).sum(axis=1) / size)
        return apart

    return _blocks(rows, p, q)


def log_likelihood(rows: Logits, ids: Integers) -> Floats:
    """Of one token per row of logits, nats."""

    def chosen(rows: Logits, ids: Integers) -> Floats:
        rows = _from_largest(rows)
        wanted = rows[np.arange(len(rows)), ids].astype(np.float64)
        found: Floats = wanted - np.log(np.exp(rows, out=rows).sum(axis=1).astype(np.float64))
        return found

    return _blocks(chosen, rows, ids)


def log_softmax(rows: Logits) -> Floats:
    """In double precision, so for some rows at a time."""
    whole = rows.astype(np.float64)
    whole -= whole.max(axis=1, keepdims=True)
    whole -= np.log(np.exp(whole).sum(axis=1, keepdims=True))
    return whole


def _blocks(
    function: Callable[..., Floats], rows: Logits | Floats, *others: npt.NDArray[Any]
) -> Floats:
    """`function` of a few rows of all arrays at a time, joined."""
    step = max(1, BLOCK // rows.shape[1])

    def parts() -> Iterator[Floats]:
        for at in range(0, len(rows), step):
            yield function(*(array[at : at + step] for array in (rows, *others)))

    return np.concatenate([np.zeros(0), *parts()])


def _from_largest(rows: Logits) -> Logits:
    """A copy with the largest logit of each row at 0."""
    shifted: Logits = rows - rows.max(axis=1, keepdims=True)
    return shifted
