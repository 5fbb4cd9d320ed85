"""An ASGI application and `Rules` -> the same application behind checks of who may ask.

    app = Guard(Starlette(routes=routes), Rules(hosts=frozenset({"box.local"})))

The checks run before anything reads the body. They are against pages of other origins that run in the
user's browser: such a page can make its own name resolve to 127.0.0.1 (DNS rebinding) and would then
read like a page of this server, so the Host must be an allowed name. It can also send simple requests
anywhere without reading the answers, so a foreign Origin is refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

KEYLESS_PATHS = ("/", "/health")
"""paths that need no key: the chat page itself asks for the key"""
MAX_HEADERS = 64
HOST = re.compile(
    r"(?:(?P<name>[^\s\[\]:/?#@%]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::(?P<port>\d{0,5}))?"
)
"""a Host header: a name or an IPv4 address, or an IPv6 address in brackets, and a port"""


@dataclass(frozen=True)
class Refusal:
    """The answer to a request that is not let through."""

    status: int
    body: dict[str, Any] | None
    """JSON; None = nothing"""
    headers: Headers = field(default_factory=list)


Authorize = Callable[[Scope, bytes | None], Refusal | None]
"""(request, its bearer token) -> why it is refused, None = it is let through"""


@dataclass(frozen=True)
class Rules:
    """Which requests are answered. The defaults are those of the API: see `addresses` for stricter ones."""

    authorize: Authorize | None = None
    """asked for every path that needs a key, after all other checks; None = no key is needed"""
    hosts: frozenset[str] = frozenset()
    """names allowed in the Host header, besides localhost and IP addresses"""
    origins: frozenset[str] = frozenset()
    """origins of other pages that may ask, such as https://example.org"""
    addresses: frozenset[str] = frozenset()
    """the only Host headers allowed, as name:port; empty = `hosts` decides, with any port"""
    path_prefix: str = ""
    """beginning of every path, with a secret that only the user's browser is told; "" = none"""
    post_origin: bool = False
    """whether a POST must name its Origin, which programs other than browsers need not send"""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """sent with every answer"""


def error_body(
    message: str, code: str, error_type: str = "invalid_request_error"
) -> dict[str, Any]:
    """The JSON of an error in OpenAI's form."""
    return {"error": {"message": message, "type": error_type, "param": None, "code": code}}


class Guard:
    """Answers what `rules` refuse with 4xx; adds `rules.headers` and CORS headers to every answer."""

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
        origin = _single_value(scope["headers"], b"origin")
        cors = _cors_headers(origin) if origin and origin in self.rules.origins else []
        added = [*self.rules.headers, *cors]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        if refusal := self._refusal(scope, origin):
            await _answer(send_with_headers, refusal)
        elif cors and scope["method"] == "OPTIONS":
            await _answer(send_with_headers, Refusal(204, None))
        else:
            await self.app(scope, receive, send_with_headers if added else send)

    def _refusal(self, scope: Scope, origin: str | None) -> Refusal | None:
        rules, headers = self.rules, scope["headers"]
        if len(headers) > MAX_HEADERS:
            return Refusal(431, error_body(f"more than {MAX_HEADERS} headers", "too_many_headers"))
        host = _single_value(headers, b"host")
        if refusal := self._host_refusal(host):
            return refusal
        prefix = rules.path_prefix.encode()
        if not hmac.compare_digest(scope["path"].encode()[: len(prefix)], prefix):
            message = "no such page; see the terminal for the address"
            return Refusal(404, error_body(message, "not_found"))
        if refusal := self._origin_refusal(scope, host, origin):
            return refusal
        preflight = scope["method"] == "OPTIONS"
        if rules.authorize and scope["path"] not in KEYLESS_PATHS and not preflight:
            return rules.authorize(scope, _bearer_token(headers))
        return None

    def _host_refusal(self, host: str | None) -> Refusal | None:
        if self.rules.addresses:
            if host in self.rules.addresses:
                return None
            return Refusal(421, error_body("this Host is not served", "host_not_allowed"))
        if host is not None and self._is_allowed_host(host):
            return None
        message = "this Host is not served; allow it with --allow-host"
        return Refusal(403, error_body(message, "host_not_allowed"))

    def _is_allowed_host(self, host: str) -> bool:
        match = HOST.fullmatch(host)
        if not match or int(match["port"] or 0) > 65535:
            return False
        name = (match["name"] or match["address"]).lower()
        if name == "localhost" or name in self.rules.hosts:
            return True
        try:
            ipaddress.ip_address(name)  # not a name, so no DNS server can redirect it
        except ValueError:
            return False
        return True

    def _origin_refusal(self, scope: Scope, host: str | None, origin: str | None) -> Refusal | None:
        if origin is None:
            allowed = not (self.rules.post_origin and scope["method"] == "POST")
        else:
            same = f"{scope.get('scheme', 'http')}://{host}"
            allowed = origin == same or origin in self.rules.origins
        if allowed:
            return None
        hint = "" if self.rules.addresses else "; allow it with --cors"
        return Refusal(403, error_body(f"this Origin may not ask{hint}", "origin_not_allowed"))


def _bearer_token(headers: Headers) -> bytes | None:
    """Of the Authorization header, or what Anthropic's clients send in one of their own."""
    value = _single_value(headers, b"authorization")
    if value is None:
        value = _single_value(headers, b"x-api-key")
        return None if value is None else value.encode("latin-1", "replace")
    sent = value.encode("latin-1", "replace")
    return sent.removeprefix(b"Bearer ") if sent.startswith(b"Bearer ") else None


def _single_value(headers: Headers, name: bytes) -> str | None:
    """A header's value; of several, which no browser sends, a value that no rule allows."""
    values = [value for key, value in headers if key == name]
    return None if not values else values[0].decode("latin-1") if len(values) == 1 else "\0"


def _cors_headers(origin: str) -> Headers:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (
            b"access-control-allow-headers",
            b"authorization, content-type, x-api-key, anthropic-version",
        ),
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-max-age", b"600"),
        (b"vary", b"origin"),
    ]


async def _answer(send: Send, refusal: Refusal) -> None:
    status, body = refusal.status, refusal.body
    data = json.dumps(body).encode() if body else b""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    headers += refusal.headers
    # The rest of a refused request is not read, so the connection ends.
    headers += [(b"connection", b"close")] if status >= 400 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
