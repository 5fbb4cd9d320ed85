"""Who may ask: Host, Origin, key and size, before anything reads the body.

A page on the web can make its own name mean 127.0.0.1 (DNS rebinding) and then reads like a page of
this server: so the Host must be a name that was allowed. It can also send a simple request anywhere
without reading the answer: so a foreign Origin is refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health")
"""paths that need no key: the page asks for it"""
HEADERS = 64


@dataclass(frozen=True)
class Rules:
    key: str = ""
    """that a client must show; "" = none"""
    hosts: frozenset[str] = frozenset()
    """names in the Host header, besides localhost and addresses"""
    origins: frozenset[str] = frozenset()
    """other pages that may ask, such as https://example.org"""


def error_body(message: str, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Guard:
    """Refuses with 4xx, adds the headers of CORS where they were asked for."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        origin = _one(headers, b"origin")
        cors = _cors(origin) if origin and origin in self.rules.origins else []
        if refusal := self._refusal(scope, origin):
            await _answer(send, *refusal, cors)
        elif cors and scope["method"] == "OPTIONS":
            await _answer(send, 204, None, cors)
        elif cors:

            async def with_cors(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", []), *cors]
                await send(message)

            await self.app(scope, receive, with_cors)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, origin: str | None) -> tuple[int, dict[str, Any]] | None:
        headers = scope["headers"]
        if len(headers) > HEADERS:
            return 431, error_body(f"more than {HEADERS} headers", "too_many_headers")
        host = _one(headers, b"host")
        if host is None or not self._is_host(host):
            told = "this Host is not served; allow it with --allow-host"
            return 403, error_body(told, "host_not_allowed")
        own = f"{scope.get('scheme', 'http')}://{host}"
        if origin is not None and origin != own and origin not in self.rules.origins:
            told = "this Origin may not ask; allow it with --cors"
            return 403, error_body(told, "origin_not_allowed")
        preflight = scope["method"] == "OPTIONS"
        if self.rules.key and scope["path"] not in OPEN and not preflight:
            given = (_one(headers, b"authorization") or "").encode("latin-1", "replace")
            wanted = b"Bearer " + self.rules.key.encode()
            if not hmac.compare_digest(given, wanted):
                told = "a key is needed: Authorization: Bearer KEY"
                return 401, error_body(told, "invalid_api_key", "authentication_error")
        return None

    def _is_host(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname, parts.port
        except ValueError:
            return False
        if not name or parts.path or parts.query or parts.fragment or "@" in host:
            return False
        if name == "localhost" or name in self.rules.hosts:
            return True
        try:
            ipaddress.ip_address(name)  # no name, so nobody can make it mean something else
        except ValueError:
            return False
        return True


def _one(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """A header's value; of several, which no browser sends, something that nobody allows."""
    values = [value for key, value in headers if key == name]
    return None if not values else values[0].decode("latin-1") if len(values) == 1 else "\0"


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-max-age", b"600"),
        (b"vary", b"origin"),
    ]


async def _answer(
    send: Send, status: int, body: dict[str, Any] | None, more: list[tuple[bytes, bytes]]
) -> None:
    data = json.dumps(body).encode() if body else b""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    # What a refused request still sends is not read: the connection ends.
    headers += [(b"connection", b"close")] if status >= 400 else []
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *more]})
    await send({"type": "http.response.body", "body": data})
