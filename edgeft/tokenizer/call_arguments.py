"""The arguments of a tool call as families of models write them <-> a JSON object.

    JsonArguments().read('{"city": "Rome"}</tool_call>', 0, {}, True)       # ('{"city": "Rome"}', 16)

Each class is a way of writing with the texts that a chat template has around keys and values; what
writes them into a chat is in `edgeft.tokenizer.tool_calls`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Schema = Mapping[str, Any]
"""JSON schema of a function's parameters; {} where it is not known"""
UNFINISHED = -1
"""end of arguments that the text does not hold in full"""
_JSON = json.JSONDecoder()


class Arguments(Protocol):
    """A way of writing arguments."""

    def read(self, text: str, start: int, schema: Schema, final: bool) -> tuple[str, int]:
        """(JSON text, where the arguments that begin at `start` end in `text`).

        Where they go on beyond the text, the JSON text is a beginning of what it will be and the end
        is UNFINISHED. `final`: nothing follows the text.
        """

    def write(self, arguments: Mapping[str, Any]) -> str:
        """The inverse of `read`."""


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def property_schema(schema: Schema, name: str) -> Schema:
    """Of one parameter; {} where it is not known."""
    properties = schema.get("properties")
    entry = properties.get(name) if isinstance(properties, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def is_text(schema: Schema) -> bool:
    """Whether a value with this schema may be a text."""
    kinds = schema.get("type")
    if kinds is not None:
        return "string" in (kinds if isinstance(kinds, list) else [kinds])
    return any(isinstance(value, str) for value in (*schema.get("enum", ()), schema.get("const")))


@dataclass(frozen=True)
class JsonArguments:
    """A JSON object."""

    def read(self, text: str, start: int, schema: Schema, final: bool) -> tuple[str, int]:
        try:
            _, end = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            return text[start:], UNFINISHED
        return text[start:end], end

    def write(self, arguments: Mapping[str, Any]) -> str:
        return json_text(arguments)


@dataclass(frozen=True)
class TaggedArguments:
    """Each parameter between tags, as GLM 4.5 and Qwen3-Coder write them: texts without quotes."""

    key_begin: str
    text_begin: str
    """between a key and a text"""
    value_begin: str
    """between a key and a value that is no text"""
    value_end: str

    def read(self, text: str, start: int, schema: Schema, final: bool) -> tuple[str, int]:
        key = _spaced(self.key_begin.strip())
        begins = "|".join(_next_to_value(begin) for begin in (self.text_begin, self.value_begin))
        parameter = re.compile(rf"\s*{key}\s*([^<>\"\s]+?)\s*(?:{begins})", re.DOTALL)
        value_end = re.compile(_next_to_value(self.value_end, before=True))
        pairs: list[str] = []
        at = start
        while match := parameter.match(text, at):
            end = value_end.search(text, match.end())
            if not end:
                return "{" + ", ".join(pairs), UNFINISHED
            name = match[1]
            is_value = self._is_value(text[match.end(1) : match.end()])
            value = _value(text[match.end() : end.start()], property_schema(schema, name), is_value)
            pairs.append(f"{json_text(name)}: {json_text(value)}")
            at = end.end()
        written, rest = "{" + ", ".join(pairs), text[at:].strip()
        begin = self.key_begin.strip()
        if not final and (begin.startswith(rest) or rest.startswith(begin)):
            return written, UNFINISHED
        return written + "}", at

    def _is_value(self, begin: str) -> bool:
        """Whether the tags say that the value is no text."""
        return self.text_begin != self.value_begin and begin.strip() == self.value_begin.strip()

    def write(self, arguments: Mapping[str, Any]) -> str:
        parts = []
        for key, value in arguments.items():
            begin = self.text_begin if isinstance(value, str) else self.value_begin
            written = value if isinstance(value, str) else json_text(value)
            parts.append(f"{self.key_begin}{key}{begin}{written}{self.value_end}")
        return "".join(parts)


def _value(text: str, schema: Schema, is_value: bool) -> Any:
    """A text stays one where the schema takes texts; anything else is JSON where it can be."""
    if is_text(schema) and not is_value:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _spaced(text: str) -> str:
    """A pattern of the text with any white space where it has some."""
    return r"\s*".join(map(re.escape, re.split(r"\s+", text)))


def _next_to_value(text: str, before: bool = False) -> str:
    """The same, but only the line end that the text itself has next to the value is not the value's."""
    edge = r"\n?" if (text[:1] if before else text[-1:]) == "\n" else ""
    core = _spaced(text.strip())
    return edge + core if before else core + edge


@dataclass(frozen=True)
class QuotedArguments:
    """An object with bare keys and texts within a token of their own, as Gemma 4 writes them."""

    quote: str

    def read(self, text: str, start: int, schema: Schema, final: bool) -> tuple[str, int]:
        quote = re.escape(self.quote)
        token = re.compile(rf"\s*({quote}(.*?){quote}|[{{}}\[\],:]|[^\s{{}}\[\],:]+)", re.DOTALL)
        parts: list[str] = []
        depth, at = 0, start
        while match := token.match(text, at):
            word, at = match[1], match.end()
            if match[2] is not None:
                parts.append(json_text(match[2]))
            elif word in "{}[],:":
                depth += (word in "{[") - (word in "}]")
                parts.append(word)
                if depth == 0:
                    return json_text(_loaded("".join(parts))), at
            else:
                is_key = text[at:].lstrip()[:1] == ":"
                parts.append(json_text(word) if is_key or not _is_json(word) else word)
        return "", UNFINISHED

    def write(self, arguments: Mapping[str, Any]) -> str:
        return self._written(arguments)

    def _written(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self.quote}{value}{self.quote}"
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{key}:{self._written(v)}" for key, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self._written, value)) + "]"
        return json_text(value)


def _is_json(word: str) -> bool:
    try:
        json.loads(word)
    except ValueError:
        return False
    return True


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {}


@dataclass(frozen=True)
class KeywordArguments:
    """Python's keyword arguments, as LFM2 writes them."""

    def read(self, text: str, start: int, schema: Schema, final: bool) -> tuple[str, int]:
        end = _closing_parenthesis(text, start)
        if end == UNFINISHED:
            return "", UNFINISHED
        try:
            call = ast.parse(f"f({text[start:end].strip()})", mode="eval").body
            assert isinstance(call, ast.Call)
            values = {str(word.arg): _literal(word.value) for word in call.keywords}
        except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
            return "", UNFINISHED
        return json_text(values), end

    def write(self, arguments: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={json_text(value)}" for key, value in arguments.items())


def _closing_parenthesis(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|['"()]""").finditer(
        text, start
    ):
        word = match[0]
        if word in ("'", '"'):  # a text without its end
            return UNFINISHED
        depth += (word == "(") - (word == ")")
        if depth < 0:
            return match.start()
    return UNFINISHED


def _literal(node: ast.expr) -> Any:
    """A Python literal, in which also JSON's names stand for their values."""

    class Names(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            values = {"true": True, "false": False, "null": None}
            return ast.Constant(values[name.id]) if name.id in values else name

    return ast.literal_eval(Names().visit(node))
