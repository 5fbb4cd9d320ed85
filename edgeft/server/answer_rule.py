"""Takes a body, gives the rule that its answer must follow, by whichever field of OpenAI, vLLM or llama-server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgeft.errors import InputError
from edgeft.runtimes.grammar import choice_rule, gbnf_rule, json_rule, regex_rule
from edgeft.server.schemas import Generation, ResponseFormat, StructuredOutputs


def answer_rule(body: Generation) -> str | None:
    """None where the answer is any text. InputError for two rules, and for one that is invalid."""
    outputs = body.structured_outputs or StructuredOutputs()
    json_object = {"type": "object"} if outputs.json_object else None
    fields: list[tuple[str, Any, Callable[[Any], str | None]]] = [
        ("response_format", body.response_format, _format_rule),
        ("json_schema", body.json_schema, json_rule),
        ("grammar", body.grammar, gbnf_rule),
        ("guided_json", body.guided_json, _schema_rule),
        ("guided_regex", body.guided_regex, regex_rule),
        ("guided_choice", body.guided_choice, choice_rule),
        ("guided_grammar", body.guided_grammar, gbnf_rule),
        ("structured_outputs.json", outputs.json_, _schema_rule),
        ("structured_outputs.json_object", json_object, json_rule),
        ("structured_outputs.regex", outputs.regex, regex_rule),
        ("structured_outputs.choice", outputs.choice, choice_rule),
        ("structured_outputs.grammar", outputs.grammar, gbnf_rule),
    ]
    rules = {
        name: rule
        for name, value, make in fields
        if value not in (None, "") and (rule := make(value))
    }
    if len(rules) > 1:
        raise InputError(f"{' and '.join(rules)} cannot be followed at once", "send one")
    return next(iter(rules.values()), None)


def _schema_rule(schema: dict[str, Any] | str) -> str:
    """Of a JSON schema, or of its text."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            schema = ""
    if not isinstance(schema, dict):
        raise InputError("a JSON schema is an object, or its text")
    return json_rule(schema)


def _format_rule(response_format: ResponseFormat) -> str | None:
    if response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return json_rule(response_format.schema_ or {"type": "object"})
    named = response_format.json_schema
    schema = named.schema_ if named else response_format.schema_
    if schema is None:
        raise InputError("response_format json_schema needs json_schema.schema")
    return json_rule(schema)
