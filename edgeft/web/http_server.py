"""A host and port -> a listening socket; an ASGI application -> a uvicorn server with edgeft's limits.

require_serve_extra()
with contextlib.closing(listen("127.0.0.1", 8080)) as listening:
    asyncio.run(uvicorn_server(app, grace_s=10).serve(sockets=[listening]))
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING

from edgeft.errors import InputError, ResourceError, require

if TYPE_CHECKING:
    import uvicorn

    from edgeft.web.guard import App

MAX_CONNECTIONS = 512
"""connections at a time; further ones are answered with 503"""
KEEP_ALIVE_S = 30
"""seconds that a connection may stay idle between two requests"""


def require_serve_extra() -> None:
    """MissingExtra where a package of the extra `serve` is not installed."""
    for module in ("uvicorn", "starlette", "pydantic"):
        require(module, "serve")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens; port 0 = any free one. ResourceError where the port is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        hint = "another program listens there; choose another --port"
        raise ResourceError(f"cannot listen on {host}:{port}: {error.strerror}", hint) from None
    except OverflowError:
        raise InputError(f"{port} is no port", "0 to 65535") from None


def uvicorn_server(app: App, grace_s: float) -> uvicorn.Server:
    """A server that ends when its `should_exit` is set; open answers then have `grace_s` seconds.

    It installs no signal handlers: uvicorn's own would raise the signal again at the end. It leaves
    logging as it is: uvicorn's configuration would close the handlers of every other library.
    """
    import uvicorn

    from edgeft.web.connections import Connection

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(grace_s) + 2,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    return server
