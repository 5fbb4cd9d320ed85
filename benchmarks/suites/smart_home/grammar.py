"""grammar.toml and a seed -> the three splits of the smart_home suite, as chat rows.

The wording is all in grammar.toml; this file draws from it. To write the splits:

    python -m edgeft.benchmarks.suites.smart_home.grammar OUT_DIR
"""

import json
import random
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
SPLITS = {
    "train": {"seen": 860, "out_of_scope": 140},
    "validation": {"seen": 86, "out_of_scope": 14},
    "test": {"seen": 120, "new_combination": 138, "new_phrasing": 86, "out_of_scope": 56},
}
Pair = tuple[str, str | None]
Answer = dict[str, str | int]


def _pairs(key: str) -> frozenset[Pair]:
    return frozenset((first, second) for first, second in WORDS[key])


HELD_OUT_ACTIONS = _pairs("held_out_actions")
HELD_OUT_ROOMS = _pairs("held_out_rooms")
ODD_ROOMS = _pairs("odd_rooms")
_REMARK_SLOTS = WORDS["remark_slots"] | {
    "room": [name for names in WORDS["rooms"].values() for name in names],
    "n": [str(n) for n in range(12, 90)],
    "m": [str(n) for n in range(2, 20)],
}


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


class Row(TypedDict):
    """One line of a split; `tags` are the answer's action and why the row is there."""

    messages: list[Message]
    tags: list[str]


class Command(NamedTuple):
    """One in-scope request before it is put into words; its fields are the answer's keys."""

    action: str
    device: str
    room: str | None
    value: int | None


def capabilities_of(device: str) -> dict[str, Any]:
    """The `actions` and `states` of a device and, if it can be set, its `dial`."""
    capabilities: dict[str, Any] = WORDS["kinds"][WORDS["devices"][device]["kind"]]
    return capabilities


def normalise(text: str) -> str:
    """Lower-case words of a text; texts with the same words count as the same text."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("%", " percent")))


def spell(number: int) -> str:
    """A number from 1 to 100 in words."""
    numbers: dict[str, list[str]] = WORDS["numbers"]
    if number == 100:
        return "one hundred"
    if number < 20:
        return numbers["ones"][number - 1]
    tens, ones = divmod(number, 10)
    return numbers["tens"][tens - 2] + (f" {spell(ones)}" if ones else "")


def generate(seed: int = 0) -> dict[str, list[Row]]:
    """All splits; no two rows anywhere share their normalised user text."""
    rng = random.Random(seed)
    used: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for split, counts in SPLITS.items():
        rows: list[Row] = []
        for tag, count in counts.items():
            target = len(rows) + count
            while len(rows) < target:
                text, answer = _exchange(rng, tag, "new" if split == "test" else "seen")
                if normalise(text) not in used:
                    used.add(normalise(text))
                    rows.append(_row(text, answer, tag))
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def to_jsonl(rows: list[Row]) -> str:
    """The text of a split's file."""
    return "".join(f"{_compact(row)}\n" for row in rows)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _row(text: str, answer: Answer, tag: str) -> Row:
    turns: list[Message] = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": _compact(answer)},
    ]
    return {"messages": turns, "tags": [str(answer["action"]), tag]}


def _exchange(rng: random.Random, tag: str, remarks: str) -> tuple[str, Answer]:
    if tag == "out_of_scope":
        return _write(rng, _remark(rng, remarks)), {"action": "none"}
    command = _draw(rng, held_out=tag == "new_combination")
    text = _write(rng, _say(rng, command, new=tag == "new_phrasing"))
    return text, {key: part for key, part in command._asdict().items() if part is not None}


def _draw(rng: random.Random, held_out: bool) -> Command:
    """A command that holds a held-out pair, or one that holds none."""
    weights: dict[str, int] = WORDS["weights"]
    while True:
        action = rng.choices(list(weights), list(weights.values()))[0]
        device = rng.choice(
            [d for d in WORDS["devices"] if action in capabilities_of(d)["actions"]]
        )
        spoken = rng.random() < WORDS["room_share"]
        room = rng.choice(list(WORDS["rooms"])) if spoken else None
        held = (action, device) in HELD_OUT_ACTIONS or (device, room) in HELD_OUT_ROOMS
        if held == held_out and (device, room) not in ODD_ROOMS:
            value = (
                rng.choice(range(*capabilities_of(device)["values"])) if action == "set" else None
            )
            return Command(action, device, room, value)


