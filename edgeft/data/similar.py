"""Rows -> exact and near duplicates within a file, and rows that another file has, too.

with Prints(near=True) as prints:
    prints.add(item) ...
    prints.duplicates(), prints.near_duplicates(0.8)

A row leaves a print of some 240 bytes in a temporary file, and some 60 bytes in memory while rows are compared.
Near duplicates are found by MinHash (Broder 1997): datasketch makes the signatures; rows that agree in one
of 9 bands of 7 values are compared by their whole signatures. A pair with a Jaccard similarity of 0.8 is
found with a probability of 0.88, one of 0.9 with 0.997.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import itertools
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np

from edgeft.data.items import Item
from edgeft.data.splits import fingerprint
from edgeft.errors import require

BANDS, BAND_SIZE = 9, 7
PERMUTATIONS = BANDS * BAND_SIZE
SHINGLE_WORDS = 3
MAX_WORDS = 3000
"""of a row that a signature sees"""
BUFFERED_ROWS = 4096
COMPARED_PAIRS = 65_536
"""pairs whose signatures are compared at once: 16 MB"""
PRINT = np.dtype([
    ("file", "u2"), ("line", "u4"),
    ("row", "u8"), ("prompt", "u8"), ("question", "u8"), ("answer", "u8"),
    ("bands", "u8", BANDS), ("signature", "u2", PERMUTATIONS),
])  # fmt: skip
MULTIPLIERS = np.random.default_rng(1).integers(2**63, 2**64, BAND_SIZE, np.uint64) | np.uint64(1)
"""odd numbers whose products with the values of a band add up to its key, modulo 2**64"""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
"""a word, or one character of a script without spaces"""

Pair = tuple[int, int]
"""(index of a row, index of the earlier or other row that it repeats)"""


def is_available() -> bool:
    """Whether datasketch is installed."""
    return importlib.util.find_spec("datasketch") is not None


def normalized(text: str) -> str:
    """A text without differences of case, white space and final marks."""
    return " ".join(text.casefold().split()).rstrip(".!?。！？ ")


def hash64(text: str) -> int:
    """The first 64 bits of a BLAKE2b hash."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@functools.cache
def _empty_signature() -> Any:
    minhash = require("datasketch", "data").MinHash
    return minhash(num_perm=PERMUTATIONS, seed=1, scheme="affine32", hashfunc=int)


def signature(text: str) -> Any:
    """The MinHash values of a text's runs of three words: `(PERMUTATIONS,)`, uint32."""
    words = WORD.findall(text.casefold())[:MAX_WORDS]
    codes = np.array([zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in words], np.uint64)
    runs = max(1, len(codes) - SHINGLE_WORDS + 1)
    mixed = np.zeros(runs, np.uint64)
    for i in range(min(SHINGLE_WORDS, len(codes))):
        mixed = (mixed * np.uint64(0x9E3779B1) + codes[i : i + runs]) & np.uint64(0xFFFFFFFF)
    minhash = _empty_signature().copy()
    minhash.update_batch(np.unique(mixed).tolist())
    return minhash.hashvalues


