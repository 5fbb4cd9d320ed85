"""A conversation and two answers -> which one a model behind an OpenAI-style URL prefers.

judge = Judge(ChatAPI("http://127.0.0.1:8080/v1"))
judge.verdict(conversation, ("56", "54"), criterion)      # Judged(reply="A", choice="A")
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from edgeft.feedback.chat_api import ChatAPI
from edgeft.records import Message

INSTRUCTIONS = (
    "You compare two answers to the last message of a conversation. {criterion} "
    "Length and order do not count. Reply with one word: A, B, or TIE where neither is better."
)
QUESTION = "[Conversation]\n{conversation}\n\n[Answer A]\n{a}\n\n[Answer B]\n{b}\n\n[Which answer is better: A, B or TIE?]"
CHOICE = re.compile(
    r"\W*(?:(?i:(?:final |the )?(?:verdict|answer|better|better answer|winner)(?: is)?))?\W*(A|B|(?i:tie))\W*"
)

Choice = Literal["A", "B", "TIE"]


@dataclass(frozen=True)
class Judged:
    """One reply of the judge."""

    reply: str
    choice: Choice | None
    """None where the reply names none"""


@dataclass(frozen=True)
class Judge:
    """A model that compares answers."""

    api: ChatAPI
    max_tokens: int = 16
    """of a reply"""

    def verdict(
        self, conversation: Sequence[Message], answers: tuple[str, str], criterion: str
    ) -> Judged:
        """Ask once, greedily. InputError where the server does not answer."""
        text = "\n".join(f"{message.role}: {message.content}" for message in conversation)
        question = QUESTION.format(conversation=text, a=answers[0], b=answers[1])
        reply = self.api.answer(
            [
                {"role": "system", "content": INSTRUCTIONS.format(criterion=criterion)},
                {"role": "user", "content": question},
            ],
            self.max_tokens,
        )
        return Judged(reply, choice_of(reply))


def choice_of(reply: str) -> Choice | None:
    """The choice that the first or the last line of a reply is; None where neither is one, or they differ."""
    lines = [line for line in reply.splitlines() if line.strip()]
    matches = [CHOICE.fullmatch(line) for line in (*lines[:1], *lines[-1:])]
    choices = {match[1].upper() for match in matches if match}
    return cast(Choice, choices.pop()) if len(choices) == 1 else None
