"""The turns of a row, in the words of many programs -> messages (`Message`).

messages([{"from": "human", "value": "lamp on"}, {"from": "gpt", "value": "done"}], ignored)

Tool rounds have either OpenAI's `tool_calls` and the role `tool`, or the roles `function_call` and
`observation` of LLaMA-Factory.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

from edgeft.data.fields import Fields, RowError, answer_text, is_empty, json_text, parsed
from edgeft.records import Message, ToolCall

CALL = "call"
"""a turn that is nothing but a call of a function"""
WORDS = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "input"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "output", "ai", "bing",
                  "bard"),
    "tool": ("tool", "function", "observation", "ipython", "environment", "tool_response",
             "tool_result", "function_response"),
    CALL: ("function_call", "tool_call"),
}  # fmt: skip
"""role of a `Message` -> the words for it in data files, in any case"""
ROLES = {word: role for role, words in WORDS.items() for word in words}
ROLE_KEYS = ("role", "from", "author")
CONTENT_KEYS = ("content", "value", "text", "parts")
WITH_ARTICLE = {"system": "a system turn", "user": "a user turn", "tool": "a tool turn",
                "assistant": "an assistant turn"}  # fmt: skip
LEARNED_KEYS = ("weight", "train", "training", "train_on_turn", "loss", "loss_scale")
"""whether a turn is learned: OpenAI and mistral-finetune, Axolotl, ms-swift"""
REFUSED_KEYS = {
    "train_detail": "edgeft learns whole answers: split the turn",
    "training_detail": "edgeft learns whole answers: split the turn",
    "mask": "programs read it either way: write weight 0 for a turn that is not learned",
} | dict.fromkeys(
    ("image", "images", "video", "videos", "audio", "audios"), "edgeft reads text only"
)
"""key of a turn that would change what is learned -> the remedy"""
TEXT_PARTS = ("text", "input_text", "output_text")


def messages(turns: Any, ignored: collections.Counter[str]) -> list[Message]:
    """The messages of a list of turns: objects, or texts of the user and the assistant by turns.

    `ignored` counts the keys of turns that nobody reads. RowError for what has no meaning.
    """
    if not isinstance(turns, list) or not turns:
        raise RowError("the conversation is empty or not a list")
    if all(isinstance(turn, str) for turn in turns):
        pairs = zip(turns, ("user", "assistant") * len(turns), strict=False)
        turns = [{"role": role, "content": content} for content, role in pairs]
    result: list[Message] = []
    before = ""
    for turn in itertools.chain.from_iterable(map(_parts_of_pair, turns)):
        role, message = _message(turn, ignored)
        if role == "tool" and before not in ("assistant", CALL, "tool"):
            raise RowError("a tool turn follows no turn of the assistant")
        if role == before == CALL:  # several calls at once
            calls = (*result[-1].tool_calls, *message.tool_calls)
            result[-1] = dataclasses.replace(result[-1], tool_calls=calls)
        else:
            result.append(message)
        before = role
    return result


def _parts_of_pair(turn: Any) -> list[dict[str, Any]]:
    """A pair of ms-swift or XTuner, such as {"human": …, "assistant": …}, as its turns."""
    if not isinstance(turn, dict):
        raise RowError("a turn is not an object")
    if turn and not any(key in turn for key in ROLE_KEYS) and all(key in ROLES for key in turn):
        return [
            {"role": role, "content": text} for role, text in turn.items() if not is_empty(text)
        ]
    return [turn]


def _message(turn: dict[str, Any], ignored: collections.Counter[str]) -> tuple[str, Message]:
    """(role, or CALL; the message)."""
    fields = Fields(turn)
    for key in fields.holding(REFUSED_KEYS):
        raise RowError(f"a turn has {key}", REFUSED_KEYS[key])
    word = fields.first(*ROLE_KEYS)
    role = ROLES.get(word.strip().lower()) if isinstance(word, str) else None
    if role is None:
        raise RowError(f"unknown role {repr(word)[:60]}", f"known: {', '.join(sorted(ROLES))}")
    learned = _learned(fields)
    content, reasoning = _content(fields, role, str(word))
    message = Message("assistant" if role == CALL else role, content)
    if role == CALL:
        calls = _calls(parsed(content, f"the {word} turn"))
        if not calls:
            raise RowError(f"a {word} turn has no call", '{"name": …, "arguments": {…}}')
        message = dataclasses.replace(message, content="", tool_calls=calls)
    elif role == "assistant":
        calls = _calls(parsed(fields.first("tool_calls"), "tool_calls"))
        calls += _calls(parsed(fields.first("function_call"), "function_call"))
        thoughts = answer_text(
            fields.first("reasoning_content", "reasoning", "thinking"), "the reasoning"
        )
        message = dataclasses.replace(message, tool_calls=calls, reasoning=thoughts or reasoning)
    elif role == "tool":
        name, call_id = fields.first("name"), fields.first("tool_call_id")
        message = dataclasses.replace(
            message,
            name=answer_text(name, "name"),
            tool_call_id=answer_text(call_id, "tool_call_id"),
        )
    if message.role == "assistant":
        message = dataclasses.replace(message, learned=learned is not False)
    elif learned:
        ignored[f"weight or train of {WITH_ARTICLE[role]}"] += 1
    ignored.update(f"{key} of {WITH_ARTICLE.get(role, 'a call')}" for key in fields.unread)
    return role, message


def _learned(fields: Fields) -> bool | None:
    """Whether the turn is learned; None where it does not say."""
    values = [fields.first(key) for key in LEARNED_KEYS]
    values = [value for value in values if value is not None]
    for value in values:
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise RowError(f"a turn has the weight {str(value)[:40]}", "0 or 1, false or true")
    if len({bool(value) for value in values}) > 1:
        raise RowError("a turn says both that it is learned and that it is not")
    return bool(values[0]) if values else None


def _content(fields: Fields, role: str, word: str) -> tuple[str, str]:
    """(content, reasoning) of a turn. RowError without a text, where the turn needs one."""
    content = fields.first(*CONTENT_KEYS)
    if role in ("tool", CALL) and not isinstance(content, str) and not _is_parts(content):
        return ("" if content is None else json_text(content)), ""
    if isinstance(content, (list, dict)):
        return joined_parts(content)
    if content is None:
        has_text = any(isinstance(fields.raw.get(key), str) for key in fields.raw if
                       key.strip().lower() in CONTENT_KEYS)  # fmt: skip
        calls = fields.holding(("tool_calls", "function_call"))
        if not (has_text or role == "assistant" and calls):
            raise RowError(f"a {word} turn has no text")
        return "", ""
    return answer_text(content, f"the content of a {word} turn"), ""


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") in TEXT_PARTS for part in content
    )


def joined_parts(content: Any) -> tuple[str, str]:
    """(text, reasoning) of a content in parts: OpenAI's list, Bedrock's, or Gemini's object."""
    if isinstance(content, dict):
        content = content.get("parts", [content])
    texts, thoughts = [], []
    for part in content if isinstance(content, list) else [content]:
        part = {"text": part} if isinstance(part, str) else part
        if not isinstance(part, dict):
            raise RowError(f"a part of a content is {type(part).__name__}, not text")
        name = part.get("type")
        if name == "thinking" and isinstance(part.get("thinking"), str):
            thoughts.append(part["thinking"])
        elif name in (None, *TEXT_PARTS) and isinstance(part.get("text"), str):
            others = [key for key, value in part.items()
                      if key not in ("type", "text") and not is_empty(value)]  # fmt: skip
            if others and name is None:
                raise RowError(f"a part of a content has {', '.join(others)} beside its text")
            texts.append(part["text"])
        elif name in TEXT_PARTS:
            raise RowError("a part of a content has no text")
        else:
            what = str(name or ", ".join(map(str, part)))[:60]
            raise RowError(f"a part of a content is {what}", "edgeft reads text only")
    return "".join(texts), "".join(thoughts)


