"""The text of an answer -> its reasoning, its text and its tool calls, whole or as it comes.

    form = AnswerForm.of(chat, prompt, calls=call_format(chat))
    form.parts("<think>why</think>Because.")       # AnswerParts("why", "Because.", ())

The tags of a reasoning part are those that the chat template knows. llama-server and vLLM split
answers the same way, into `reasoning_content`, `content` and `tool_calls`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from edgeft.errors import InputError
from edgeft.records import ToolCall, calls_text
from edgeft.tokenizer.call_arguments import Schema
from edgeft.tokenizer.reasoning import REASONING_TAGS, opening
from edgeft.tokenizer.template_probe import Template
from edgeft.tokenizer.tool_calls import CallFormat, call_format, functions_of, overlap


@dataclass(frozen=True)
class AnswerParts:
    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class AnswerForm:
    """How the model of a template writes answers to one prompt."""

    tag: str = ""
    """beginning of a reasoning part; "" = there is none"""
    closing_tag: str = ""
    opened: bool = False
    """the prompt ends within the reasoning part"""
    calls: CallFormat | None = None
    """None = no calls are looked for"""
    tools: Mapping[str, Schema] = field(default_factory=dict)
    """the parameters of each function by its name"""

    @classmethod
    def of(
        cls,
        chat: Template,
        prompt: str,
        calls: CallFormat | None = None,
        tools: Mapping[str, Schema] | None = None,
    ) -> Self:
        """For answers after this prompt. A prompt that closes the reasoning part leaves none."""
        end = opening(prompt)
        tag, closing_tag = end.tag, end.closing_tag
        if not tag:
            known = ((one, other) for one, other in REASONING_TAGS.items() if other in chat.source)
            tag, closing_tag = next(known, ("", ""))
        if end.closed:
            tag = closing_tag = ""
        return cls(tag, closing_tag, bool(end.tag) and not end.closed, calls, tools or {})

    def parts(self, text: str, final: bool = True) -> AnswerParts:
        """Not `final`: text that may belong to another part is left out."""
        reasoning, rest = self._reasoning(text, final)
        if rest is None:
            return AnswerParts(reasoning)
        calls: list[ToolCall] = []
        if self.calls:
            rest, calls = self.calls.read(rest, self.tools, final)
            if not final and not calls:  # white space before a call is not part of the text
                rest = rest.rstrip()
        return AnswerParts(reasoning, rest, tuple(calls))

    def _reasoning(self, text: str, final: bool) -> tuple[str, str | None]:
        """(reasoning, the text behind it); None while it goes on."""
        if not self.tag:
            return "", text
        inside = text.lstrip()
        if inside.startswith(self.tag):
            inside = inside.removeprefix(self.tag)
        elif not self.opened:
            is_beginning = self.tag.startswith(inside) and not final
            return "", (None if is_beginning else text)
        elif self.tag.startswith(inside) and not final:
            return "", None
        thought, closing, rest = inside.partition(self.closing_tag)
        if closing:
            return thought.strip(), rest.lstrip() if final or rest.strip() else None
        if not final:
            thought = thought[: len(thought) - overlap(thought, self.closing_tag)]
        return thought.strip(), None


def with_calls_read(chat: Template, prompt: str, tools: Sequence[str], text: str) -> str:
    """The calls of an answer as `calls_text` writes them; an answer without calls stays its text.

    InputError for a template whose calls are in a form that is not understood.
    """
    form = call_format(chat)
    if form is None:
        problem = "the tool calls of the chat template are in a form that is not understood"
        raise InputError(problem, "another --scorer")
    schemas = {str(one.get("name")): one.get("parameters") or {} for one in functions_of(tools)}
    parts = AnswerForm.of(chat, prompt, form, schemas).parts(text)
    return calls_text(parts.calls) if parts.calls else text
