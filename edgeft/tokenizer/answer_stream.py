"""The text of an answer as it comes -> what each piece adds to its reasoning, its text and its tool calls.

    stream = AnswerStream(form)
    stream.push("<think>why")          # ("why", "", [])
    stream.push("</think>Because.")    # ("", "Because.", [])

What was given is not read again: only a call is, from its marker on, because its arguments may go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from edgeft.records import ToolCall
from edgeft.tokenizer.answer_parts import AnswerForm, AnswerParts
from edgeft.tokenizer.tool_calls import overlap


class AnswerStream:
    """Splits an answer as `AnswerForm.parts` does, while it comes."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._pending = ""
        """text that was not given yet, or that belongs to calls"""
        self._part: Literal["opening", "reasoning", "gap", "text"] = (
            "opening" if form.tag else "text"
        )
        """where `_pending` begins"""
        self._is_begun = False
        """some reasoning was given"""
        self._is_plain = False
        """no call can follow, since calls of this form stand at the beginning"""
        self._given = AnswerParts()
        """of `_pending`"""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Those whose beginning was given."""
        return self._given.calls

    def push(self, text: str, final: bool = False) -> tuple[str, str, list[tuple[int, str, str]]]:
        """(more reasoning, more text, [(index of a call, its name where it is new, more arguments)])."""
        self._pending += text
        reasoning = "" if self._part == "text" else self._reasoning(final)
        if self._part != "text":
            return reasoning, "", []
        return reasoning, *self._content(final)

    def _reasoning(self, final: bool) -> str:
        form, given = self._form, ""
        if self._part == "opening":
            inside = self._pending.lstrip()
            if inside.startswith(form.tag):
                self._pending, self._part = inside.removeprefix(form.tag), "reasoning"
            elif form.tag.startswith(inside) and not final:
                return ""
            else:
                self._part = "reasoning" if form.opened else "text"
        if self._part == "reasoning":
            text = self._pending if self._is_begun else self._pending.lstrip()
            thought, closing, rest = text.partition(form.closing_tag)
            if not (closing or final):
                thought = thought[: len(thought) - overlap(thought, form.closing_tag)]
            given = thought.rstrip()
            self._is_begun |= bool(given)
            self._pending = rest if closing else text[len(given) :]
            self._part = "gap" if closing else "reasoning"
        if self._part == "gap":
            self._pending = self._pending.lstrip()
            if self._pending or final:
                self._part = "text"
        return given

    def _content(self, final: bool) -> tuple[str, list[tuple[int, str, str]]]:
        form, content = self._form.calls, self._pending
        if form is None:
            self._pending = ""
            return content, []
        calls: list[ToolCall] = []
        if not self._is_plain:
            content, calls = form.read(content, self._form.tools, final)
        if not final and not calls:  # white space before a call is not part of the text
            content = content.rstrip()
        before, self._given = self._given, AnswerParts("", content, tuple(calls))
        if not final and not calls:
            self._pending, self._given = self._pending[len(content) :], AnswerParts()
            self._is_plain |= bool(content) and not form.marker
        return _more(before.content, content), list(_more_of_calls(before.calls, calls))


def _more_of_calls(
    before: tuple[ToolCall, ...], now: list[ToolCall]
) -> Iterator[tuple[int, str, str]]:
    for index, call in enumerate(now):
        is_new = index >= len(before)
        more = _more("" if is_new else before[index].arguments, call.arguments)
        if more or is_new:
            yield index, call.name if is_new else "", more


def _more(before: str, now: str) -> str:
    return now[len(before) :] if now.startswith(before) else ""
