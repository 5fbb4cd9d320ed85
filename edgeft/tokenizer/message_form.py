"""A `Message` -> the dictionary that a chat template reads, in one of the forms that templates know.

    MessageForm().variables(Message("user", "hi"))       # {"role": "user", "content": "hi"}

Templates agree on OpenAI's keys, but not on everything in them: some read the arguments of a call as
an object and some as text, some find a call only where the content is none, and those of
vision-language models read the content as a list of parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edgeft.errors import InputError
from edgeft.records import Message, ToolCall


@dataclass(frozen=True)
class MessageForm:
    """How a template reads a message. The defaults are those of transformers' documentation."""

    arguments: str = "object"
    """of a tool call: object, or text (JSON in a string, as OpenAI's API sends it)"""
    empty_content: str | None = ""
    """what stands for an empty content beside tool calls"""
    parts: bool = False
    """the content is a list, [{"type": "text", "text": …}]"""
    reasoning: tuple[str, ...] = ("thinking", "reasoning_content")
    """keys of the reasoning; transformers fills these two"""

    def variables(self, message: Message) -> dict[str, Any]:
        """InputError where the arguments of a call are not JSON."""
        content: Any = message.content
        if message.tool_calls and not content:
            content = self.empty_content
        elif self.parts:
            content = [{"type": "text", "text": content}]
        variables = {"role": message.role, "content": content}
        if message.tool_calls:
            variables["tool_calls"] = [self._call(call) for call in message.tool_calls]
        optional = {
            **dict.fromkeys(self.reasoning, message.reasoning),
            "name": message.name,
            "tool_call_id": message.tool_call_id,
        }
        return variables | {key: value for key, value in optional.items() if value}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        try:
            arguments = json.loads(call.arguments)
        except ValueError as error:
            raise InputError(
                f"the arguments of the tool call {call.name} are not JSON: {error}",
                "a JSON object with the arguments by name",
            ) from None
        if self.arguments == "text":
            arguments = call.arguments
        function = {"name": call.name, "arguments": arguments}
        identity = {"id": call.id} if call.id else {}
        return {"type": "function", "function": function, **identity}


FORMS = (
    MessageForm(),
    MessageForm(empty_content=None),
    MessageForm(arguments="text"),
    MessageForm(arguments="text", empty_content=None),
    MessageForm(parts=True),
)
"""the forms that are tried, in this order"""
REASONING_KEYS = (("thinking", "reasoning_content"), ("reasoning",), ("thought",))
"""values of `MessageForm.reasoning` that are tried, in this order"""
