"""The URL of an OpenAI-style API -> greedy answers of a model behind it.

    api = ChatAPI("http://127.0.0.1:8080/v1", key="", timeout=120)
    api.answer([{"role": "user", "content": "7 * 8?"}], max_tokens=16)      # "56"

Requests follow no redirect, so that a key goes to the named host alone.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import SplitResult, urlsplit

from edgeft.errors import InputError
from edgeft.web.http_server import is_loopback

TRIES = 5
"""of a request that the server is too busy for, or that the network loses"""
PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""before the second try, doubled before each further one; at most, also where the server names a longer one"""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP status codes after which the same request is sent again"""
MAX_REPLY_BYTES = 4_000_000


@dataclass(frozen=True)
class ChatAPI:
    """The server and the model that is asked. InputError for a URL that cannot be one."""

    url: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0
    """seconds"""
    model: str = ""
    """"" = the first that the server lists"""

    def __post_init__(self) -> None:
        parts = self._parts
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{self.url} is no URL of an API", "http://127.0.0.1:8080/v1")
        if parts.username or parts.password or parts.query:
            raise InputError(
                f"{self.url.partition('//')[0]}//… takes no name, password or query",
                "--api-key-env VARIABLE",
            )
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
            raise InputError(
                f"{self.url} is no URL of an API", "http://127.0.0.1:8080/v1"
            ) from None
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
            raise InputError(
                f"{self.url} lists no model", "name one, such as --judge-model NAME"
            ) from None

    def answer(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """The greedy answer to a conversation. InputError where the server gives none."""
        said = self._ask(
            "POST",
            "chat/completions",
            {
                "model": self.model_name,
                "messages": messages,
                "temperature": 0,
                "max_tokens": max_tokens,
            },
        )
        try:
            return str(said["choices"][0]["message"]["content"] or "")
        except (LookupError, TypeError):
            raise InputError(f"{self.url} answers in another form: {str(said)[:80]}") from None

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a response; sent again where the server is busy or cannot be reached."""
        problem = ""
        for attempt in range(TRIES):
            try:
                status, headers, content = self._send(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, (ConnectionRefusedError, ssl.SSLError)):
                    raise InputError(
                        f"nothing answers at {self.url}: {error}", "edgeft serve MODEL starts one"
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
