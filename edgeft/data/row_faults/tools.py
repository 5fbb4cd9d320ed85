"""A row -> calls that do not fit its tools."""

from __future__ import annotations

import json

from edgeft.data.items import Item


def unknown_tool(item: Item) -> str:
    if item.example is None or not item.example.tools:
        return ""
    names = {_function(tool).get("name") for tool in item.example.tools}
    calls = [call for m in item.example.messages for call in m.tool_calls]
    return next((f"calls {call.name}" for call in calls if call.name not in names), "")


def tool_arguments(item: Item) -> str:
    """A required argument that is missing, or one that the tool does not have."""
    if item.example is None or not item.example.tools:
        return ""
    tools = {_function(tool).get("name"): _function(tool) for tool in item.example.tools}
    for call in (call for m in item.example.messages for call in m.tool_calls):
        schema = tools.get(call.name, {}).get("parameters")
        if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
            continue
        given = json.loads(call.arguments)
        required = schema.get("required")
        for name in required if isinstance(required, list) else []:
            if name not in given:
                return f"{call.name} without {name}"
        if schema["properties"] and (unknown := set(given) - set(schema["properties"])):
            return f"{call.name} with {min(unknown)}"
    return ""


def calls_without_tools(item: Item) -> str:
    if item.example is None or item.example.tools:
        return ""
    return next(
        (f"calls {m.tool_calls[0].name}" for m in item.example.messages if m.tool_calls), ""
    )


def _function(tool: str) -> dict[str, object]:
    function = json.loads(tool).get("function")
    return function if isinstance(function, dict) else {}
