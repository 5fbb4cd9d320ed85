"""What every web server of edgeft shares: an ASGI application -> one that is guarded and limited.

guard           checks Host, Origin, key and path of a request, adds headers to its answer
request_body    the body of a request as bytes or as a JSON object, within limits
content_policy  a page -> the policy under which a browser may show it
http_server     listening socket and uvicorn server, with the limits of connections.py

`http_server` needs the extra `serve`; the others need nothing.
"""

from edgeft.web.content_policy import content_policy
from edgeft.web.guard import Guard, Rules, error_body
from edgeft.web.http_server import listen, require_serve_extra, uvicorn_server

__all__ = [
    "Guard",
    "Rules",
    "content_policy",
    "error_body",
    "listen",
    "require_serve_extra",
    "uvicorn_server",
]
