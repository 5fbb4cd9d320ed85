"""Tools and the form of a model's calls -> a grammar that its answers follow, for `GrammarVocabulary`.

    call_grammar(form, {"on": {"type": "object", …}}, special_tokens, Choice(required=True))

Names and arguments then always fit: arguments follow their JSON schema. Where a call is not required,
the text is free until the call's opening marker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeft.errors import InputError
from edgeft.runtimes.grammar import HEADER, json_rule
from edgeft.tokenizer.answer_parts import AnswerForm
from edgeft.tokenizer.call_arguments import (
    JsonArguments,
    KeywordArguments,
    QuotedArguments,
    Schema,
    TaggedArguments,
    is_text,
)
from edgeft.tokenizer.stops import split_at
from edgeft.tokenizer.tool_calls import ID, INDEX, CallFormat

MAX_CALLS = 16
"""of one answer: a small model may repeat itself without end"""
MAX_REFERENCES = 8
"""of a schema within one another"""
LARK_SLOTS = {ID: "/[a-zA-Z0-9]{9}/", INDEX: "/[0-9]{1,3}/"}
UNSUPPORTED_TEXT = ("pattern", "format", "minLength", "maxLength")
"""keywords of texts that only quoted JSON can follow"""


@dataclass(frozen=True)
class Choice:
    """Which calls an answer has."""

    required: bool = False
    """at least one; else the text is free until a call begins"""
    several: bool = True
    content: str | None = None
    """rule of an answer without calls (`edgeft.runtimes.grammar`); None = any text"""


def call_grammar(
    answer: AnswerForm, special_tokens: Mapping[str, int], end_ids: Iterable[int], choice: Choice
) -> str:
    """`special_tokens`: text -> id of the tokens that are no part of a text. `end_ids`: those that
    end an answer. InputError for a schema that the form of the calls cannot follow."""
    assert answer.calls
    rules = _Rules(special_tokens, end_ids)
    calls = answer.calls
    one = rules.add("call", " | ".join(rules.call(calls, *tool) for tool in answer.tools.items()))
    more = ""
    if calls.between and choice.several:
        more = f"({rules.text(calls.between)} {one}){{0,{MAX_CALLS - 1}}}"
    end = rules.text(calls.end)
    if choice.required or choice.content is not None:
        begin = rules.text(calls.begin.lstrip())
        content = f"{choice.content} |" if choice.content is not None else ""
        start = f"{rules.thoughts(answer)} /[ \\n]{{0,2}}/ ({content} {begin} {one} {more} {end})"
    elif calls.marker:
        free, until, rest = rules.free_until(calls.marker, calls.begin.lstrip())
        start = f"{free} | {until} {rest} {one} {more} {end}"
    else:
        opening = _pattern(calls.begin.strip())
        free = rules.add("TEXT", f"/(.|\\n)+/ & ~/\\s*{opening}(.|\\n)*/")
        start = f"({free} ({rules.others()} {free}?)*)? | {rules.text(calls.begin.lstrip())} {one} {more} {end}"
    return rules.grammar(start)


def reasoned_grammar(
    answer: AnswerForm, special_tokens: Mapping[str, int], end_ids: Iterable[int], rule: str
) -> str:
    """A rule for what follows the reasoning part that the prompt has opened."""
    rules = _Rules(special_tokens, end_ids)
    return rules.grammar(f"{rules.thoughts(answer)} /[ \\n]{{0,2}}/ {rule}")


class _Rules:
    """The rules of one grammar in Lark's syntax, as llguidance reads it."""

    def __init__(self, special_tokens: Mapping[str, int], end_ids: Iterable[int]) -> None:
        self._special = special_tokens
        self._end_ids = frozenset(end_ids)
        self._split = split_at(special_tokens)
        self._rules: list[str] = []

    def grammar(self, start: str) -> str:
        return "\n".join([HEADER, f"start: {start}", *self._rules])

    def add(self, name: str, rule: str, attribute: str = "") -> str:
        """A rule under a name of its own; the name."""
        name = f"{name}_{len(self._rules)}"
        self._rules.append(f"{name}{attribute}: {rule}")
        return name

    def text(self, text: str) -> str:
        """Exactly this text, its special tokens as tokens."""
        parts = []
        for piece, is_token in self._split(text):
            if is_token:
                parts.append(f"<[{self._special[piece]}]>")
                continue
            for part in re.split(f"([{ID}{INDEX}])", piece):
                if part:
                    quoted = json.dumps(part, ensure_ascii=False)
                    parts.append(LARK_SLOTS.get(part) or quoted)
        return " ".join(parts)

    def others(self, *without: int) -> str:
        """Any special token but these and those that end an answer; nothing where there is none."""
        excluded = self._end_ids.union(without)
        ids = sorted(set(self._special.values()) - excluded)
        return f"<[{_ranges(ids)}]>" if ids else '""'

    def free_until(self, marker: str, text: str) -> tuple[str, str, str]:
        """(any text without the marker; any text up to the marker, which begins `text`; the rest of
        `text` behind it).

        A special token in the marker cannot be part of a text, so it is the sign by itself.
        """
        pieces = self._split(marker)
        tokens = [i for i, (_, is_token) in enumerate(pieces) if is_token]
        if tokens:
            sign = self._special[pieces[tokens[0]][0]]
            head = "".join(piece for piece, _ in pieces[: tokens[0] + 1])
            free = self.add("free", f"(TEXT_ANY | {self.others(sign)})*")
            self._text_any()
            return free, f"{free} <[{sign}]>", self.text(text[len(head) :])
        pattern = _pattern(marker)
        plain = self.add("TEXT", f"/(.|\\n)+/ & ~/(.|\\n)*{pattern}(.|\\n)*/")
        until = self.add("until", f"/(.|\\n)*{pattern}/", "[lazy]")
        others = self.others()
        free = self.add("free", f"({plain} | {others})*")
        before = self.add("before", f"({plain}? {others})*") if others != '""' else ""
        return free, f"{before} {until}", self.text(text[len(marker) :])

    def _text_any(self) -> None:
        if "TEXT_ANY: /(.|\\n)+/" not in self._rules:
            self._rules.append("TEXT_ANY: /(.|\\n)+/")

    def thoughts(self, answer: AnswerForm) -> str:
        """The reasoning part before the answer, in full or from where the prompt has opened it."""
        if not answer.tag:
            return ""
        _, until, _ = self.free_until(answer.closing_tag, answer.closing_tag)
        return until if answer.opened else f"({self.text(answer.tag)} {until})?"

    def call(self, form: CallFormat, name: str, schema: Schema) -> str:
        return f"{self.text(name + form.infix)} {self._arguments(form, name, schema)}"

    def _arguments(self, form: CallFormat, name: str, schema: Schema) -> str:
        arguments = form.arguments
        match arguments:
            case JsonArguments():
                return json_rule(schema)
            case TaggedArguments():
                items = [
                    (self._tagged(arguments, name, key, value, schema), optional)
                    for key, value, optional in _properties(schema)
                ]
                return self._sequence(items, "")
            case KeywordArguments():
                items = [
                    (
                        f"{self.text(key + '=')} {json_rule(_with_definitions(value, schema))}",
                        optional,
                    )
                    for key, value, optional in _properties(schema)
                ]
                return self._sequence(items, ", ")
            case QuotedArguments():
                return self._quoted(arguments.quote, schema, schema, 0)
        raise InputError(f"no grammar for the calls of this chat template: {name}")

    def _sequence(self, items: Sequence[tuple[str, bool]], separator: str) -> str:
        """Items in their order, some optional, with a separator between two."""
        first, later = '""', '""'
        between = self.text(separator)
        for item, is_optional in reversed(items):
            item = self.add("item", item)
            skip_first, skip_later = (f" | {first}", f" | {later}") if is_optional else ("", "")
            first, later = (
                self.add("first", f"{item} {later}{skip_first}"),
                self.add("later", f"{between} {item} {later}{skip_later}"),
            )
        return first

    def _tagged(
        self, form: TaggedArguments, name: str, key: str, schema: Schema, root: Schema
    ) -> str:
        if not is_text(schema):
            value = json_rule(_with_definitions(schema, root))
            return f"{self.text(form.key_begin + key + form.value_begin)} {value} {self.text(form.value_end)}"
        begin = self.text(form.key_begin + key + form.text_begin)
        return f"{begin} {self._text_until(form.value_end, schema, f'{name}.{key}')}"

    def _text_until(self, end: str, schema: Schema, where: str) -> str:
        """A text without quotes, up to and with its end."""
        values = (
            schema["enum"] if "enum" in schema else [schema[k] for k in ("const",) if k in schema]
        )
        if values:
            texts = (value if isinstance(value, str) else json.dumps(value) for value in values)
            return f"({' | '.join(map(self.text, texts))}) {self.text(end)}"
        if limits := [key for key in UNSUPPORTED_TEXT if key in schema]:
            raise InputError(
                f"{where} has {limits[0]}, which the calls of this model cannot be held to",
                "leave it out, or describe it",
            )
        _, until, rest = self.free_until(end.strip(), end.lstrip())
        return f"{until} {rest}"

    def _quoted(self, quote: str, schema: Schema, root: Schema, depth: int) -> str:
        """A value with bare keys and with texts between quotes of their own."""
        schema = _resolved(schema, root)
        if depth > MAX_REFERENCES:
            raise InputError(
                "a schema is nested too deeply for the calls of this model", "simplify it"
            )
        options = schema.get("anyOf") or schema.get("oneOf")
        kinds = schema.get("type")
        if options or isinstance(kinds, list):
            options = options or [dict(schema) | {"type": kind} for kind in kinds or ()]
            return f"({' | '.join(self._quoted(quote, one, root, depth + 1) for one in options)})"
        if is_text(schema):
            return f"{self.text(quote)} {self._text_until(quote, schema, 'a text')}"
        if kinds == "array":
            one = self.add("value", self._quoted(quote, schema.get("items", {}), root, depth + 1))
            return f'"[" ({one} ("," {one})*)? "]"'
        if kinds == "object" or "properties" in schema:
            items = [
                (f"{self.text(key + ':')} {self._quoted(quote, value, root, depth + 1)}", optional)
                for key, value, optional in _properties(schema)
            ]
            return f'"{{" {self._sequence(items, ",")} "}}"'
        if kinds is None and not {"enum", "const"} & schema.keys():
            raise InputError("a value has no type, which the calls of this model need", "name it")
        return json_rule(schema)