def _say(rng: random.Random, command: Command, new: bool) -> str:
    """Put a command into words; new wording lies in the phrase or in the wrapper, not in both."""
    device, capabilities = WORDS["devices"][command.device], capabilities_of(command.device)
    new_phrase = new and rng.random() < 0.5
    phrase = rng.choice(_phrases(command, device["kind"], "new" if new_phrase else "seen"))
    mood = _mood(phrase)
    wrapper = _wrapper(rng, mood, "new" if new and not new_phrase else "seen")

    noun = rng.choice(device["nouns"])
    slots = {
        "be": "are" if noun.endswith("s") else "is",
        "state": rng.choice(capabilities["states"]),
    }
    slots["at"] = ""
    if command.value is not None:
        slots["v"] = _quantity(rng, command.value, capabilities["units"])
        if rng.random() < 0.3:
            noun = f"{noun.removesuffix('s')} {capabilities['dial']}"
            slots["v"] = slots["v"].removeprefix("volume ")
    if command.room is not None:
        room = rng.choice(WORDS["rooms"][command.room])
        place = rng.choice(("before", "before", "after", "after", "front"))
        if place == "before":
            noun = f"{room} {noun}"
        elif place == "front" and wrapper == "{c}" and mood == "command":
            wrapper = f"in the {room}, {{c}}"
        else:
            slots["at"] = f" in the {room}"
    return wrapper.format(c=phrase.format(x=noun, **slots))


def _phrases(command: Command, device_kind: str, source: str) -> list[str]:
    """Phrases that fit the action, the kind of device and, for a value, its half of the dial."""
    qualifiers = ["", f" {device_kind}"]
    if command.value is not None:
        values = range(*WORDS["kinds"][device_kind]["values"])
        half = "low" if command.value < values[len(values) // 2] else "high"
        qualifiers += [f" {half}", f" {half} {device_kind}"]
    table: dict[str, list[str]] = WORDS[source]["phrases"]
    return [phrase for q in qualifiers for phrase in table.get(command.action + q, [])]


def _quantity(rng: random.Random, value: int, units: list[str]) -> str:
    if rng.random() < 0.4:
        return units[0].format(n=spell(value))
    return rng.choice(units).format(n=value)


def _remark(rng: random.Random, source: str) -> str:
    """An out-of-scope sentence; the test split has phrases and fillers of its own."""
    slots: dict[str, list[str]] = _REMARK_SLOTS | WORDS[source]["remarks"]
    fills = {name: rng.choice(words) for name, words in slots.items()}
    phrase = fills.pop("phrases")
    return _wrapper(rng, _mood(phrase), "seen").format(c=phrase.format(**fills))


def _mood(phrase: str) -> str:
    """Which wrappers fit: those of a `question`, a `command`, or a `wish` (any other sentence)."""
    if phrase.endswith("?"):
        return "question"
    first = phrase.split()[0]
    return "wish" if first[0] in "{I" or first in {"the", "my", "our", "we"} else "command"


def _wrapper(rng: random.Random, mood: str, source: str) -> str:
    bare = source == "seen" and rng.random() < 0.4
    return "{c}" if bare else str(rng.choice(WORDS[source]["wrappers"][mood]))


def _write(rng: random.Random, text: str) -> str:
    """The text as a sentence, or, for half of the rows, without capital and punctuation."""
    if rng.random() < 0.5:
        return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")
    return text.replace(",", "").removesuffix("?")


if __name__ == "__main__":
    for name, split_rows in generate().items():
        path = Path(sys.argv[1]) / f"{name}.jsonl"
        path.write_text(to_jsonl(split_rows), encoding="utf-8", newline="\n")
        print(path)
