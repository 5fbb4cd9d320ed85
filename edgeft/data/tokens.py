"""Rows -> their lengths in tokens of a base, and what its chat template makes of them.

Rendering takes a millisecond, and half a million rows would take an hour. So the first rows are rendered,
and the first ones of every further order of roles; of the others the tokens of the texts are counted, and
for the template's own as many for each turn as the rendered rows had at most.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from pathlib import Path

from edgeft.data.encoded_rows import IGNORED
from edgeft.data.encoding import encode
from edgeft.data.items import Item
from edgeft.data.preview import marked, shortened
from edgeft.data.row_faults import excerpt
from edgeft.data.set_faults import Hits
from edgeft.errors import InputError
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.tokenizer.learned_parts import spans

RENDERED_ROWS = 2000
RENDERED_PER_ORDER = 20
"""rows that are rendered of each further order of roles"""
MAX_ORDERS = 1000


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows."""

    median: int
    p95: int
    longest: int
    total: int
    learned: float
    """share of the tokens that are learned, of the rendered rows"""
    rendered: int
    """rows that were rendered; those of the others are at most the template's own tokens off"""


class TokenCounter:
    """Counts tokens row by row."""

    def __init__(self, base: Path, cutoff: int) -> None:
        self.cutoff = cutoff
        self.too_long, self.refused, self.without_stop = Hits(), Hits(), Hits()
        self.rendered = ""
        """the first row, with the learned part marked"""
        self._chat, self._tokenize = ChatTemplate.from_folder(base), encoder(base)
        self._lengths: collections.Counter[int] = collections.Counter()
        self._orders: collections.Counter[str] = collections.Counter()
        self._rendered = self._tokens = self._learned = 0
        self._per_turn = 0.0

    def add(self, item: Item) -> None:
        """Count a row that is not bad."""
        example, place = item.example, (item.file, item.line)
        assert example is not None
        order = " ".join(
            f"{m.role}{bool(m.tool_calls)}{bool(m.reasoning)}" for m in example.messages
        )
        order += f" {bool(example.tools)}"
        self._orders[order if len(self._orders) < MAX_ORDERS else ""] += 1
        if self._rendered < RENDERED_ROWS or self._orders[order] <= RENDERED_PER_ORDER:
            try:
                length = self._render(example, item)
            except InputError as error:
                self.refused.add(place, error.message)
                return
        else:
            length = self._texts(example) + round(self._per_turn * len(example.messages))
        self._lengths[length] += 1
        if length > self.cutoff:
            self.too_long.add(place, f"{length} tokens")

    def _render(self, example: Example, item: Item) -> int:
        encoded = encode(example, self._chat, self._tokenize)
        length = len(encoded.ids)
        self._rendered += 1
        self._tokens += length
        self._learned += sum(label != IGNORED for label in encoded.labels)
        own = (length - self._texts(example)) / len(example.messages)
        self._per_turn = max(self._per_turn, own)
        if not self.rendered:
            self.rendered = shortened(marked(example, self._chat))
        learned = [text for text, is_learned in spans(self._chat, example.messages, example.tools)
                   if is_learned]  # fmt: skip
        if learned and not learned[-1].rstrip().endswith(tuple(self._chat.stops)):
            self.without_stop.add((item.file, item.line), "… " + excerpt(learned[-1][-60:]))
        return length

    def _texts(self, example: Example) -> int:
        return sum(len(self._tokenize(m.content)) for m in example.messages if m.content)

    def lengths(self) -> Lengths | None:
        """None where no row could be rendered."""
        ordered = sorted(self._lengths.items())
        rows = sum(self._lengths.values())
        if not rows:
            return None
        return Lengths(
            median=_at(ordered, 0.5 * rows),
            p95=_at(ordered, 0.95 * rows),
            longest=ordered[-1][0],
            total=sum(length * count for length, count in ordered),
            learned=self._learned / self._tokens,
            rendered=self._rendered,
        )


def _at(ordered: list[tuple[int, int]], place: float) -> int:
    """The length at a place of the sorted rows."""
    before = 0
    for length, count in ordered:
        before += count
        if before >= place:
            return length
    return ordered[-1][0]
