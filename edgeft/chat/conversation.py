"""A conversation with an artifact: its turns, the model that answers them, and its file.

    with answering(path) as model:
        chat = Conversation(model, "", Limits())
        print("".join(chat.ask("turn off the lamp")))
        chat.save(Path("chat.jsonl"))

Nothing here reads from or prints to a terminal.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgeft import files
from edgeft.errors import InputError
from edgeft.records import Limits, Message, Token

if TYPE_CHECKING:
    from edgeft.tokenizer.chat_template import ChatTemplate


class Model(Protocol):
    """What a conversation needs of a runtime."""

    @property
    def chat(self) -> ChatTemplate: ...

    @property
    def context(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]: ...


class Conversation:
    """The turns so far, and how the next one is answered."""

    def __init__(self, model: Model, system: str, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.system = system
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns: list[Message] = []
        self.dropped = 0
        """turns that the last message pushed out of the context"""
        self.prompt_tokens = 0
        self.tokens: list[Token] = []
        self._retries = 0

    def ask(self, text: str) -> Generator[str]:
        """The reply piece by piece; closed early, what it said until then is remembered."""
        self._retries = 0
        return self._ask([*self.turns, Message("user", text)])

    def retry(self) -> Generator[str]:
        """Another reply to the last message, with the next seed."""
        turns = self.turns[: self._last_question() + 1]
        self._retries += 1
        return self._ask(turns)

    def undo(self) -> None:
        """Forget the last message and its reply."""
        del self.turns[self._last_question() :]

    def _last_question(self) -> int:
        asked = [i for i, turn in enumerate(self.turns) if turn.role == "user"]
        if not asked:
            raise InputError("nothing was asked yet")
        return asked[-1]

    def _ask(self, turns: list[Message]) -> Generator[str]:
        given = len(turns)
        ids = self._fit(turns)
        self.dropped = given - len(turns)
        return self._reply(turns, ids)

    def _reply(self, turns: list[Message], ids: list[int]) -> Generator[str]:
        before = self.turns
        self.turns, self.prompt_tokens, self.tokens = turns, len(ids), []
        limits = dataclasses.replace(self.limits, seed=self.limits.seed + self._retries)
        finished = False
        try:
            for token in self.model.stream(ids, limits):
                self.tokens.append(token)
                yield token.text
            finished = True
        finally:
            if finished or self.tokens:
                turns.append(Message("assistant", "".join(token.text for token in self.tokens)))
            else:
                self.turns = before

    def _fit(self, turns: list[Message]) -> list[int]:
        """Ids of `turns`, the oldest of which are removed until a reply has room."""
        context = self.model.context
        room = min(self.limits.max_tokens, context // 4)
        while True:
            ids = self.model.encode(self.model.chat.render([*self._first, *turns]))
            if len(ids) + room <= context:
                return ids
            later = [i for i, turn in enumerate(turns) if turn.role == "user" and i]
            if not later:
                raise InputError(
                    f"the message has {len(ids)} tokens, the context {context} with the reply",
                    "shorten it or raise --context",
                )
            del turns[: later[0]]

    @property
    def _first(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    @property
    def messages(self) -> list[Message]:
        return [*self._first, *self.turns]

    def to_json(self) -> str:
        """One line: a row of data that `edgeft.data.rows` reads, so that files can be joined."""
        row = {"messages": [dataclasses.asdict(message) for message in self.messages]}
        return json.dumps(row, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """InputError where it would be no row of data: without a reply at the end."""
        if not self.turns:
            raise InputError("there is no conversation to save yet")
        if self.turns[-1].role != "assistant" or not self.turns[-1].content.strip():
            raise InputError("the last message has no reply", "/retry or /undo first")
        files.write_text(path, self.to_json())

    def load(self, path: Path) -> None:
        """Go on with a conversation that was saved, or with any file of data that holds one."""
        from edgeft.data.rows import load_examples

        examples = load_examples(path)
        if len(examples) != 1:
            raise InputError(f"{path} holds {len(examples)} conversations", "one is needed")
        # JSON can name halves of surrogate pairs, which are no text.
        turns = [
            Message(message.role, message.content.encode("utf-8", "replace").decode())
            for message in examples[0].messages
        ]
        self.system = turns.pop(0).content if turns[0].role == "system" else ""
        self.reset()
        self.turns = turns

    @property
    def speed(self) -> str:
        """Of the last reply: tokens/s after the first token, and the time to it."""
        if not self.tokens:
            return "an empty reply" if self.prompt_tokens else "no reply yet"
        first, last = self.tokens[0].seconds, self.tokens[-1].seconds
        rate = (len(self.tokens) - 1) / (last - first) if last > first else 0.0
        return (
            f"first after {first * 1000:.0f} ms, {len(self.tokens)} tokens at {rate:.0f} tokens/s"
        )

    @property
    def stats(self) -> str:
        if not self.prompt_tokens:
            return self.speed
        used = self.prompt_tokens + len(self.tokens)
        return (
            f"prompt {self.prompt_tokens} tokens, {self.speed}, "
            f"context {used} of {self.model.context}"
        )
