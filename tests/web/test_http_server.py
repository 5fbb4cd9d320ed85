"""A server within a process that does more than serve."""

from __future__ import annotations

import logging

from edgeft.web.http_server import uvicorn_server


class Handler(logging.Handler):
    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


def test_handlers_of_other_libraries_stay_open() -> None:
    """absl closes the stream of its handler where it is not sys.stderr: under pytest the capture file."""
    handler = Handler()
    uvicorn_server(lambda scope, receive, send: None, 1.0)  # type: ignore[arg-type, return-value]
    assert not handler.closed
