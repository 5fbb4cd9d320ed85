"""A chat template -> how its model writes tool calls (`CallFormat`), and an answer -> its calls.

    calls = call_format(chat)
    calls.read('<tool_call>\\n{"name": "on", "arguments": {"room": "hall"}}\\n</tool_call>')
    # ("", [ToolCall("on", '{"room": "hall"}')])

The template's own rendering of a call shows the texts around names and arguments, so no family needs
a parser of its own. A template that renders no calls gets `HERMES`, the form of Hermes and Qwen.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeft.errors import InputError
from edgeft.records import Message, ToolCall
from edgeft.tokenizer import template_probe as probe
from edgeft.tokenizer.call_arguments import (
    UNFINISHED,
    Arguments,
    JsonArguments,
    KeywordArguments,
    QuotedArguments,
    Schema,
    TaggedArguments,
)
from edgeft.tokenizer.message_form import FORMS
from edgeft.tokenizer.reasoning import REASONING_TAGS, opening

ID, INDEX = "\ue000", "\ue001"
"""stand for the id of a call and for its number in the texts of a `CallFormat`"""
SLOTS = {ID: r"[\w.:-]{1,64}", INDEX: r"\d{1,3}"}
"""pattern of what stands there"""
NAME = r"([\w.-]{1,128}?)"
PYTHON_TAG = "<|python_tag|>"
"""stands before a call of Llama 3.1 now and then"""
NAME_KEYS, ARGUMENT_KEYS = ("name", "tool_name"), ("arguments", "parameters", "args")


@dataclass(frozen=True)
class CallFormat:
    """The texts around the names and arguments of the calls of one turn."""

    begin: str
    """before the name of the first call"""
    infix: str
    """between a name and its arguments"""
    between: str
    """between arguments and the next name; "" where a turn has one call only"""
    end: str
    """behind the last arguments"""
    arguments: Arguments = field(default_factory=JsonArguments)

    @functools.cached_property
    def marker(self) -> str:
        """The text that begins calls and nothing else; "" where that is the whole of `begin`."""
        begin = self.begin.strip()
        if begin.startswith(("{", "[{")):
            return ""
        match = re.match(r"<[^<>\s]+>|\[[A-Z_]+\]|[^\s{]+", begin)
        return match[0] if match else ""

    @property
    def trigger(self) -> str:
        """The text at which free text ends: a call follows."""
        return self.marker or self.begin.strip()

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The calls as a model writes them. InputError where arguments are not a JSON object."""
        text = ""
        for call in calls:
            before = self.between if text else self.begin
            arguments = self.arguments.write(_object_of(call))
            text += f"{before}{call.name}{self.infix}{arguments}"
        ids = iter([call.id or "call00000" for call in calls])
        numbers = iter(map(str, range(len(calls))))
        text = re.sub(ID, lambda _: next(ids), text + self.end)
        return re.sub(INDEX, lambda _: next(numbers), text)

    def read(
        self, text: str, tools: Mapping[str, Schema] | None = None, final: bool = True
    ) -> tuple[str, list[ToolCall]]:
        """(the text around the calls, the calls).

        `tools`: the parameters of each function by its name; a call without a marker of its own
        counts only with one of these names, where there are any. Not `final`: text that may be the
        beginning of a call is left out, and the arguments of the last call may be unfinished.
        """
        content: list[str] = []
        calls: list[ToolCall] = []
        at = searched = 0
        while start := self._find(text, searched):
            read, end = self._read_calls(text, start, tools or {}, final)
            searched = end if read else max(start.end(), 1)
            if read:
                content.append(text[at : start.start()])
                calls, at = calls + read, end
        rest = text[at:] if final else self._without_beginning(text, at)
        content.append(rest)
        if calls:
            return "".join(content).rstrip(), calls
        return "".join(content), []

    def _find(self, text: str, at: int) -> re.Match[str] | None:
        """Where calls begin from `at` on: at the marker, or else at the beginning of the answer."""
        if self.marker:
            return re.compile(_loose(self.marker)).search(text, at)
        if at:
            return None
        return re.compile(rf"\s*(?:{re.escape(PYTHON_TAG)})?\s*(?=[{{\[])").match(text)

    def _read_calls(
        self, text: str, start: re.Match[str], tools: Mapping[str, Schema], final: bool
    ) -> tuple[list[ToolCall], int]:
        """(calls, where they end); no calls where the text holds something else."""
        calls: list[ToolCall] = []
        opened = self._opened(self.begin, text, start.start() if self.marker else start.end())
        at, end = start.end(), self.end
        while opened or not calls:
            one = self._strict(text, opened, tools, final) if opened else None
            if one is None and not calls:
                one = self._loosely(text, start.end())
                end = re.sub(r"^.*[}\]]", "", self.end, flags=re.DOTALL)  # the rest of the object
            if one is None:
                break
            call, at = one
            if not self.marker and tools and call.name not in tools:
                return [], at
            calls.append(call)
            opened = self._opened(self.between, text, at) if self.between else None
        return calls, _behind(end, text, at, final) if calls else at

    def _opened(self, before: str, text: str, at: int) -> re.Match[str] | None:
        """`before`, a name and the infix at this place."""
        infix = _loose(self.infix.strip()) or r"(?=[^\w\s.-])"
        if isinstance(self.arguments, (JsonArguments, QuotedArguments)):
            infix += r"\s*(?=\{)"
        return re.compile(rf"\s*{_loose(before.strip())}\s*{NAME}\s*{infix}").match(text, at)

    def _strict(
        self, text: str, opened: re.Match[str], tools: Mapping[str, Schema], final: bool
    ) -> tuple[ToolCall, int]:
        """(the call with this beginning, where it ends)."""
        name = opened[1]
        arguments, end = self.arguments.read(text, opened.end(), tools.get(name, {}), final)
        if end == UNFINISHED:
            end = len(text)
            if final and isinstance(self.arguments, JsonArguments):
                # What is no JSON ends where the calls end, if they do.
                cut = re.compile(_loose(self.end.strip())).search(text, opened.end())
                if self.marker and self.end.strip() and cut:
                    arguments, end = text[opened.end() : cut.start()].strip(), cut.start()
        return ToolCall(name, arguments), end

    def _loosely(self, text: str, at: int) -> tuple[ToolCall, int] | None:
        """A call that is an object with other keys or in another order than the template's."""
        brace = re.compile(r"[\s\[]*(?=\{)").match(text, at)
        if not isinstance(self.arguments, JsonArguments) or not brace:
            return None
        try:
            entry, end = json.JSONDecoder().raw_decode(text, brace.end())
        except (ValueError, RecursionError):
            return None
        call = call_in(entry)
        closing = re.compile(r"\s*\]").match(text, end) if "[" in brace[0] else None
        return (call, closing.end() if closing else end) if call else None

    def _without_beginning(self, text: str, at: int) -> str:
        """The text from `at` on, without what may be the beginning of a call."""
        rest = text[at:]
        if not self.marker:
            starts = rest.lstrip()[:1]
            is_open = at == 0 and (starts in ("{", "[") or PYTHON_TAG.startswith(rest.strip()[:14]))
            return "" if is_open else rest
        if found := re.compile(_loose(self.marker)).search(rest):
            return rest[: found.start()]
        held = overlap(rest, self.marker)
        return rest[: len(rest) - held]


