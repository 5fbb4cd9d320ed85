"""A conversation + its chat template -> parts of text, each learned or not (`spans`).

    spans(chat, [Message("user", "hi"), Message("assistant", "hello")])
    # [('<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n', False), ('hello<|im_end|>', True)]

The learned part is what the model has to write after the generation prompt that it sees in use: the
assistant's text with the token that ends its turn, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Sequence

from edgeft.errors import InputError
from edgeft.progress import say_once
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.dialogue import Dialogue, fit
from edgeft.tokenizer.message_form import MessageForm
from edgeft.tokenizer.reasoning import REASONING_TAGS, Opening, opening
from edgeft.tokenizer.template_probe import reasoning_keys

Parts = list[tuple[str, bool]]
"""(text, whether it is learned), in order"""

ONLY_LAST = (
    "the chat template writes earlier answers of a conversation in another way than the last one, "
    "so only the last answer of each conversation is learned"
)
NO_REASONING = (
    "the chat template has no place for reasoning: it is left out; to have it learned, write it into "
    "the answer as <think>…</think>"
)
CLOSED_REASONING = (
    "the chat template's generation prompt holds an empty reasoning part: the reasoning of the "
    "answers is left out"
)
NO_PROMPT = (
    "an answer before the first user turn is not learned: the chat template has no prompt for it"
)


def spans(chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[str] = ()) -> Parts:
    """A conversation as (text, whether it is an answer to learn) parts, in order.

    An answer includes the token that ends its turn. Text that a template writes after that token (a
    newline in ChatML) belongs to the next prompt, because a model never generates it. Some
    templates rewrite earlier turns when a later one comes, for example to drop reasoning; then only
    the last answer is learned, and what comes after it is left out. InputError where not even that
    one follows its generation prompt.
    """
    return sequences(chat, messages, tools)[-1]


def sequences(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[str] = ()
) -> list[Parts]:
    """The parts of `spans`, and, before them, those of earlier answers that need their own prompt.

    A template that rewrites earlier turns writes a tool call in another way once its result is
    there. So every answer of a conversation with tool calls is then learned after its own prompt.
    """
    turns = [_with_reasoning_in_place(chat, message) for message in messages]
    dialogues = [fit(chat, turns, tools)]
    roles = [turn.role for turn in dialogues[0].messages]
    if ("assistant", "assistant") in itertools.pairwise(roles):
        dialogues += _joined(chat, turns, tools)
    for cut in (_all_answers, _each_answer):
        for dialogue in dialogues:
            if parts := cut(chat, dialogue):
                for note in dialogue.notes:
                    say_once(note)
                return parts
    raise InputError(
        "the chat template does not put the answer after its generation prompt",
        "fix the template of the base model",
    )


def _joined(chat: ChatTemplate, turns: Sequence[Message], tools: Sequence[str]) -> list[Dialogue]:
    """The dialogue with the assistant's turns in a row joined; none where that cannot be."""
    try:
        return [fit(chat, turns, tools, join=True)]
    except InputError:
        return []


def _with_reasoning_in_place(chat: ChatTemplate, message: Message) -> Message:
    """The message with its reasoning where the template reads it.

    A generation prompt that opens a reasoning part wants it in a field of its own; one that holds a
    closed part wants none. Else it stays where the message has it, if the template reads that.
    """
    reasoning, content = split_reasoning(message)
    if message.role != "assistant" or not reasoning:
        return message
    opened, keys = opening(_generation_prompt(chat)), reasoning_keys(chat)
    if opened.closed:
        say_once(CLOSED_REASONING)
        return dataclasses.replace(message, reasoning="", content=content)
    if opened.tag and keys:
        return dataclasses.replace(message, reasoning=reasoning, content=content)
    if not message.reasoning or keys:
        return message
    if not opened.tag and "</think>" not in chat.source:
        say_once(NO_REASONING)
        return dataclasses.replace(message, reasoning="")
    content = f"<think>\n{reasoning}\n</think>\n\n{content}"
    return dataclasses.replace(message, reasoning="", content=content)


