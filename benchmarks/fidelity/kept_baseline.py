"""A reference model on given sequences -> a file of its next-token distributions, and back.

    save(Path("f16.logprobs"), f16, sequences)         # 1 to 2 KB per token
    baseline = KeptBaseline(Path("f16.logprobs"), sequences)
    compare_fidelity(baseline, [model], sequences)     # f16 is not needed any more

For each scored token the file holds the `TOP_TOKENS` likeliest tokens with their log-probabilities, and
that of the true token. All other tokens are merged into one cell, so the divergence computed on these
cells is at most the true one (data processing inequality; T. Cover and J. Thomas, Elements of Information
Theory, 2.8). The tail is so small that the difference hardly matters: figures are in
`tests/benchmarks/fidelity/test_kept_baseline.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import files
from edgeft.benchmarks.fidelity import compare
from edgeft.benchmarks.fidelity.compare import Floats, Logits, ScoredSequence, log_softmax
from edgeft.errors import InputError, ResourceError
from edgeft.progress import Progress
from edgeft.runtimes.protocol import Runtime

TOP_TOKENS = 256
"""likeliest tokens that are stored for each position"""
SCHEMA = 1
SUFFIX = ".logprobs"


def save(
    path: Path, reference: Runtime, sequences: Sequence[ScoredSequence], name: str = ""
) -> None:
    """Write one safetensors file; `name` is that of the reference.

    ResourceError where the file cannot be written.
    """
    from safetensors.numpy import save as file_bytes

    id_type: Any = np.uint16 if reference.vocab_size <= 1 << 16 else np.uint32
    count = min(TOP_TOKENS, reference.vocab_size)
    ids: list[npt.NDArray[Any]] = []
    likely: list[npt.NDArray[np.float32]] = []
    true: list[npt.NDArray[np.float32]] = []
    with Progress("keeping the baseline", len(sequences)) as bar:
        for item in sequences:
            rows = log_softmax(compare.logits_of(reference, item))
            top = np.argpartition(-rows, count - 1, axis=1)[:, :count]
            order = np.argsort(-np.take_along_axis(rows, top, 1), axis=1, kind="stable")
            top = np.take_along_axis(top, order, 1)
            ids.append(top.astype(id_type))
            likely.append(np.take_along_axis(rows, top, 1).astype(np.float32))
            true.append(rows[np.arange(len(rows)), item.next_ids].astype(np.float32))
            bar.update(1)
    tensors = {"ids": np.concatenate(ids), "likely": np.concatenate(likely),
               "true": np.concatenate(true)}  # fmt: skip
    header = {
        "schema": SCHEMA, "vocabulary": reference.vocab_size, "name": name,
        "sequences": fingerprint(sequences),
    }  # fmt: skip
    with files.whole_file(path) as part:
        try:  # safetensors' own writer leaves a temporary file where the process is killed
            part.write_bytes(file_bytes(tensors, {"edgeft": json.dumps(header)}))
        except OSError as error:
            raise ResourceError(
                f"cannot write {path}: {error}", "another --save-baseline"
            ) from None


class KeptBaseline:
    """A saved file as the reference of `edgeft.benchmarks.fidelity.compare.compare_fidelity`."""

    def __init__(self, path: Path, sequences: Sequence[ScoredSequence]) -> None:
        """InputError for another kind of file, and for one that was made from other sequences."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                header = json.loads((file.metadata() or {})["edgeft"])
                tensors = {key: file.get_tensor(key) for key in ("ids", "likely", "true")}
            self.vocab_size, self.name = int(header["vocabulary"]), str(header["name"])
            same = (header["schema"], header["sequences"]) == (SCHEMA, fingerprint(sequences))
            _check(tensors, self.vocab_size)
        except FileNotFoundError:
            raise InputError(f"no such file: {path}", "check --baseline") from None
        except (
            SafetensorError,
            OSError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{path} is no kept baseline: {reason}", "--save-baseline FILE makes one"
            ) from None
        ends = np.cumsum([len(item.rows) for item in sequences])
        if not same or len(tensors["ids"]) != ends[-1]:
            raise InputError(
                f"{path} was made of other texts", "the same --text, --chats and --chunks"
            )
        self._parts = {
            id(item): {key: array[end - len(item.rows) : end] for key, array in tensors.items()}
            for item, end in zip(sequences, ends, strict=True)
        }

    def score(self, item: ScoredSequence) -> KeptScores:
        """`item` is one of the sequences that the object was made with."""
        return KeptScores(**self._parts[id(item)])


class KeptScores:
    """The saved part of one sequence, as `edgeft.benchmarks.fidelity.compare.ReferenceScores`."""

    def __init__(
        self, ids: npt.NDArray[Any], likely: npt.NDArray[np.float32], true: npt.NDArray[np.float32]
    ) -> None:
        """ids and their log-probabilities (rows, TOP_TOKENS), of the true tokens (rows,)."""
        self._ids, self._likely = ids.astype(np.int64), likely.astype(np.float64)
        self.top: npt.NDArray[np.int64] = self._ids[:, 0]
        self.nll: Floats = -true.astype(np.float64)

    def divergence(self, logits: Logits) -> Floats:
        """Over the stored tokens and one cell for all others, nats."""
        others = np.take_along_axis(log_softmax(logits), self._ids, 1)
        shares = np.exp(self._likely)
        kl: Floats = (shares * (self._likely - others)).sum(axis=1)
        rest, other_rest = (
            np.clip(1 - np.exp(log_shares).sum(axis=1), 1e-12, 1)
            for log_shares in (self._likely, others)
        )
        kl += rest * (np.log(rest) - np.log(other_rest))
        return kl


def _check(tensors: dict[str, npt.NDArray[Any]], vocabulary: int) -> None:
    """ValueError for arrays that `save` does not write."""
    ids, likely, true = tensors["ids"], tensors["likely"], tensors["true"]
    if not (ids.ndim == 2 and ids.shape == likely.shape and true.shape == ids.shape[:1]):
        raise ValueError(f"arrays of the shapes {ids.shape}, {likely.shape} and {true.shape}")
    if ids.dtype not in (np.uint16, np.uint32) or {likely.dtype, true.dtype} != {
        np.dtype(np.float32)
    }:
        raise ValueError(f"arrays of {ids.dtype}, {likely.dtype} and {true.dtype}")
    if not ids.size or ids.max() >= vocabulary:
        raise ValueError(f"token ids beyond the vocabulary of {vocabulary}")
    if np.isnan(likely).any() or np.isnan(true).any():
        raise ValueError("log-probabilities that are not finite")


def fingerprint(sequences: Sequence[ScoredSequence]) -> str:
    """sha256 of the ids and the scored rows of all sequences."""
    whole = hashlib.sha256()
    for item in sequences:
        for numbers in (item.ids, item.rows):
            array = np.asarray(numbers, np.int64)
            whole.update(len(array).to_bytes(8, "little") + array.tobytes())
    return whole.hexdigest()
