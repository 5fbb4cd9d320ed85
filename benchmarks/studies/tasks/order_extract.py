"""order_extract.toml and a random generator -> an order e-mail, and what it orders as one line of JSON."""

from __future__ import annotations

import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
INSTRUCTIONS = """\
Turn the order e-mail into one line of JSON. Output only the JSON, with keys in this order:
{"items":[{"name":"oak shelf","quantity":2},{"name":"red mug","quantity":6}],"address":"14 Mill Lane, Harwick",\
"date":"03-14","remarks":"ring twice"}
items: what is ordered now, in the order of the e-mail, each name in the singular; after a correction the corrected \
quantity. Not what was ordered earlier.
address: where it is delivered, not where the bill goes.
date, only if said: month-day of the delivery.
remarks, only if said: what the driver is asked to do, in the words of the e-mail.
"""
DATE_SHARE, REMARK_SHARE, CORRECTION_SHARE, OTHER_SHARE = 0.8, 0.5, 0.15, 0.4
"""of the e-mails that have one; `other` is a sentence that orders nothing"""


@dataclass(frozen=True)
class Item:
    """One line of an order."""

    singular: str
    plural: str
    quantity: int


class Wording:
    """Draws words and phrases: those that training has, and in a group of the test split also others."""

    def __init__(self, rng: random.Random, group: str) -> None:
        self.rng = rng
        self._new = {"new_words": 0.5 * (group == "new_words"), "new_phrases": 0.5 * (group == "new_phrases")}  # fmt: skip

    def word(self, key: str) -> Any:
        return self._choice(key, "new_words")

    def phrase(self, key: str) -> str:
        return str(self._choice(key, "new_phrases"))

    def _choice(self, key: str, group: str) -> Any:
        source = "new" if self.rng.random() < self._new[group] else "seen"
        return self.rng.choice(WORDS[source][key])


def draw(rng: random.Random, group: str) -> tuple[str, str, tuple[str, ...]]:
    """(e-mail, JSON, tags): `corrected` and `other` are tags of e-mails that have such a sentence."""
    wording = Wording(rng, group)
    items = _items(wording)
    address = _address(wording)
    date = (rng.randint(1, 12), rng.randint(1, 28)) if rng.random() < DATE_SHARE else None
    remark = wording.word("remark_texts") if rng.random() < REMARK_SHARE else None
    corrected, other = rng.random() < CORRECTION_SHARE, rng.random() < OTHER_SHARE

    parts = [_order(wording, items, corrected), *_delivery(wording, address, date)]
    if remark:
        parts.append(wording.phrase("remarks").format(remark=remark))
    if other:
        parts.insert(rng.randint(0, len(parts)), _other(wording))
    closing = wording.phrase("closings").format(name=rng.choice(WORDS["names"]))
    text = " ".join(part for part in (wording.phrase("greetings"), *parts, closing) if part)

    answer: dict[str, Any] = {
        "items": [{"name": item.singular, "quantity": item.quantity} for item in items],
        "address": address,
    }
    if date:
        answer["date"] = f"{date[0]:02}-{date[1]:02}"
    if remark:
        answer["remarks"] = remark
    tags = ("corrected",) * corrected + ("other",) * other
    return text, json.dumps(answer, separators=(",", ":")), tags


def _items(wording: Wording) -> list[Item]:
    """One to three items with names of their own."""
    items: dict[str, Item] = {}
    for _ in range(wording.rng.choice((1, 2, 2, 3))):
        material, (one, many) = wording.word("materials"), wording.word("things")
        items[one] = Item(f"{material} {one}", f"{material} {many}", wording.rng.randint(1, 12))
    return list(items.values())


def _address(wording: Wording) -> str:
    number, street = wording.rng.randint(1, 99), wording.word("streets")
    return f"{number} {street} {wording.rng.choice(WORDS['street_types'])}, {wording.word('towns')}"


def _order(wording: Wording, items: list[Item], corrected: bool) -> str:
    """The sentence that orders; a corrected order first says another quantity of its last item, and of no other."""
    amounts = [_amount(wording.rng, item, item.quantity) for item in items]
    correction = ""
    if corrected:
        last = items[-1]
        said = {item.quantity for item in items}
        first = wording.rng.choice([n for n in range(1, 13) if n not in said])
        amounts[-1] = _amount(wording.rng, last, first)
        many, few = ("one" if n == 1 else WORDS["numbers"][n - 1] for n in (last.quantity, first))
        correction = " " + wording.phrase("corrections").format(many=many, few=few)
    *head, tail = amounts
    listed = f"{', '.join(head)} and {tail}" if head else tail
    return wording.phrase("orders").format(items=listed) + correction


def _amount(rng: random.Random, item: Item, quantity: int) -> str:
    forms = [str(quantity), WORDS["numbers"][quantity - 1]]
    forms += [WORDS["groups"][str(quantity)]] if str(quantity) in WORDS["groups"] else []
    number = rng.choice(forms)
    if quantity > 1:
        return f"{number} {item.plural}"
    if number == "a" and item.singular[0] in "aeiou":
        number = "an"
    return f"{number} {item.singular}"


def _delivery(wording: Wording, address: str, date: tuple[int, int] | None) -> list[str]:
    """Where and when, in one sentence or in two."""
    if date is None:
        return [wording.phrase("addresses").format(address=address)]
    said = _date(wording, *date)
    if wording.rng.random() < 0.4:
        return [_capital(wording.phrase("both").format(address=address, date=said))]
    return [
        wording.phrase("addresses").format(address=address),
        _capital(wording.phrase("dates").format(date=said)),
    ]


def _date(wording: Wording, month: int, day: int) -> str:
    ending = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    name = WORDS["months"][month - 1]
    return wording.phrase("date_forms").format(
        d=day, m=month, month=name, mon=name[:3], nth=f"{day}{ending}",
        weekday=wording.rng.choice(WORDS["weekdays"]),
    )  # fmt: skip


def _other(wording: Wording) -> str:
    """A sentence about something else, with items, addresses or numbers that do not belong to the order."""
    return wording.phrase("others").format(
        items=" and ".join(_amount(wording.rng, item, item.quantity) for item in _items(wording)),
        address=_address(wording), town=wording.word("towns"), thing=wording.word("things")[0],
        phone=wording.rng.randint(100000, 999999),
    )  # fmt: skip


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
