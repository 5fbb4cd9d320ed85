"""A `Studio` -> its ASGI application behind the guard: pages, actions, events and files.

Every request needs the workspace's key, in a cookie that `/?key=…` sets. A page of another origin can
neither read nor start anything: the guard checks Host and Origin, and the cookie stays on this site.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from edgeft.errors import EdgeftError, InputError, ResourceError, StaleError
from edgeft.studio.actions import Actions
from edgeft.studio.context import Studio
from edgeft.studio.events import Events
from edgeft.studio.render import STATIC
from edgeft.studio.views import Views
from edgeft.web.guard import App, Guard, Rules
from edgeft.web.request_body import BodyError, body_error_response, read_body

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
OPEN_PATHS = ("/login", "/static/")
"""beginnings of paths that need no key"""
MAX_KEY_BYTES = 1000
FORM_TYPE = "application/x-www-form-urlencoded"
KEPT_S = 30 * 86_400
"""a browser keeps the key so long"""
STATUS = {ResourceError: 507, StaleError: 409}
"""class of an error -> status; 422 for others"""


def studio_app(
    studio: Studio, port: int, hosts: frozenset[str] = frozenset()
) -> tuple[App, Events]:
    """The application, and its event streams, which the server must end."""
    views, actions, events = Views(studio), Actions(studio), Events(studio)
    cookie = f"edgeft-studio-{port}"  # cookies are shared by the ports of a host

    async def login(request: Request) -> Response:
        body = await read_body(request, MAX_KEY_BYTES, FORM_TYPE)
        key = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0]
        if not _same(key, studio.key):
            return views.login_page(request, wrong=True)
        return _with_cookie(RedirectResponse("/", 303), cookie, studio.key)

    routes = [
        Route("/", _in_thread(views.start)),
        _post("/login", login),
        Route("/events", events.stream),
        Route("/jobs/{number:int}", _in_thread(views.job)),
        Route("/file/{path:path}", _in_thread(views.file)),
        Route("/raw/{path:path}", _in_thread(views.raw)),
        _post("/api/command", actions.command),
        _post("/api/toml", actions.save),
        _post("/api/jobs", actions.start),
        _post("/api/jobs/{number:int}/cancel", actions.cancel),
        _post("/api/jobs/{number:int}/again", actions.again),
        _post("/api/jobs/{number:int}/delete", actions.forget),
        _post("/api/resume", actions.resume),
        _post("/api/guide", actions.guide),
        _post("/api/example", actions.example),
        _post("/api/upload", actions.upload),
        _post("/api/delete", actions.delete),
        _post("/api/rename", actions.rename),
        _post("/api/open", actions.open),
        _post("/api/restore", actions.restore),
        _post("/api/trash/empty", actions.empty_trash),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/{page}", _in_thread(views.page)),
    ]
    handlers: dict[Any, Any] = {
        BodyError: body_error_response,
        HTTPException: _refused,
        EdgeftError: _user_error,
        OSError: _disk_error,
    }
    app: Any = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.views = views
    rules = Rules(hosts=hosts, post_origin=True, headers=HEADERS)
    return Guard(_KeyCheck(app, studio, views, cookie), rules), events


class _KeyCheck:
    """Lets through what has the key; sets the cookie for `/?key=…`; adds the content policy."""

    def __init__(self, app: App, studio: Studio, views: Views, cookie: str) -> None:
        self.app, self.studio, self.views, self.cookie = app, studio, views, cookie

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        key = request.query_params.get("key", "") if scope["path"] == "/" else ""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                added = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"cache-control", b"no-store"),
                ]
                message["headers"] = [*message["headers"], *(h for h in added if h[0] not in names)]
            await send(message)

        response: Any = self.app
        if key and _same(key, self.studio.key):
            response = _with_cookie(RedirectResponse("/", 303), self.cookie, self.studio.key)
        elif not self._may(request):
            if scope["path"].startswith(("/api/", "/events")):
                response = JSONResponse(
                    {"error": {"message": "the key is missing", "hint": "/"}}, 401
                )
            else:
                response = self.views.login_page(request)
        elif not scope["path"].startswith(OPEN_PATHS):
            try:
                self.studio.workspace.check()
            except StaleError as error:
                response = _answer(request, self.views, 409, error.message, error.hint)
        await response(scope, receive, send_with_policy)

    def _may(self, request: Request) -> bool:
        path = request.url.path
        if path == OPEN_PATHS[0] or path.startswith(OPEN_PATHS[1]):
            return True
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return any(
            _same(key, self.studio.key) for key in (request.cookies.get(self.cookie, ""), bearer)
        )


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _with_cookie(response: Response, name: str, key: str) -> Response:
    response.set_cookie(name, key, max_age=KEPT_S, httponly=True, samesite="strict", path="/")
    return response


def _in_thread(view: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    """A page reads files: not in the event loop."""

    async def answer(request: Request) -> Response:
        return await run_in_threadpool(view, request)

    return answer


def _post(path: str, action: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, action, methods=["POST"])


async def _refused(request: Request, error: Any) -> Response:
    message = error.detail or HTTPStatus(error.status_code).phrase
    return _answer(request, request.app.state.views, error.status_code, message, "", error.headers)


async def _user_error(request: Request, error: Any) -> Response:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 422)
    if request.method == "GET" and isinstance(error, InputError):
        status = 404
    return _answer(request, request.app.state.views, status, error.message, error.hint)


async def _disk_error(request: Request, error: Any) -> Response:
    """A full disk, or a workspace that was taken away."""
    message = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return _answer(request, request.app.state.views, 507, message, "free some space")


def _answer(
    request: Request,
    views: Views,
    status: int,
    message: str,
    hint: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error: a page for a browser that opens one, else JSON."""
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return views.error_page(request, status, message, hint)
    body = {"error": {"message": message, "hint": hint}}
    return JSONResponse(body, status, dict(headers or {}))
