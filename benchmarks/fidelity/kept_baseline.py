"""A reference's next-token distributions on given sequences, small enough to keep.

    save(Path("f16.logprobs"), f16, sequences)         # 1 to 2 KB per token instead of 2 bytes per word
    stored = Stored(Path("f16.logprobs"), sequences)
    fidelity.compare(stored, [model], sequences)       # f16 is not needed any more

Of each token the `KEPT` likeliest with their log-probabilities, and that of the true token. All others
together are one more cell, so that the divergence found on these cells is at most the true one (data
processing inequality; T. Cover and J. Thomas, Elements of Information Theory, 2.8), of which a tail that
small leaves nearly nothing: `tests/benchmarks/test_baseline.py` has figures.
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
from edgeft.benchmarks.fidelity.compare import Floats, Logits, Measured, log_softmax
from edgeft.errors import InputError, ResourceError
from edgeft.progress import Progress
from edgeft.runtimes.protocol import Runtime

KEPT = 256
SCHEMA = 1
SUFFIX = ".logprobs"


def save(path: Path, reference: Runtime, sequences: Sequence[Measured], name: str = "") -> None:
    """One safetensors file; `name` says whose they are."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    narrow: Any = np.uint16 if reference.vocab_size <= 1 << 16 else np.uint32
    kept = min(KEPT, reference.vocab_size)
    ids: list[npt.NDArray[Any]] = []
    likely: list[npt.NDArray[np.float32]] = []
    true: list[npt.NDArray[np.float32]] = []
    with Progress("keeping the baseline", len(sequences)) as bar:
        for item in sequences:
            rows = log_softmax(compare.logits_of(reference, item))
            top = np.argpartition(-rows, kept - 1, axis=1)[:, :kept]
            order = np.argsort(-np.take_along_axis(rows, top, 1), axis=1, kind="stable")
            top = np.take_along_axis(top, order, 1)
            ids.append(top.astype(narrow))
            likely.append(np.take_along_axis(rows, top, 1).astype(np.float32))
            true.append(rows[np.arange(len(rows)), item.next_ids].astype(np.float32))
            bar.update(1)
    tensors = {"ids": np.concatenate(ids), "likely": np.concatenate(likely),
               "true": np.concatenate(true)}  # fmt: skip
    told = {
        "schema": SCHEMA, "vocabulary": reference.vocab_size, "name": name,
        "sequences": fingerprint(sequences),
    }  # fmt: skip
    with files.whole_file(path) as part:
        try:
            save_file(tensors, part, {"edgeft": json.dumps(told)})
        except SafetensorError as error:
            raise ResourceError(
                f"cannot write {path}: {error}", "another --save-baseline"
            ) from None


class Stored:
    """What `save` kept, as the reference of `edgeft.benchmarks.fidelity.compare.compare`."""

    def __init__(self, path: Path, sequences: Sequence[Measured]) -> None:
        """InputError for another kind of file, and where it was made of other sequences."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                told = json.loads((file.metadata() or {})["edgeft"])
                tensors = {key: file.get_tensor(key) for key in ("ids", "likely", "true")}
            self.vocab_size, self.name = int(told["vocabulary"]), str(told["name"])
            same = (told["schema"], told["sequences"]) == (SCHEMA, fingerprint(sequences))
        except FileNotFoundError:
            raise InputError(f"no such file: {path}", "check --baseline") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
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

    def told(self, item: Measured) -> Cells:
        return Cells(**self._parts[id(item)])


class Cells:
    """One sequence of it, as `edgeft.benchmarks.fidelity.compare.Told`."""

    def __init__(
        self, ids: npt.NDArray[Any], likely: npt.NDArray[np.float32], true: npt.NDArray[np.float32]
    ) -> None:
        self._ids, self._likely = ids.astype(np.int64), likely.astype(np.float64)
        self.top: npt.NDArray[np.int64] = self._ids[:, 0]
        self.nll: Floats = -true.astype(np.float64)

    def divergence(self, got: Logits) -> Floats:
        """Of all cells, nats."""
        its = np.take_along_axis(log_softmax(got), self._ids, 1)
        shares = np.exp(self._likely)
        found: Floats = (shares * (self._likely - its)).sum(axis=1)
        rest, its_rest = (np.clip(1 - np.exp(one).sum(axis=1), 1e-12, 1)
                          for one in (self._likely, its))  # fmt: skip
        found += rest * (np.log(rest) - np.log(its_rest))
        return found


def fingerprint(sequences: Sequence[Measured]) -> str:
    """sha256 of the ids and of which of them count."""
    whole = hashlib.sha256()
    for item in sequences:
        for numbers in (item.ids, item.rows):
            array = np.asarray(numbers, np.int64)
            whole.update(len(array).to_bytes(8, "little") + array.tobytes())
    return whole.hexdigest()