def _properties(schema: Schema) -> Iterable[tuple[str, Schema, bool]]:
    """(name, schema, whether it may be left out) of each property."""
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    for key, value in properties.items():
        yield key, value if isinstance(value, Mapping) else {}, key not in required


def _with_definitions(schema: Schema, root: Schema) -> dict[str, Any]:
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return shared | dict(schema)


def _resolved(schema: Schema, root: Schema) -> Schema:
    """The schema that a `$ref` within the root names."""
    for _ in range(MAX_REFERENCES):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        target: Any = root
        for key in reference.removeprefix("#").strip("/").split("/"):
            target = target.get(key) if isinstance(target, Mapping) else None
        if not isinstance(target, Mapping):
            raise InputError(f"the schema has no {reference[:100]}", "references begin with #/")
        schema = target
    raise InputError("references of a schema lead in a circle", "simplify it")


def _pattern(text: str) -> str:
    """A regular expression of exactly this text."""
    return "".join(
        char if char.isalnum() or not char.isascii() else f"\\x{ord(char):02x}" for char in text
    )


def _ranges(ids: Sequence[int]) -> str:
    """5,6,7,9 -> 5-7,9"""
    parts: list[list[int]] = []
    for one in ids:
        if parts and parts[-1][1] == one - 1:
            parts[-1][1] = one
        else:
            parts.append([one, one])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
