"""A conversation and two answers -> which one a model behind an OpenAI-style URL prefers.

    judge = Judge("http://127.0.0.1:8080/v1", key="", timeout=120)
    judge.verdict(conversation, ("56", "54"), criterion)      # Judged(reply="A", choice="A")

Requests follow no redirect, so that a key goes to the named host alone.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast
from urllib.parse import SplitResult, urlsplit

from edgeft.errors import InputError
from edgeft.records import Message
from edgeft.web.http_server import is_loopback

TRIES = 5
"""of a request that the server is too busy for, or that the network loses"""
PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""before the second try, doubled before each further one; at most, also where the server names a longer one"""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP status codes after which the same request is sent again"""
MAX_REPLY_BYTES = 4_000_000
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
    """The server and the model that is asked. InputError for a URL that cannot be one."""

    url: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0
    """seconds"""
    model: str = ""
    """"" = the first that the server lists"""
    max_tokens: int = 16

    def __post_init__(self) -> None:
        parts = self._parts
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--judge {self.url} is no URL", "http://127.0.0.1:8080/v1")
        if parts.username or parts.password or parts.query:
            raise InputError("--judge takes no name, password or query", "--api-key-env VARIABLE")
        if self.key and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise InputError(
                f"{self.url} would get the key without encryption", "https, or no --api-key-env"
            )

    @property
    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url)
            parts.port  # noqa: B018 ValueError for one that is no number
        except ValueError:
            raise InputError(f"--judge {self.url} is no URL", "http://127.0.0.1:8080/v1") from None
        return parts

    @cached_property
    def model_name(self) -> str:
        """The model that is asked for. InputError where the server lists none."""
        if self.model:
            return self.model
        listed = self._ask("GET", "models")
        try:
            return str(listed["data"][0]["id"])
        except (LookupError, TypeError):
            raise InputError(f"{self.url} lists no model", "--judge-model NAME") from None

    def verdict(
        self, conversation: Sequence[Message], answers: tuple[str, str], criterion: str
    ) -> Judged:
        """Ask once, greedily. InputError where the server does not answer."""
        text = "\n".join(f"{message.role}: {message.content}" for message in conversation)
        question = QUESTION.format(conversation=text, a=answers[0], b=answers[1])
        said = self._ask(
            "POST",
            "chat/completions",
            {
                "model": self.model_name,
                "messages": [
                    {"role": "system", "content": INSTRUCTIONS.format(criterion=criterion)},
                    {"role": "user", "content": question},
                ],
                "temperature": 0,
                "max_tokens": self.max_tokens,
            },
        )
        try:
            reply = said["choices"][0]["message"]["content"] or ""
        except (LookupError, TypeError):
            raise InputError(f"{self.url} answers in another form: {str(said)[:80]}") from None
        return Judged(str(reply), choice_of(str(reply)))

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a response; sent again where the server is busy or cannot be reached."""
        problem = ""
        for attempt in range(TRIES):
            try:
                status, headers, content = self._send(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, (ConnectionRefusedError, ssl.SSLError)):
                    raise InputError(
                        f"no judge answers at {self.url}: {error}", "edgeft serve MODEL starts one"
                    ) from None
                problem, pause = str(error) or type(error).__name__, 0.0
            else:
                if status == 200:
                    return self._json(content)
                problem, pause = f"HTTP {status}: {_message(content)}", _pause(headers)
                if status in (401, 403):
                    raise InputError(
                        f"{self.url} refuses the key ({problem})", "--api-key-env VARIABLE"
                    )
                if status not in BUSY:
                    raise InputError(
                        f"{self.url}/{path}: {problem}", "the URL of an API ends with /v1"
                    )
            if attempt + 1 < TRIES:
                time.sleep(min(max(pause, PAUSE_S * 2**attempt), MAX_PAUSE_S))
        raise InputError(
            f"{self.url} does not answer after {TRIES} tries: {problem}",
            "the same command goes on with what is left",
        )

    def _send(self, method: str, path: str, body: Any) -> tuple[int, Any, bytes]:
        parts = self._parts
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            text = json.dumps(body) if body is not None else None
            connection.request(method, f"{parts.path.rstrip('/')}/{path}", text, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read(MAX_REPLY_BYTES)
        finally:
            connection.close()

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise InputError(
                f"{self.url} answers with no JSON", "the URL of an API ends with /v1"
            ) from None


def choice_of(reply: str) -> Choice | None:
    """The choice that the first or the last line of a reply is; None where neither is one, or they differ."""
    lines = [line for line in reply.splitlines() if line.strip()]
    matches = [CHOICE.fullmatch(line) for line in (*lines[:1], *lines[-1:])]
    choices = {match[1].upper() for match in matches if match}
    return cast(Choice, choices.pop()) if len(choices) == 1 else None


def _message(content: bytes) -> str:
    """What an error says: of OpenAI's {"error": {"message": …}}, else its beginning."""
    try:
        return str(json.loads(content)["error"]["message"])[:200]
    except (ValueError, LookupError, TypeError, RecursionError):
        return content[:200].decode(errors="replace")


def _pause(headers: Any) -> float:
    """Seconds of Retry-After, 0 where it names none."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