def _behind(end: str, text: str, at: int, final: bool) -> int:
    """Where the text goes on behind the end of calls, which may be incomplete."""
    closing = re.compile(rf"\s*{_loose(end.strip())}\s*").match(text, at)
    if closing:
        return closing.end()
    is_beginning = "".join(end.split()).startswith("".join(text[at:].split()))
    return len(text) if is_beginning or not final else at


def _object_of(call: ToolCall) -> dict[str, Any]:
    """The arguments of a call by name."""
    try:
        values = json.loads(call.arguments)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        problem = f"the arguments of the tool call {call.name} are not a JSON object"
        raise InputError(problem, "the arguments by name")
    return values


def call_in(entry: Any) -> ToolCall | None:
    """The call that a JSON object is, as OpenAI, Hermes, Llama and Cohere write it, if it is one."""
    if not isinstance(entry, dict):
        return None
    function = entry.get("function")
    entry = function if isinstance(function, dict) else entry
    name = next((entry[key] for key in NAME_KEYS if isinstance(entry.get(key), str)), None)
    values = [entry[key] for key in ARGUMENT_KEYS if key in entry]
    if not name or (values and not isinstance(values[0], (dict, str))):
        return None
    value = values[0] if values else {}
    arguments = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return ToolCall(name, arguments)


def overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that `word` begins with, but not all of it."""
    lengths = range(min(len(text), len(word) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(word[:n])), 0)


@functools.lru_cache(maxsize=256)
def _loose(text: str) -> str:
    """A pattern of the text with any white space wherever two words or marks meet."""
    pattern = ""
    for i, char in enumerate(text):
        if char.isspace():
            continue
        if i and not (char.isalnum() and text[i - 1].isalnum()):
            pattern += r"\s*"
        pattern += SLOTS.get(char) or re.escape(char)
    return pattern


HERMES = CallFormat(
    '<tool_call>\n{"name": "', '", "arguments": ',
    '}\n</tool_call>\n<tool_call>\n{"name": "', "}\n</tool_call>",
)  # fmt: skip
"""of NousResearch's Hermes and of Qwen: the form where a template has none"""
GRANITE = CallFormat(
    '<|tool_call|>[{"name": "', '", "arguments": ', '}, {"name": "', "}]"
)  # fmt: skip
PHI = dataclasses.replace(GRANITE, end="}]<|/tool_call|>")
LFM = CallFormat("<|tool_call_start|>[", "(", "), ", ")]<|tool_call_end|>", KeywordArguments())
UNRENDERED = {"<|tool_list_start|>": LFM, "<|tool|>": PHI, "<|tool_call|>": GRANITE}
"""word of a template that renders tools and no calls -> the form that its model learned"""

_CITY, _TOWN = "cityqzx", "townqzx"
_FIRST = ToolCall("firstqzx", json.dumps({_CITY: "Parisqzx", "countqzx": 73}), "abcdef001")
_SECOND = ToolCall("secondqzx", json.dumps({_TOWN: "Romeqzx"}), "abcdef002")
_PARAMETERS = {"type": "object", "properties": {_CITY: {"type": "string", "description": "where"}}}
_PROBED = (
    json.dumps({
        "type": "function",
        "function": {"name": "listedqzx", "description": "Looks it up.", "parameters": _PARAMETERS},
    }),
)  # fmt: skip
_ASKED = Message("user", "questionqzx")


def renders_calls(chat: probe.Template) -> bool:
    """Whether the template writes tool calls in some form."""
    features = (probe.CALL, probe.CALL_ALONE)
    return any(probe.honours(chat, feature, form) for form in FORMS for feature in features)


def functions_of(tools: Sequence[str]) -> list[dict[str, Any]]:
    """The functions of `Example.tools`: name, description, parameters; with or without OpenAI's wrapper."""
    entries = [json.loads(tool) for tool in tools]
    return [entry.get("function", entry) for entry in entries]


@functools.lru_cache(maxsize=64)
def call_format(chat: probe.Template) -> CallFormat | None:
    """How the model of a template writes calls. None where they are in a form that is not understood."""
    if not renders_calls(chat):
        return next((form for word, form in UNRENDERED.items() if word in chat.source), HERMES)
    one, two = (_answer(chat, calls) for calls in ((_FIRST,), (_FIRST, _SECOND)))
    found = _format_of(one, two) if one else None
    if found is None or found.read(one)[1] != [_without_id(_FIRST)]:
        return None
    if found.between and found.read(two)[1] != [_without_id(_FIRST), _without_id(_SECOND)]:
        return dataclasses.replace(found, between="")
    return found


def _without_id(call: ToolCall) -> ToolCall:
    return dataclasses.replace(call, id="")


