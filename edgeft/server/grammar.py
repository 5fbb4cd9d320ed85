"""A JSON schema -> GBNF, within limits: the schema comes from strangers."""

from __future__ import annotations

import json
from typing import Any

from edgeft.errors import InputError

SCHEMA = 16_384
"""characters of a schema at most"""
GRAMMAR = 65_536
"""characters of what it becomes"""
DEPTH = 32
COUNTS, COUNT = ("minItems", "maxItems", "minLength", "maxLength"), 1000
"""numbers that a grammar repeats its rules by, and the largest of them"""
PATTERN = 128
"""characters of a regular expression"""


def of_any_json() -> str:
    """Any JSON object."""
    return of_schema({"type": "object"})


def of_schema(schema: dict[str, Any]) -> str:
    """InputError for what is no schema, or one that is too large."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    text = json.dumps(schema)
    if len(text) > SCHEMA:
        raise InputError(f"the schema has {len(text)} characters, {SCHEMA} are allowed")
    _check(schema, 0)
    try:
        grammar = str(json_schema_to_gbnf(text))
    except Exception as error:  # noqa: BLE001  it asserts and raises what comes to hand
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(f"the schema cannot become a grammar: {reason}") from None
    if len(grammar) > GRAMMAR:
        raise InputError("the schema becomes too large a grammar", "simplify it")
    return grammar


def _check(value: Any, depth: int) -> None:
    if depth > DEPTH:
        raise InputError(f"the schema is nested deeper than {DEPTH}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in COUNTS and isinstance(inner, (int, float)) and not 0 <= inner <= COUNT:
                raise InputError(f"{key} of a schema is between 0 and {COUNT}")
            if key == "pattern" and isinstance(inner, str) and len(inner) > PATTERN:
                raise InputError(f"a pattern of a schema has {PATTERN} characters at most")
            if key == "$ref" and isinstance(inner, str) and not inner.startswith("#"):
                raise InputError("a $ref of a schema points into the same schema")
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)
