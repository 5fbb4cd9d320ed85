"""The page of a vote over HTTP, for the browsers of this machine alone.

    with serving(booth, port=0) as url:
        booth.ended.wait()

It listens on 127.0.0.1. Another page that the same browser has open can neither read nor vote: the
path holds a random token, the Host header must be ours (against DNS rebinding), a POST must come from
our origin as JSON, and no other origin is allowed to read answers.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socketserver
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import Any

from edgeft.errors import InputError
from edgeft.human.booth import Booth, Refused
from edgeft.web.content_policy import content_policy

BODY = 4096
"""bytes of a request, at most"""
ACTS = ("left", "right", "tie", "bad", "skip")


class Problem(Exception):
    """A request that is answered by a status and a sentence."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, booth: Booth, port: int) -> None:
        self.booth = booth
        self.root = f"/{secrets.token_urlsafe(18)}/"
        self.page = resources.files(__package__).joinpath("page.html").read_bytes()
        self.policy = content_policy(self.page)
        super().__init__(("127.0.0.1", port), Handler)
        own = self.server_address[1]
        self.hosts = (f"127.0.0.1:{own}", f"localhost:{own}")
        self.url = f"http://{self.hosts[0]}{self.root}"


@contextlib.contextmanager
def serving(booth: Booth, port: int) -> Iterator[str]:
    """The page's address, for as long as the context lasts."""
    try:
        server = Server(booth, port)
    except OSError as error:
        raise InputError(f"port {port}: {error.strerror}", "another --port, or none") from None
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30
    server_version = "edgeft"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the result."""

    def _answer(self, act: Any) -> None:
        try:
            if self.headers.get("Host") not in self.server.hosts:
                raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "another host's name")
            root, path = self.server.root, self.path
            if not secrets.compare_digest(path[: len(root)].encode(), root.encode()):
                raise Problem(
                    HTTPStatus.NOT_FOUND, "no such page; see the terminal for the address"
                )
            status, body = HTTPStatus.OK, act(path[len(root) :])
        except Problem as problem:
            status, body = problem.status, {"error": str(problem)}
        except Refused as refused:
            status, body = HTTPStatus.CONFLICT, {"error": str(refused)}
        try:
            self._send(status, body)
        finally:
            if self.server.booth.closed:
                self.server.booth.ended.set()

    def _get(self, name: str) -> Any:
        if name == "":
            return self.server.page
        if name == "state":
            return self.server.booth.state()
        raise Problem(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self, name: str) -> Any:
        if self.headers.get("Origin") not in [f"http://{host}" for host in self.server.hosts]:
            raise Problem(HTTPStatus.FORBIDDEN, "from another page")
        sent = self._body()
        booth = self.server.booth
        if name == "vote":
            if type(sent.get("item")) is not int or sent.get("vote") not in ACTS:
                raise Problem(HTTPStatus.BAD_REQUEST, f"item and vote, one of {', '.join(ACTS)}")
            return booth.vote(sent["item"], sent["vote"])
        if name == "undo":
            return booth.undo()
        if name == "result":
            return booth.result()
        raise Problem(HTTPStatus.NOT_FOUND, "no such page")

    def _body(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON is needed")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Problem(HTTPStatus.LENGTH_REQUIRED, "a length is needed")
        if len(length) > 9 or int(length) > BODY:
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{BODY} bytes at most")
        try:
            sent = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict):
            raise Problem(HTTPStatus.BAD_REQUEST, "not a JSON object")
        return sent

    def _send(self, status: HTTPStatus, body: Any) -> None:
        page = isinstance(body, bytes)
        content = body if page else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "text/html; charset=utf-8" if page else "application/json",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": self.server.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