def _answer(chat: probe.Template, calls: tuple[ToolCall, ...]) -> str:
    """What a model writes to call these: the turn behind its prompt, without what ends it; ""
    where the template has no such turn."""
    turns = (_ASKED, Message("assistant", "", calls))
    for form in FORMS:
        for tools in (_PROBED, ()):
            try:
                turn = chat.render_form(turns, form, False, tools)
                prompt = chat.render_form(turns[:1], form, True, tools)
            except InputError:
                continue
            if all(call.name in turn and "Parisqzx" in turn for call in calls):
                answer = turn[_answer_start(prompt, turn) :]
                stops = [answer.find(stop) for stop in chat.stops if stop in answer]
                return answer[: min(stops, default=len(answer))]
    return ""


def _answer_start(prompt: str, turn: str) -> int:
    """Where the answer begins behind its prompt and its reasoning part."""
    head = prompt[: opening(prompt).start]
    at = len(head) if turn.startswith(head) else len(os.path.commonprefix([head, turn]))
    name = turn.find(_FIRST.name, at)
    ends = [turn.rfind(tag, at, name) + len(tag) for tag in REASONING_TAGS.values()
            if turn.rfind(tag, at, name) >= 0]  # fmt: skip
    return max(ends, default=at)


def _format_of(one: str, two: str) -> CallFormat | None:
    """The format by the answers with one call and with two."""
    parts = _parts(one)
    if parts is None:
        return None
    begin, infix, arguments, end = parts
    between = ""
    if _SECOND.name in two:
        written = one.rstrip()[len(begin) + len(_FIRST.name) + len(infix) :].removesuffix(end)
        between = two.partition(written)[2].partition(_SECOND.name)[0]
    begin, infix, between, end = map(_with_slots, (begin, infix, between, end))
    return CallFormat(begin, infix, between, end, arguments)


def _with_slots(text: str) -> str:
    for call in (_FIRST, _SECOND):
        text = text.replace(call.id, ID)
    return re.sub(r"(?<![\w.])\d{1,2}(?![\w.])", INDEX, text)


def _parts(one: str) -> tuple[str, str, Arguments, str] | None:
    """(begin, infix, way of writing arguments, end) of an answer with the first call."""
    begin, name, rest = one.rpartition(_FIRST.name)
    if not name or _FIRST.name in begin or not begin.strip():
        return None
    values = json.loads(_FIRST.arguments)
    for match in re.finditer(r"\{", rest):
        try:
            value, end = json.JSONDecoder().raw_decode(rest, match.start())
        except ValueError:
            continue
        if value == values:
            return begin, rest[: match.start()], JsonArguments(), rest[end:].rstrip()
    if quoted := re.search(rf"\{{{_CITY}:(\S+?)Parisqzx\1,countqzx:73\}}", rest):
        infix, end_text = rest[: quoted.start()], rest[quoted.end() :]
        return begin, infix, QuotedArguments(quoted[1]), end_text.rstrip()
    if words := re.search(rf"{_CITY}=(['\"])Parisqzx\1, countqzx=73", rest):
        infix, end_text = rest[: words.start()], rest[words.end() :]
        return begin, infix, KeywordArguments(), end_text.rstrip()
    return _tagged_parts(begin, rest)


def _tagged_parts(begin: str, rest: str) -> tuple[str, str, Arguments, str] | None:
    slots = re.fullmatch(
        rf"(.*?){_CITY}(.+?)Parisqzx(.+?)countqzx(.+?)73(.+)", rest.rstrip(), re.DOTALL
    )
    if not slots:
        return None
    before, text_begin, gap, value_begin, after = slots.groups()
    tag = gap.rfind("<")
    if tag <= 0 or not before.endswith(gap[tag:].strip()):
        return None
    value_end = gap[:tag].rstrip()
    key_begin = gap[len(value_end) :]
    if not after.startswith(value_end):
        return None
    infix = before[: len(before) - len(gap[tag:])]
    arguments = TaggedArguments(key_begin, text_begin, value_begin, value_end)
    return begin, infix, arguments, after[len(value_end) :]
