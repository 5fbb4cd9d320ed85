"""A conversation -> the text that its chat template writes, with the learned part marked.

marked(example, chat)       # '<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n⟦Hello!<|im_end|>⟧'
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from edgeft.errors import InputError
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.learned_parts import spans

BRACKETS = ("⟦", "⟧")
"""marks around a learned part, where the output is no terminal"""
GREEN = ("\x1b[32m", "\x1b[0m")
"""the same for a terminal"""
SHORT_CHARS = 600
SHORT_LINES = 8
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""control characters -> their pictures: a data file must not steer the terminal"""


def marked(
    example: Example,
    chat: ChatTemplate,
    train_on_inputs: bool = False,
    marks: tuple[str, str] = BRACKETS,
) -> str:
    """The whole conversation as text. InputError where the template refuses it."""
    if example.is_document:
        return marks[0] + shortened(example.answer.translate(CONTROLS)) + marks[1]
    if example.is_prompt:
        text = chat.render(example.prompt, tools=example.tools)
        return (text + f"\nreference: {example.answer}" * bool(example.answer)).translate(CONTROLS)
    parts = spans(chat, example.messages, example.tools)
    if example.rejected:
        worse = spans(chat, example.rejected, example.tools)
        answer = "".join(part for part, learned in worse if learned)
        parts += [("\nrejected: ", False), (answer, True)]
    if example.desirable is not None:
        parts += [("\nlabel: good" if example.desirable else "\nlabel: bad", False)]
    text = ""
    for part, learned in parts:
        visible = part.translate(CONTROLS)
        text += marks[0] + visible + marks[1] if learned or train_on_inputs else visible
    return text


def first_marked(
    examples: Iterable[Example], chat: ChatTemplate, train_on_inputs: bool
) -> tuple[str, str]:
    """(place, text) of the first example that the template does not refuse; ("", "") without one."""
    for example in examples:
        with contextlib.suppress(InputError):
            return example.place, marked(example, chat, train_on_inputs)
    return "", ""


def shortened(text: str) -> str:
    """The beginning and the end of a long text, at most SHORT_LINES lines and SHORT_CHARS characters."""
    lines = text.splitlines()
    if len(lines) > SHORT_LINES:
        half = SHORT_LINES // 2
        text = "\n".join([*lines[:half], "…", *lines[-half:]])
    if len(text) > SHORT_CHARS:
        text = text[: SHORT_CHARS // 2] + " … " + text[-SHORT_CHARS // 2 :]
    return text