class Prints:
    """The prints of rows, in a temporary file. A context manager: the file is gone at its end."""

    def __init__(self, near: bool) -> None:
        """`near`: make MinHash signatures, too."""
        self.near = near
        self.files: list[Any] = []
        """the data files, which `file` of a print counts"""
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115  closed by __exit__
        self._buffer = np.zeros(BUFFERED_ROWS, PRINT)
        self._buffered = 0
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._written + self._buffered

    def add(self, item: Item) -> None:
        """The print of a row that is not bad."""
        assert item.example is not None
        if not self.files or self.files[-1] != item.file:
            self.files.append(item.file)
        row = self._buffer[self._buffered]
        row["file"], row["line"] = len(self.files) - 1, item.line
        verdict = "" if item.desirable is None else str(item.desirable)
        row["row"] = hash64(fingerprint([item.example]) + verdict + (item.rejected or ""))
        question = normalized(item.question)
        row["question"] = hash64(question)
        row["prompt"] = hash64(f"{item.system}\0{question}\0{item.example.tools}")
        row["answer"] = hash64(item.answer.strip())
        if self.near:
            values = signature(f"{item.question}\n{item.answer}\n{item.rejected or ''}")
            row["signature"] = values & 0xFFFF
            parts = values.astype(np.uint64).reshape(BANDS, BAND_SIZE)
            row["bands"] = (parts * MULTIPLIERS).sum(axis=1, dtype=np.uint64)
        self._buffered += 1
        if self._buffered == BUFFERED_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._file.write(self._buffer[: self._buffered].tobytes())
        self._written += self._buffered
        self._buffered = 0

    @property
    def rows(self) -> Any:
        """All prints as an array of `PRINT` that lies in the file; for a few rows of it."""
        self._flush()
        self._file.flush()
        if not self._written:
            return np.zeros(0, PRINT)
        return np.memmap(self._file, PRINT, mode="r", shape=(self._written,))

    def column(self, name: str, band: int | None = None) -> Any:
        """One value of every print, `(rows,)`. Read in parts: a mapped file would count as memory."""
        self._flush()
        self._file.seek(0)
        values = np.zeros(self._written, np.uint64)
        for start in range(0, self._written, BUFFERED_ROWS):
            size = min(BUFFERED_ROWS, self._written - start)
            part = np.frombuffer(self._file.read(size * PRINT.itemsize), PRINT)[name]
            values[start : start + size] = part if band is None else part[:, band]
        self._file.seek(0, io.SEEK_END)
        return values

    def place(self, index: int) -> tuple[Any, int]:
        """(file, line) of a row."""
        row = self.rows[index]
        return self.files[int(row["file"])], int(row["line"])

    def duplicates(self) -> list[Pair]:
        """Rows that an earlier row equals."""
        return list(_repeated(self.column("row")))

    def conflicts(self) -> list[Pair]:
        """Rows whose prompt an earlier row has, with another answer."""
        answers = self.column("answer")
        pairs = _repeated(self.column("prompt"))
        return [(i, first) for i, first in pairs if answers[i] != answers[first]]

    def near_duplicates(self, threshold: float) -> list[Pair]:
        """Rows that are similar to an earlier one. Those that equal it, or only ask the same, do not
        count."""
        rows = self.rows
        prompts = self.column("prompt")
        repeated = {i for i, _ in self.duplicates()}
        similar: dict[int, int] = {}
        for band in range(BANDS):
            candidates = ((i, first) for i, first in _repeated(self.column("bands", band))
                          if i not in similar and i not in repeated and prompts[i] != prompts[first])  # fmt: skip
            similar |= _confirmed(candidates, rows, rows, threshold)
        return sorted(similar.items())

    def shared_questions(self, other: Prints) -> list[Pair]:
        """Rows whose question `other` has, too: (index here, index there)."""
        return list(_common(self.column("question"), other.column("question")))

    def similar_rows(self, other: Prints, threshold: float) -> list[Pair]:
        """Rows that are similar to one of `other`: (index here, index there)."""
        similar: dict[int, int] = {}
        for band in range(BANDS):
            common = _common(self.column("bands", band), other.column("bands", band))
            candidates = (pair for pair in common if pair[0] not in similar)
            similar |= _confirmed(candidates, self.rows, other.rows, threshold)
        return sorted(similar.items())


def _repeated(keys: Any) -> Iterator[Pair]:
    """(index, first index with the same key), of every key but the first of its kind."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.append(starts, len(keys)))
    first = np.repeat(order[starts], sizes)
    again = order != first
    yield from zip(order[again].tolist(), first[again].tolist(), strict=True)


def _common(here: Any, there: Any) -> Iterator[Pair]:
    if not len(here) or not len(there):
        return
    order = np.argsort(there, kind="stable")
    places = np.searchsorted(there[order], here)
    places[places == len(there)] = 0
    other = order[places]
    equal = np.flatnonzero(there[other] == here)
    yield from zip(equal.tolist(), other[equal].tolist(), strict=True)


def _confirmed(pairs: Iterable[Pair], here: Any, there: Any, threshold: float) -> dict[int, int]:
    """Those of the pairs whose signatures agree in a share of at least `threshold`."""
    confirmed: dict[int, int] = {}
    pairs = iter(pairs)
    while part := list(itertools.islice(pairs, COMPARED_PAIRS)):
        one, other = (np.array(side) for side in zip(*part, strict=True))
        agreed = (here["signature"][one] == there["signature"][other]).mean(axis=1)
        confirmed |= {
            i: j for (i, j), share in zip(part, agreed, strict=True) if share >= threshold
        }
    return confirmed
