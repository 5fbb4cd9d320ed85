"""A chat template + a way to split text at added tokens -> the tokens and the text that end an answer.

    turn_ends(chat, split_at(["<|im_end|>"]))     # ("<|im_end|>",) where the files do not name it
    ending_text(chat)                             # "### Instruction:" where no token ends an answer

What the template writes after an answer is what a fine-tuned model writes there, whatever tokenizer
and generation_config.json call the eos. Probes show it: a rendered conversation, and the text behind
its answer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edgeft.errors import InputError, TemplateLimitError
from edgeft.records import Message, ToolCall
from edgeft.tokenizer.hf_files import eos_ids, id_to_token
from edgeft.tokenizer.message_form import FORMS
from edgeft.tokenizer.template_probe import Template

Pieces = Sequence[tuple[str, bool]]
"""(text, whether it is one added token), in order"""
Split = Callable[[str], Pieces]

QUESTION, ANSWER, NEXT = "qQUESTIONq", "qANSWERq", "qNEXTq"
"""contents of the turns of a probe"""
ANSWERED = (Message("user", QUESTION), Message("assistant", ANSWER))
SPACES = " \t\r\n\u2581"
"""characters that a token of white space consists of; U+2581 is SentencePiece's space"""


def turn_ends(chat: Template, split: Split) -> tuple[str, ...]:
    """The tokens that the template writes after an answer and that its stops lack.

    A template that refuses the probes, or does not end, has none: it says so where it is used.
    """
    try:
        return _turn_ends(chat, split)
    except TemplateLimitError:
        return ()


def _turn_ends(chat: Template, split: Split) -> tuple[str, ...]:
    end = _answer_end(chat, split)
    ends = (end,) if end else ()
    calls_end = _tool_calls_end(chat, split, {*chat.stops, *ends})
    return (*ends, calls_end) if calls_end else ends


def split_at(tokens: Iterable[str]) -> Split:
    """How a tokenizer with these added tokens splits a text: at the longest first."""
    texts = tuple(filter(None, tokens))

    def split(text: str) -> Pieces:
        present = sorted((token for token in texts if token in text), key=len, reverse=True)
        if not present:
            return [(text, False)] if text else []
        pattern = "|".join(map(re.escape, present))
        parts = re.split(f"({pattern})", text)
        return [(part, index % 2 == 1) for index, part in enumerate(parts) if part]

    return split


def stop_ids(chat: Template, folder: Path) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: those that the folder's files name, then the template's."""
    ids = {text: token for token, text in id_to_token(folder).items()}
    ends = (ids[stop] for stop in chat.stops if stop in ids)
    return tuple(dict.fromkeys([*eos_ids(folder), *ends]))


def ending_text(chat: Template) -> str:
    """The first line that ends an answer where no stop does; "" where one does or nothing is known."""
    last, inner = _after_answer(chat)
    texts = [text for text in (inner, last) if text]
    if any(stop in text for stop in chat.stops for text in texts):
        return ""
    return next((text.split("\n")[0] for text in map(str.strip, texts) if text), "")


def _answer_end(chat: Template, split: Split) -> str:
    """The first token after an answer, "" where the template has none or a stop is among them.

    What the last turn and an earlier one have in common counts most: Phi-3's template writes the eos
    after the last turn only. Where nothing ends a turn, the beginning of the next one does (GLM).
    """
    last, inner = (split(text) for text in _after_answer(chat))
    pairs = zip(last, inner, strict=False)
    shared = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if _ignores_generation_prompt(chat):
        last = []  # it may be the beginning of another answer
    begins_turn = [] if inner and _is_text(inner[0]) else inner
    for pieces in (shared, last, begins_turn):
        if tokens := _tokens(pieces):
            return "" if set(tokens) & set(chat.stops) else tokens[0]
    return ""


def _tool_calls_end(chat: Template, split: Split, stops: set[str]) -> str:
    """The token that ends a turn of tool calls, where none of `stops` does: the last of the turn.

    A token that also stands between two calls ends a call, not the turn.
    """
    calls = (ToolCall("qFIRSTq", "{}", "call00001"), ToolCall("qSECONDq", "{}", "call00002"))
    turn = Message("assistant", "", tool_calls=calls)
    text = _render(chat, (Message("user", QUESTION), turn))
    between, second, after = text.rpartition("qFIRSTq")[2].partition("qSECONDq")
    tokens = _tokens(split(after))
    if not second or not tokens or set(tokens) & stops or tokens[-1] in between:
        return ""
    if _ignores_generation_prompt(chat) or after.rpartition(tokens[-1])[2].strip():
        return ""
    return tokens[-1]


def _ignores_generation_prompt(chat: Template) -> bool:
    """Whether a conversation ends the same with the beginning of the next answer as without."""
    return _render(chat, ANSWERED) == _render(chat, ANSWERED, generation_prompt=True)


def _after_answer(chat: Template) -> tuple[str, str]:
    """The text behind an answer: of the last turn, and of an earlier one up to the next question."""
    last = _render(chat, ANSWERED).rpartition(ANSWER)[2]
    conversation = _render(chat, (*ANSWERED, Message("user", NEXT)))
    inner, question, _ = conversation.partition(ANSWER)[2].partition(NEXT)
    return last, inner if question else ""


def _tokens(pieces: Pieces) -> list[str]:
    """The added tokens, without those of white space (Gemma, Pythia), which answers hold as well."""
    return [text for text, is_token in pieces if is_token and text.strip(SPACES)]


def _is_text(piece: tuple[str, bool]) -> bool:
    text, is_token = piece
    return not is_token and bool(text.strip(SPACES))


def _render(chat: Template, messages: Sequence[Message], generation_prompt: bool = False) -> str:
    """The text in the first form of messages that the template honours; "" where there is none."""
    words = [message.content for message in messages]
    words += [call.name for message in messages for call in message.tool_calls]
    for form in FORMS:
        try:
            text = chat.render_form(messages, form, generation_prompt)
        except TemplateLimitError:
            raise
        except InputError:
            continue
        if all(word in text for word in words):
            return text
    return ""
