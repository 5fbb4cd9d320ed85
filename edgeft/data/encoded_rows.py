"""Token ids and labels of many examples, 5 bytes a token, read one example at a time.

rows = EncodedRows()
rows.append(Encoded([5, 6, 7], [IGNORED, 6, 7]))
rows[0].labels      # [-100, 6, 7]

As lists of Python's numbers half a million short examples take 1.5 GB.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

IGNORED = -100
"""label of a token that is not learned, as in torch's cross-entropy"""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids."""

    ids: list[int]
    labels: list[int]
    """the id itself where it is learned, else IGNORED; not shifted"""


Row_co = TypeVar("Row_co", bound=Encoded, covariant=True)


class LazyRows(Sequence[Row_co]):
    """Rows that are put together when they are read."""

    @abstractmethod
    def row(self, number: int) -> Row_co:
        """The row of a number from 0 to the length - 1."""

    @overload
    def __getitem__(self, index: int) -> Row_co: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row_co]: ...
    def __getitem__(self, index: int | slice) -> Row_co | list[Row_co]:
        numbers = range(len(self))[index]
        return self.row(numbers) if isinstance(numbers, int) else [self.row(n) for n in numbers]


class EncodedRows(LazyRows[Encoded]):
    """A list of `Encoded` that only grows."""

    def __init__(self, rows: Iterable[Encoded] = ()) -> None:
        self._ids, self._learned, self._ends = array("i"), bytearray(), array("q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Encoded) -> None:
        """Add one example."""
        self._ids.extend(row.ids)
        self._learned.extend(label != IGNORED for label in row.labels)
        self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def row(self, number: int) -> Encoded:
        part = slice(self._ends[number], self._ends[number + 1])
        ids = self._ids[part].tolist()
        learned = self._learned[part]
        return Encoded(
            ids, [id if known else IGNORED for id, known in zip(ids, learned, strict=True)]
        )


class EncodedVerdicts(EncodedRows):
    """A list of `Encoded` with a label of each, whether its answer is good."""

    def __init__(self) -> None:
        super().__init__()
        self.desirable: list[bool] = []


class EncodedPrompts(EncodedRows):
    """A list of `Encoded` prompts, nothing of them learned, with their texts and reference answers."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.answers: list[str] = []


class EncodedPairs(Sequence[tuple[Encoded, Encoded]]):
    """A list of preference pairs, (better, worse), that only grows."""

    def __init__(self) -> None:
        self.chosen, self.rejected = EncodedRows(), EncodedRows()

    def append(self, pair: tuple[Encoded, Encoded]) -> None:
        """Add one pair."""
        self.chosen.append(pair[0])
        self.rejected.append(pair[1])

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> tuple[Encoded, Encoded]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Encoded, Encoded]]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(zip(self.chosen[index], self.rejected[index], strict=True))
        return self.chosen[index], self.rejected[index]


def lengths(rows: Sequence[Encoded]) -> list[int]:
    """Tokens of each example."""
    if isinstance(rows, EncodedRows):
        return [rows._ends[i + 1] - rows._ends[i] for i in range(len(rows))]
    return [len(row.ids) for row in rows]