@functools.lru_cache(maxsize=16)
def _generation_prompt(chat: ChatTemplate) -> str:
    """The prompt of a short question; "" where the template refuses it."""
    try:
        return chat.render_form([Message("user", "question")], MessageForm())
    except InputError:
        return ""


def _all_answers(chat: ChatTemplate, dialogue: Dialogue) -> list[Parts] | None:
    """Every answer after its prompt; None where the text of a prompt does not begin a later text."""
    parts: Parts = []
    written = ""
    for i, message in enumerate(dialogue.messages):
        if message.role != "assistant":
            continue
        prompt = _prompt(chat, dialogue, i)
        if prompt is None:
            continue
        turn = _text(chat, dialogue, i + 1)
        follows = prompt.startswith(written) and turn.startswith(prompt)
        if not follows or _goes_on(chat, dialogue, i, prompt):
            return None
        end = _turn_end(turn, len(prompt), split_reasoning(message)[1], chat.stops)
        answer = turn[len(prompt) : end]
        if message.learned and not _holds(answer, message):
            return None
        parts += [(prompt[len(written) :], False), (answer, message.learned)]
        written = turn[:end]
    whole = _text(chat, dialogue, len(dialogue.messages))
    return [parts] if parts and whole.startswith(written) else None


def _each_answer(chat: ChatTemplate, dialogue: Dialogue) -> list[Parts] | None:
    """The last answer that is to be learned, after its prompt, without the turns behind it.

    With tool calls, each answer that is to be learned.
    """
    answers = [i for i, message in enumerate(dialogue.messages) if message.role == "assistant"]
    learned = [i for i in answers if dialogue.messages[i].learned] or answers[-1:]
    last = _answer(chat, dialogue, learned[-1])
    if last is None or len(learned) == 1:
        return None if last is None else [last]
    if any(dialogue.messages[i].tool_calls for i in learned):
        earlier = [_answer(chat, dialogue, i) for i in learned[:-1]]
        parts = [answer for answer in earlier if answer]
        if len(parts) == len(earlier):
            return [*parts, last]
    say_once(ONLY_LAST)
    return [last]


def _answer(chat: ChatTemplate, dialogue: Dialogue, index: int) -> Parts | None:
    """One answer after its prompt."""
    prompt, turn = _prompt(chat, dialogue, index), _text(chat, dialogue, index + 1)
    if prompt is None or _goes_on(chat, dialogue, index, prompt):
        return None
    answer = _answer_after(prompt, turn, chat, dialogue, index)
    return None if answer is None else [(prompt, False), (answer, dialogue.messages[index].learned)]


def _prompt(chat: ChatTemplate, dialogue: Dialogue, before: int) -> str | None:
    """The prompt for the answer at index `before`; None where a template needs a turn before it."""
    try:
        return chat.render_form(dialogue.messages[:before], dialogue.form, True, dialogue.tools)
    except InputError:
        if any(message.role == "user" for message in dialogue.messages[:before]):
            raise
        say_once(NO_PROMPT)
        return None


def _text(chat: ChatTemplate, dialogue: Dialogue, size: int) -> str:
    """The first `size` messages without a generation prompt."""
    return chat.render_form(dialogue.messages[:size], dialogue.form, False, dialogue.tools)


def _goes_on(chat: ChatTemplate, dialogue: Dialogue, i: int, prompt: str) -> bool:
    """Whether the answer follows another one and the template writes no prompt between them."""
    follows = i > 0 and dialogue.messages[i - 1].role == "assistant"
    return follows and prompt == _text(chat, dialogue, i)


def _holds(text: str, message: Message) -> bool:
    """Whether a learned part holds all that the answer says: reasoning, text and calls."""
    pieces = [message.reasoning, message.content, *(call.name for call in message.tool_calls)]
    return all(_squeezed(piece) in _squeezed(text) for piece in pieces)


