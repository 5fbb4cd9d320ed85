"""A chat whose model says the last message in capitals, | for a new line: `python echo_chat.py`.

ECHO_SECONDS: of each letter. ECHO_OPTIONS: of ChatOptions, as JSON.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeft.chat.conversation import Conversation
from edgeft.chat.options import ChatOptions
from edgeft.chat.terminal import talk
from edgeft.records import Limits, Token
from edgeft.tokenizer.chat_template import ChatTemplate

SOURCE = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"


class Echo:
    """One character a token."""

    chat = ChatTemplate(SOURCE, "", "", ())

    def __init__(self, context: int = 2000, seconds: float = 0.0) -> None:
        self.context, self.seconds = context, seconds
        self.seen = ""
        self.limits: list[Limits] = []

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        self.seen = "".join(map(chr, ids))
        self.limits.append(limits)
        said = self.seen.rpartition("<user>")[2].upper().replace("\n", "|")
        for i, letter in enumerate(said[: limits.max_tokens]):
            time.sleep(self.seconds)
            yield Token(ord(letter), letter, 0.1 * (i + 1))


if __name__ == "__main__":
    options = ChatOptions(Path("echo.gguf"), **json.loads(os.environ.get("ECHO_OPTIONS", "{}")))
    model = Echo(seconds=float(os.environ.get("ECHO_SECONDS", "0")))
    talk(Conversation(model, options.system, options.limits), options)
