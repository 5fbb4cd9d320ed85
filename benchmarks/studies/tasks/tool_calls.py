"""tool_calls.toml and a random generator -> a request, the functions at hand, and the calls that serve it.

The same function has other names, parameters and types in other rows, so a model has to read its schema.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
FUNCTIONS: dict[str, Any] = WORDS["functions"]
INSTRUCTIONS = """\
You control a home. Call the function that does what the user asks, with arguments as its parameters say, and every \
value as the user says it. Leave out optional parameters that the user does not mention. Times are HH:MM. If no \
function fits, say so and call none.
"""
NO_CALL_SHARE, TWO_CALLS_SHARE, CHAT_SHARE = 0.15, 0.15, 0.3
"""of the rows; CHAT_SHARE of those without a call ask for nothing at all"""
MOST_OTHERS = 3
"""functions beside those that are needed"""
NUMBERS = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]


@dataclass(frozen=True)
class Value:
    """A value of a parameter: its schema, how it is said, and what the call says."""

    schema: Mapping[str, Any]
    said: str
    value: Any


def _number(rng: random.Random, low: int, high: int) -> Value:
    number = rng.randint(low, high)
    said = NUMBERS[number - 2] if number <= 12 and rng.random() < 0.4 else str(number)
    return Value({"type": "integer"}, said, number)


def _time(rng: random.Random) -> Value:
    hour, minute = rng.randint(5, 22), rng.choice((0, 15, 30, 45, 5, 20, 50))
    said = f"{hour}:{minute:02}"
    return Value({"type": "string", "description": "HH:MM"}, said, f"{hour:02}:{minute:02}")


def _switch(rng: random.Random, name: str) -> Value:
    is_on = rng.random() < 0.5
    said = "on" if is_on else "off"
    if name == "on":
        return Value({"type": "boolean"}, said, is_on)
    values = ["ON", "OFF"] if name == "power" else ["on", "off"]
    return Value({"type": "string", "enum": values}, said, values[not is_on])


def _mode(rng: random.Random, name: str) -> Value:
    said, *values = rng.choice([
        ("by train", "train", "rail"), ("by car", "car", "road"), ("on foot", "walk", "foot"),
    ])  # fmt: skip
    column = name == "by"
    choices = ["rail", "road", "foot"] if column else ["train", "car", "walk"]
    return Value({"type": "string", "enum": choices}, said, values[column])


def _word(rng: random.Random, slot: str) -> Value:
    words: list[str] = WORDS["words"][WORD_OF.get(slot, slot)]
    word = rng.choice(words)
    return Value({"type": "string"}, word, word)


WORD_OF = {"other_place": "place"}
"""slot -> the words that fill it, where their name is another"""
KINDS: dict[str, Callable[[random.Random, Mapping[str, Any], str], Value]] = {
    "word": lambda rng, param, name: _word(rng, param["slot"]),
    "number": lambda rng, param, name: _number(rng, param["low"], param["high"]),
    "time": lambda rng, param, name: _time(rng),
    "switch": lambda rng, param, name: _switch(rng, name),
    "mode": lambda rng, param, name: _mode(rng, name),
    "flag": lambda rng, param, name: Value({"type": "boolean"}, "on the speaker", True),
}


@dataclass(frozen=True)
class Function:
    """A function as one row has it."""

    intent: str
    name: str
    about: str
    names: Mapping[str, str]
    """slot -> name of its parameter"""

    @property
    def params(self) -> Sequence[Mapping[str, Any]]:
        params: Sequence[Mapping[str, Any]] = FUNCTIONS[self.intent]["params"]
        return params

    def tool(self) -> dict[str, Any]:
        """OpenAI's object."""
        rng = random.Random(0)  # a schema does not depend on the value
        schemas = {
            self.names[param["slot"]]: dict(
                KINDS[param["kind"]](rng, param, self.names[param["slot"]]).schema
            )
            for param in self.params
        }
        required = [self.names[param["slot"]] for param in self.params if param.get("required")]
        parameters = {"type": "object", "properties": schemas, "required": required}
        function = {"name": self.name, "description": self.about, "parameters": parameters}
        return {"type": "function", "function": function}

    def ask(self, rng: random.Random, phrases: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """(what the user says, the call)."""
        phrase = rng.choice(phrases)
        values: dict[str, Value] = {}
        for param in self.params:
            slot = param["slot"]
            while slot not in values or len({v.said for v in values.values()}) < len(values):
                values[slot] = KINDS[param["kind"]](rng, param, self.names[slot])
        said = phrase.format(**{slot: value.said for slot, value in values.items()})
        arguments = {
            self.names[slot]: value.value
            for slot, value in values.items()
            if "{" + slot + "}" in phrase
        }
        return said, {"name": self.name, "arguments": json.dumps(arguments, ensure_ascii=False)}


def draw(rng: random.Random, group: str) -> dict[str, Any]:
    """A row with `tools`. Its tags: `one`, `two` or `none` by the number of calls."""
    intents = [name for name, entry in FUNCTIONS.items() if not entry.get("held_out")]
    asked = [name for name in FUNCTIONS if name not in intents] if group == "new_tools" else intents
    kind = rng.random()
    if kind < NO_CALL_SHARE:
        return _row(*_without_call(rng, group, asked, intents), "none")
    count = 2 if kind < NO_CALL_SHARE + TWO_CALLS_SHARE else 1
    picked = rng.choices(asked, k=count)
    needed = {intent: _function(rng, intent) for intent in picked}
    texts, calls = [], []
    for intent in picked:
        text, call = needed[intent].ask(rng, _phrases(intent, group))
        if call not in calls:
            texts.append(text)
            calls.append(call)
    text = texts[0]
    if len(texts) > 1:
        text = rng.choice(WORDS["joins"]).format(a=texts[0], b=texts[1])
    functions = _with_others(rng, list(needed.values()), intents)
    return _row(_sentence(rng, text), calls, functions, "two" if len(calls) > 1 else "one")


def _without_call(
    rng: random.Random, group: str, asked: Sequence[str], intents: Sequence[str]
) -> tuple[str, list[dict[str, Any]], list[Function]]:
    """A request that no function at hand can serve, or talk."""
    if rng.random() < CHAT_SHARE:
        words = WORDS["words"]
        place, other = rng.sample(words["place"], 2)
        text = rng.choice(WORDS["chat"]).format(
            place=place,
            other_place=other,
            person=rng.choice(words["person"]),
            thing=rng.choice(words["thing"]),
        )
        return text, [], _with_others(rng, [], intents)
    intent = rng.choice(asked)
    text, _ = _function(rng, intent).ask(rng, _phrases(intent, group))
    others = [one for one in intents if one != intent]
    return _sentence(rng, text), [], _with_others(rng, [], others)


def _function(rng: random.Random, intent: str) -> Function:
    entry = FUNCTIONS[intent]
    names: dict[str, str] = {}
    for param in entry["params"]:
        names[param["slot"]] = rng.choice([n for n in param["names"] if n not in names.values()])
    return Function(intent, rng.choice(entry["names"]), rng.choice(entry["about"]), names)


def _with_others(
    rng: random.Random, needed: list[Function], intents: Sequence[str]
) -> list[Function]:
    """The functions that are needed among others, in any order."""
    used = {function.intent for function in needed}
    others = [intent for intent in intents if intent not in used]
    count = rng.randint(0 if needed else 1, MOST_OTHERS - len(needed) + 1)
    functions = needed + [_function(rng, intent) for intent in rng.sample(others, count)]
    rng.shuffle(functions)
    return functions


def _phrases(intent: str, group: str) -> Sequence[str]:
    phrases: Sequence[str] = FUNCTIONS[intent]["seen" if group == "seen" else "new"]
    return phrases


def _sentence(rng: random.Random, text: str) -> str:
    text = " ".join(text.split())
    text = text[0].upper() + text[1:] if rng.random() < 0.7 else text
    return text + rng.choice((".", "", "", ", please."))


def _row(
    text: str, calls: Sequence[Mapping[str, Any]], functions: Sequence[Function], tag: str
) -> dict[str, Any]:
    answer: dict[str, Any] = {"role": "assistant", "content": ""}
    if calls:
        answer["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    else:
        # The choice follows from the text, so that one request has one answer.
        answer["content"] = WORDS["refusals"][len(text) % len(WORDS["refusals"])]
    return {
        "messages": [{"role": "user", "content": text}, answer],
        "tools": [function.tool() for function in functions],
        "tags": [tag],
    }