def _calls(value: Any) -> tuple[ToolCall, ...]:
    """The calls of a list, or of one object, as OpenAI, LLaMA-Factory or trl write them."""
    if is_empty(value):
        return ()
    return tuple(_call(entry) for entry in (value if isinstance(value, list) else [value]))


def _call(entry: Any) -> ToolCall:
    if not isinstance(entry, dict):
        raise RowError("a call is not an object", '{"name": …, "arguments": {…}}')
    function = entry.get("function") if isinstance(entry.get("function"), dict) else entry
    assert isinstance(function, dict)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowError("a call has no name", '{"name": …, "arguments": {…}}')
    arguments = next(
        (function[key] for key in ("arguments", "parameters", "args") if not
         is_empty(function.get(key))), "{}",
    )  # fmt: skip
    as_text = arguments if isinstance(arguments, str) else json_text(arguments)
    if not isinstance(_json_or_none(as_text), dict):
        raise RowError(f"the arguments of the call of {name} are not a JSON object")
    call_id = entry.get("id")
    return ToolCall(name, as_text, call_id if isinstance(call_id, str) else "")


def _json_or_none(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def calls_in(value: Any) -> tuple[ToolCall, ...]:
    """The calls of an answer that is a list of {name, arguments} (xLAM's `answers`), else none."""
    if isinstance(value, str):
        value = _json_or_none(value)
    entries: Sequence[Any] = value if isinstance(value, list) else []
    if entries and all(isinstance(e, dict) and set(e) == {"name", "arguments"} for e in entries):
        return _calls(entries)
    return ()


def tools(value: Any) -> tuple[str, ...]:
    """A column `tools` or `functions`, a list or its JSON -> each tool as OpenAI's JSON."""
    value = parsed(value, "tools")
    if is_empty(value):
        return ()
    if not isinstance(value, list):
        raise RowError("tools is not a list", "as OpenAI's: [{type: function, function: {…}}]")
    return tuple(json_text(_tool(entry)) for entry in value)


def _tool(entry: Any) -> dict[str, Any]:
    """A tool as OpenAI writes it; LLaMA-Factory and `functions` leave the outer object out."""
    entry = parsed(entry, "a tool")
    if not isinstance(entry, dict):
        raise RowError("a tool is not an object")
    function = entry.get("function", entry)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("a tool has no name", '{"name": …, "description": …, "parameters": {…}}')
    if "function" in entry:
        return entry
    function = {k: v for k, v in function.items() if k not in ("type", "input_schema")}
    if "input_schema" in entry:  # Anthropic's name for the parameters
        function.setdefault("parameters", entry["input_schema"])
    return {"type": "function", "function": function}
