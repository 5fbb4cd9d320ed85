"""A rater's session -> its voting page over HTTP, for the browsers of this machine alone.

    with serving(session, port=0) as url:
        session.ended.wait()

The server listens on 127.0.0.1. Other pages in the same browser can neither read nor vote: the Host
must be this server's address (against DNS rebinding), the path begins with a random token, and a POST
needs this page's Origin and a JSON body. `edgeft.web.guard` checks all but the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Iterator
from http import HTTPStatus
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from edgeft.human.session import Conflict, RaterSession
from edgeft.web.content_policy import content_policy
from edgeft.web.guard import App, Guard, Rules, error_body
from edgeft.web.http_server import listen, uvicorn_server
from edgeft.web.request_body import BodyError, body_error_response, read_json_object

MAX_BODY_BYTES = 4096
GRACE_S = 1.0
"""seconds that the last answers have to reach the page"""
CHOICES = ("left", "right", "tie", "bad", "skip")


@contextlib.contextmanager
def serving(session: RaterSession, port: int) -> Iterator[str]:
    """The page's address; it is served until the context ends. ResourceError for a port in use."""
    with contextlib.closing(listen("127.0.0.1", port)) as listening:
        token = secrets.token_urlsafe(18)
        port = listening.getsockname()[1]
        server = uvicorn_server(voting_app(session, port, token), GRACE_S)

        def serve() -> None:
            try:
                asyncio.run(server.serve(sockets=[listening]))
            finally:
                session.ended.set()  # nobody can vote any more

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/{token}/"
        finally:
            server.should_exit = True
            thread.join()


def voting_app(session: RaterSession, port: int, token: str) -> App:
    """The page and its JSON API below `/token/`, behind the guard."""
    page = resources.files(__package__).joinpath("page.html").read_bytes()

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page)

    async def state(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(session.state))

    async def vote(request: Request) -> Response:
        body = await read_json_object(request, MAX_BODY_BYTES)
        item, choice = body.get("item"), body.get("vote")
        if type(item) is not int or choice not in CHOICES:
            raise HTTPException(400, f"item and vote, one of {', '.join(CHOICES)}")
        return JSONResponse(await asyncio.to_thread(session.vote, item, choice))

    async def undo(request: Request) -> Response:
        await read_json_object(request, MAX_BODY_BYTES)
        return JSONResponse(await asyncio.to_thread(session.undo))

    async def result(request: Request) -> Response:
        await read_json_object(request, MAX_BODY_BYTES)
        content = await asyncio.to_thread(session.result)
        return JSONResponse(content, background=BackgroundTask(end))

    async def end() -> None:
        session.ended.set()  # the program may end only when the page has its answer

    routes = [
        Route("/", show_page, methods=["GET"]),
        Route("/state", state, methods=["GET"]),
        Route("/vote", vote, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
        Route("/result", result, methods=["POST"]),
    ]
    app: Any = Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        exception_handlers={
            BodyError: body_error_response,
            HTTPException: _refused,
            Conflict: _conflict,
            OSError: _not_kept,
        },
    )
    app.router.redirect_slashes = False
    rules = Rules(
        addresses=frozenset({f"127.0.0.1:{port}", f"localhost:{port}"}),
        path_prefix=f"/{token}/",
        post_origin=True,
        headers=_security_headers(page),
    )
    return Guard(app, rules)


def _security_headers(page: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"content-security-policy", content_policy(page).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cache-control", b"no-store"),
    )


async def _refused(request: Request, error: Any) -> Response:
    code = HTTPStatus(error.status_code).name.lower()
    return JSONResponse(error_body(error.detail, code), error.status_code, error.headers)


async def _conflict(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), "conflict"), 409)


async def _not_kept(request: Request, error: Any) -> Response:
    """The votes file cannot be written, as on a full disk."""
    body = error_body(f"the vote was not kept: {error.strerror or error}", "disk", "server_error")
    return JSONResponse(body, 500)