def _squeezed(text: str) -> str:
    """Text without white space, which templates add and strip, and without reasoning tags."""
    for tags in REASONING_TAGS.items():
        for tag in tags:
            text = text.replace(tag, "")
    return "".join(text.split())


def _turn_end(text: str, start: int, answer: str, stops: Sequence[str]) -> int:
    """Where the turn with this answer ends: behind the first stop that follows the answer."""
    after = text.find(answer.strip(), start)
    after = start if after < 0 else after + len(answer.strip())
    ends = [text.find(stop, after) + len(stop) for stop in stops if text.find(stop, after) >= 0]
    return min(ends, default=len(text))


def _answer_after(
    prompt: str, turn: str, chat: ChatTemplate, dialogue: Dialogue, index: int
) -> str | None:
    """What the model has to write after the prompt; None where the texts have nothing in common.

    Where the template does not write the turn that way (it drops the reasoning, or moves a system
    text), the answer is put together: reasoning and its closing tag, then the rest of the turn.
    """
    message = dialogue.messages[index]
    reasoning, content = split_reasoning(message)
    start = _answer_start(prompt, turn, _text(chat, dialogue, index), content)
    if start is None:
        return None
    rest = turn[start : _turn_end(turn, start, content, chat.stops)]
    answer = rest if turn.startswith(prompt) and _holds(rest, message) else ""
    answer = answer or _with_reasoning(rest, reasoning, opening(prompt), _holds(rest, message))
    return answer if _holds(answer, message) else None


def _answer_start(prompt: str, turn: str, before: str, content: str) -> int | None:
    """Where in the turn the answer begins that follows the prompt.

    `before`: the prompt without the generation prompt. The turn holds the longest possible end of
    the prompt, without its reasoning part and behind the earlier turns.
    """
    opened = opening(prompt)
    for end in (len(prompt), opened.start):
        if turn.startswith(prompt[:end]):
            return end
    shared = len(os.path.commonprefix([before, turn]))
    header = len(prompt) - len(before) if prompt.startswith(before) else 0
    size = _common_end(prompt[: opened.start], turn[shared:])
    if size and size >= min(header, opened.start - len(before)):
        return turn.rfind(prompt[opened.start - size : opened.start]) + size
    # The template goes on within one turn after the result of a tool (Apertus).
    if shared == len(before) and turn[shared:].lstrip().startswith(content.strip()) and content:
        return shared
    return None


def _with_reasoning(rest: str, reasoning: str, opened: Opening, complete: bool) -> str:
    """The rest of the turn, with the reasoning in front and in its tags where the rest lacks it."""
    if opened.closed:
        return rest.removeprefix(opened.tag).removeprefix(opened.closing_tag)
    if complete and not opened.tag:
        return rest
    rest = rest.removeprefix(opened.tag)
    if opened.tag and opened.closing_tag in rest:
        return rest
    if not opened.tag:
        return f"<think>\n{reasoning}\n</think>\n\n{rest.lstrip()}"
    line = "\n" if opened.newline else ""
    rest = rest.lstrip("\n") if line else rest
    return f"{reasoning}{line}{opened.closing_tag}{line * 2}{rest}"


def split_reasoning(message: Message) -> tuple[str, str]:
    """The reasoning of an answer, from its own field or the tags in its content, and the rest."""
    if message.reasoning:
        return message.reasoning.strip(), message.content
    for tag, closing_tag in REASONING_TAGS.items():
        head, closing, rest = message.content.partition(closing_tag)
        if closing and head.lstrip().startswith(tag):
            return head.strip().removeprefix(tag).strip(), rest.strip()
    return "", message.content


def _common_end(prompt: str, turn: str) -> int:
    """Characters of the longest end of the prompt that the turn holds."""
    low, high = 0, len(prompt)
    while low < high:  # if an end of n characters is in the turn, every shorter end is, too
        size = (low + high + 1) // 2
        if prompt[-size:] in turn:
            low = size
        else:
            high = size - 1
    return low
