"""A JSON schema -> GBNF, within limits: the schema comes from strangers."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from edgeft.errors import InputError
from edgeft.server.ambiguity import Counter, target

SCHEMA = 16_384
"""characters of a schema at most"""
GRAMMAR = 65_536
"""characters of what it becomes"""
DEPTH = 32
NAMED = ("properties", "$defs", "definitions")
"""what holds schemas by any names"""
LITERAL = ("const", "enum", "default", "examples")
"""what holds values and not schemas"""
ASKS = {
    "object": ("properties", "required", "additionalProperties", "allOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
}
"""of a value of each type"""
COUNTS, COUNT = ("minItems", "maxItems", "minLength", "maxLength"), 1000
"""numbers that a grammar repeats its rules by, and the largest of them"""
PATTERN = 128
"""characters of a regular expression"""
REPEATS = 200
"""atoms that it has when its repetitions, one in the other, are written out"""


def of_any_json() -> str:
    """Any JSON object."""
    return of_schema({"type": "object"})


def of_schema(schema: dict[str, Any]) -> str:
    """InputError for what is no schema, or one that is too large."""
    text = json.dumps(schema)
    if len(text) > SCHEMA:
        raise InputError(f"the schema has {len(text)} characters, {SCHEMA} are allowed")
    _check(schema, 0)
    try:
        schema = _without_ref(_each_type(schema))
        Counter(schema, repeats).check()
        grammar = _converted(schema)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  it asserts and raises what comes to hand
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(f"the schema cannot become a grammar: {reason}") from None
    if len(grammar) > GRAMMAR:
        raise InputError("the schema becomes too large a grammar", "simplify it")
    return grammar


def _converted(schema: dict[str, Any]) -> str:
    """By llama_cpp's converter, where it does not confuse texts and names."""
    from llama_cpp.llama_grammar import SchemaConverter

    class Converter(SchemaConverter):  # type: ignore[misc]
        def _format_literal(self, literal: str) -> str:
            """With backslashes escaped, too: a quote in a constant would end its literal."""
            escapes = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r"}
            with contextlib.suppress(ValueError, UnicodeEncodeError):
                plain = json.dumps(json.loads(literal), ensure_ascii=False)
                literal = plain if plain.encode() else literal
            return '"' + re.sub(r'[\\"\n\r]', lambda found: escapes[found[0]], literal) + '"'

        def _add_rule(self, name: str, rule: str) -> str:
            """Within a budget: a grammar that is too large ends when it becomes that."""
            self.made = getattr(self, "made", 0) + len(name) + len(rule) + 1
            if self.made > 8 * GRAMMAR:
                raise InputError("the schema becomes too large a grammar", "simplify it")
            return str(super()._add_rule(name, rule))

        def _resolve_ref(self, ref: str) -> str:
            """Named by its number: by its last part only, it could be another's rule."""
            name = f"ref-{list(self._refs).index(ref)}"
            if name not in self._rules and ref not in self._refs_being_resolved:
                self._refs_being_resolved.add(ref)
                name = self.visit(self._refs[ref], name)
                self._refs_being_resolved.remove(ref)
            return name

    how = Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    # All other rules are named behind `all`, so that no property has the name of a reference.
    name = how.visit(how.resolve_refs(json.loads(json.dumps(schema)), "stdin"), "all")
    how._rules["root"] = name
    return str(how.format_grammar())


def _each_type(node: Any) -> Any:
    """With the types of a list apart, each with what it is asked: the converter reads nothing that
    stands beside such a list."""
    if isinstance(node, list):
        return list(map(_each_type, node))
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key in NAMED and isinstance(value, dict):
            found[key] = {name: _each_type(one) for name, one in value.items()}
        else:
            found[key] = value if key in LITERAL else _each_type(value)
    if not isinstance(found.get("type"), list) or {"$ref", "anyOf", "oneOf"} & found.keys():
        return found
    kinds = dict.fromkeys(found.pop("type"))
    if "const" in found or "enum" in found:
        return found
    alternatives = []
    for kind in kinds:
        asked = {key: found.pop(key) for key in ASKS.get(kind, ()) if key in found}
        alternatives.append({"type": kind, **asked})
    return found | {"anyOf": alternatives}


def _without_ref(schema: dict[str, Any]) -> dict[str, Any]:
    """What a reference at the top points to in its place: the converter does not look for references
    behind it."""
    for _ in range(DEPTH):
        if "$ref" in schema:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = rest | target(schema, schema["$ref"])
    return schema


def repeats(pattern: str) -> float:
    """How large a regular expression is with its repetitions written out, where `*` and `+` count as
    4. llama.cpp follows every way through it at once.

    >>> repeats("^((a?){9}b){9}$")
    90.0
    """
    sums, last = [0.0], 0.0
    for match in re.finditer(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(\d+)?,?(\d+)?\}|.", pattern, re.DOTALL):
        token = match[0]
        if token in ("{", "["):
            raise InputError(
                "a pattern of a schema has a bracket that is not closed as it should be"
            )
        if token == "(":
            sums.append(0.0)
            last = 0.0
        elif token == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        elif token in ("*", "+") or len(token) > 2 and token[0] == "{":
            times = 4.0 if token in "*+" else max(1.0, *(float(n or 0) for n in match.groups()))
            sums[-1] += last * (times - 1)
            last *= times
        elif token not in "^$?|":
            last = 1.0
            sums[-1] += last
    return sum(sums)


def _check(value: Any, depth: int) -> None:
    if depth > DEPTH:
        raise InputError(f"the schema is nested deeper than {DEPTH}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in COUNTS and isinstance(inner, (int, float)) and not 0 <= inner <= COUNT:
                raise InputError(f"{key} of a schema is between 0 and {COUNT}")
            if key == "pattern" and isinstance(inner, str):
                if len(inner) > PATTERN:
                    raise InputError(f"a pattern of a schema has {PATTERN} characters at most")
                if repeats(inner) > REPEATS:
                    raise InputError("a pattern of a schema repeats too much", "simplify it")
            if key == "$ref" and isinstance(inner, str) and not inner.startswith("#"):
                raise InputError("a $ref of a schema points into the same schema")
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)
