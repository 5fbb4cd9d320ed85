"""The messages and tools of a chat's body -> those of a prompt, and the grammar of its answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeft.errors import InputError
from edgeft.records import Message, ToolCall
from edgeft.runtimes.grammar import grammar_of
from edgeft.runtimes.protocol import Runtime
from edgeft.runtimes.tool_grammar import Choice, call_grammar, reasoned_grammar
from edgeft.server.schemas import Call, CalledFunction, Chat, ChatMessage, Function, ToolChoice
from edgeft.tokenizer.answer_parts import AnswerForm
from edgeft.tokenizer.tool_calls import call_format

ROLES = {"developer": "system", "function": "tool"}
NO_PARAMETERS = {"type": "object", "properties": {}}
"""of a function that names none"""


@dataclass(frozen=True)
class Toolbox:
    """The functions that an answer may call, and whether it has to."""

    functions: tuple[Function, ...] = ()
    required: bool = False
    several: bool = True

    @classmethod
    def of(cls, body: Chat) -> Toolbox:
        """InputError for a choice that fits no function."""
        functions, choice = body.offered, body.tool_choice or body.function_call or "auto"
        names = [function.name for function in functions]
        if len(set(names)) < len(names):
            raise InputError("two tools have the same name")
        if choice == "none":
            return cls()
        several = body.parallel_tool_calls is not False and not body.functions
        if choice == "auto":
            return cls(tuple(functions), several=several)
        if not functions:
            raise InputError("tool_choice asks for a call, and there are no tools")
        if choice == "required":
            return cls(tuple(functions), required=True, several=several)
        name = choice.function.name if isinstance(choice, ToolChoice) else choice.name
        if name not in names:
            raise InputError(f"tool_choice names {name!r}, which is none of the tools")
        named = tuple(function for function in functions if function.name == name)
        return cls(named, required=True, several=False)

    @property
    def is_strict(self) -> bool:
        return self.required or any(function.strict for function in self.functions)


def prompt_tools(body: Chat) -> tuple[str, ...]:
    """The functions as `Example.tools` has them; none where none may be called."""
    if "none" in (body.tool_choice, body.function_call):
        return ()
    return tuple(map(_tool_text, body.offered))


def _tool_text(function: Function) -> str:
    description = {} if function.description is None else {"description": function.description}
    parameters = NO_PARAMETERS if function.parameters is None else function.parameters
    entry = {"name": function.name, **description, "parameters": parameters}
    return json.dumps({"type": "function", "function": entry}, ensure_ascii=False)


def prompt_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """InputError where the arguments of a call are not a JSON object."""
    turns: list[Message] = []
    names: dict[str, str] = {}
    """id of a call -> the function"""
    for message in messages:
        calls = [_call(one) for one in message.tool_calls or ()]
        if message.function_call:
            calls.append(_call(Call(function=message.function_call)))
        names |= {call.id: call.name for call in calls if call.id}
        role = ROLES.get(message.role, message.role)
        turn = Message(role, message.text)
        if role == "assistant":
            thoughts = message.reasoning_content or ""
            turn = dataclasses.replace(turn, tool_calls=tuple(calls), reasoning=thoughts)
        elif role == "tool":
            call_id = message.tool_call_id or ""
            name = message.name or names.get(call_id, "")
            turn = dataclasses.replace(turn, name=name, tool_call_id=call_id)
        turns.append(turn)
    return turns


def _call(call: Call) -> ToolCall:
    function: CalledFunction = call.function
    arguments = function.arguments or "{}"
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise InputError(f"the arguments of the call of {function.name} are not a JSON object")
    return ToolCall(function.name, arguments, call.id or "")


def answer_form(toolbox: Toolbox, prompt: str, runtime: Runtime) -> AnswerForm:
    """InputError where the calls of the chat template are in a form that is not understood."""
    calls = call_format(runtime.chat) if toolbox.functions else None
    if toolbox.functions and calls is None:
        problem = (
            "the tool calls of this model's chat template are in a form that is not understood"
        )
        raise InputError(problem, "response_format asks for JSON instead")
    tools = {one.name: _parameters(one) for one in toolbox.functions}
    return AnswerForm.of(runtime.chat, prompt, calls, tools)


def _parameters(function: Function) -> dict[str, Any]:
    schema = NO_PARAMETERS if function.parameters is None else function.parameters
    return schema if "type" in schema else {"type": "object", **schema}


def answer_grammar(toolbox: Toolbox, form: AnswerForm, rule: str | None, runtime: Runtime) -> str:
    """What an answer has to follow, "" for any text. `rule`: of its text, such as `response_format` asks.

    InputError where the schema of a tool that has to be followed cannot be.
    """
    special = getattr(runtime, "special_tokens", {})
    ends = getattr(runtime, "eos_ids", ())
    if toolbox.functions:
        try:
            choice = Choice(toolbox.required, toolbox.several, rule)
            return call_grammar(form, special, ends, choice)
        except InputError:
            if toolbox.is_strict or rule is not None:
                raise
            return ""
    if rule is None:
        return ""
    if form.opened:
        return reasoned_grammar(form, special, ends, rule)
    return grammar_of(rule)
