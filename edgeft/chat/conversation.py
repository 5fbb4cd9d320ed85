"""A model and messages -> replies; a conversation's turns, and its file.

    with open_model(path) as model:
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
from typing import TYPE_CHECKING, Any, Protocol

from edgeft import files
from edgeft.errors import InputError
from edgeft.records import Limits, Message, Token

if TYPE_CHECKING:
    from edgeft.tokenizer.chat_template import ChatTemplate


class ChatModel(Protocol):
    """What a conversation needs of a model; every runtime has it."""

    @property
    def chat(self) -> ChatTemplate: ...

    @property
    def context(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]: ...


class Conversation:
    """The turns so far, and the settings for the next reply."""

    def __init__(self, model: ChatModel, system: str, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.system = system
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns: list[Message] = []
        """user and assistant, in the order of time"""
        self.dropped = 0
        """oldest turns that were removed to make room for the last message"""
        self.prompt_tokens = 0
        """of the last reply"""
        self.tokens: list[Token] = []
        """of the last reply"""
        self._retries = 0

    def ask(self, text: str) -> Generator[str]:
        """The reply piece by piece. Closed early, the conversation keeps the pieces so far.

        InputError where the message is longer than the context.
        """
        self._retries = 0
        return self._ask([*self.turns, Message("user", text)])

    def retry(self) -> Generator[str]:
        """Another reply to the last message, with the next seed; it replaces the last reply."""
        turns = self.turns[: self._last_user_turn() + 1]
        self._retries += 1
        return self._ask(turns)

    def undo(self) -> None:
        """Forget the last message and its reply."""
        del self.turns[self._last_user_turn() :]

    def _last_user_turn(self) -> int:
        indexes = [i for i, turn in enumerate(self.turns) if turn.role == "user"]
        if not indexes:
            raise InputError("nothing was asked yet")
        return indexes[-1]

    def _ask(self, turns: list[Message]) -> Generator[str]:
        before = len(turns)
        prompt_ids = self._fit(turns)
        self.dropped = before - len(turns)
        return self._reply(turns, prompt_ids)

    def _reply(self, turns: list[Message], prompt_ids: list[int]) -> Generator[str]:
        before = self.turns
        self.turns, self.prompt_tokens, self.tokens = turns, len(prompt_ids), []
        limits = dataclasses.replace(self.limits, seed=self.limits.seed + self._retries)
        finished = False
        try:
            for token in self.model.stream(prompt_ids, limits):
                self.tokens.append(token)
                yield token.text
            finished = True
        finally:
            # Stopped before the first token, the message counts as not asked.
            if finished or self.tokens:
                turns.append(Message("assistant", "".join(token.text for token in self.tokens)))
            else:
                self.turns = before

    def _fit(self, turns: list[Message]) -> list[int]:
        """Prompt ids of `turns`. The oldest turns are removed until a reply has room."""
        context = self.model.context
        room = min(self.limits.max_tokens, context // 4)
        while True:
            prompt_ids = self.model.encode(self.model.chat.render([*self._system_turns, *turns]))
            if len(prompt_ids) + room <= context:
                return prompt_ids
            later = [i for i, turn in enumerate(turns) if turn.role == "user" and i]
            if not later:
                raise InputError(
                    f"the message has {len(prompt_ids)} tokens, the context {context} with the reply",
                    "shorten it or raise --context",
                )
            del turns[: later[0]]

    @property
    def _system_turns(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    @property
    def messages(self) -> list[Message]:
        """All turns, the system message first where there is one."""
        return [*self._system_turns, *self.turns]

    def to_json(self) -> str:
        """One line of JSONL, a row that `edgeft.data.rows` reads. So files can be joined to data."""
        row = {"messages": [_turn(message) for message in self.messages]}
        return json.dumps(row, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the file. InputError without a reply at the end, which a row of data needs."""
        if not self.turns:
            raise InputError("there is no conversation to save yet")
        if self.turns[-1].role != "assistant" or not self.turns[-1].content.strip():
            raise InputError("the last message has no reply", "/retry or /undo first")
        files.write_text(path, self.to_json())

    def load(self, path: Path) -> None:
        """Continue the conversation of a file: a saved one, or any data file with one row."""
        from edgeft.data.rows import load_examples

        examples = load_examples(path)
        if len(examples) != 1:
            raise InputError(f"{path} holds {len(examples)} conversations", "one is needed")
        turns = list(examples[0].messages)
        self.system = turns.pop(0).content if turns[0].role == "system" else ""
        self.reset()
        self.turns = turns

    @property
    def speed(self) -> str:
        """Text on the last reply: time to the first token, and tokens/s after it."""
        if not self.tokens:
            return "an empty reply" if self.prompt_tokens else "no reply yet"
        first, last = self.tokens[0].seconds, self.tokens[-1].seconds
        rate = (len(self.tokens) - 1) / (last - first) if last > first else 0.0
        return (
            f"first after {first * 1000:.0f} ms, {len(self.tokens)} tokens at {rate:.0f} tokens/s"
        )

    @property
    def stats(self) -> str:
        """Text on the last reply: tokens of the prompt, speed, and use of the context."""
        if not self.prompt_tokens:
            return self.speed
        used = self.prompt_tokens + len(self.tokens)
        return (
            f"prompt {self.prompt_tokens} tokens, {self.speed}, "
            f"context {used} of {self.model.context}"
        )


def _turn(message: Message) -> dict[str, Any]:
    """A message as a turn of a data row: role and content, and what else it has."""
    entries = dataclasses.asdict(message)
    del entries["learned"]
    return {key: value for key, value in entries.items() if value or key in ("role", "content")}
