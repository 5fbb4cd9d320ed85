"""uvicorn's HTTP/1.1 protocol with a time limit for headers and one for answers that nobody reads.

    uvicorn.Config(app, http=Connection)

uvicorn itself waits without limit for the first request of a connection.
"""

from __future__ import annotations

import asyncio
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

FREE_CONNECTIONS = 16
"""of the limit, that are kept for new clients: above, those that sent no request yet are closed"""
HEADERS_TIMEOUT_S = 30.0
"""seconds within which all headers of a request must arrive"""
UNREAD_TIMEOUT_S = 60.0
"""seconds that sent bytes may stay unacknowledged; closing alone would wait for the reader"""


class Connection(H11Protocol):
    """Closes a connection whose request is late. h11 limits the size of the headers, this their time."""

    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            tcp: socket.socket = transport.get_extra_info("socket")
            milliseconds = int(UNREAD_TIMEOUT_S * 1000)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._update_timeout()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_timeout()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is no HTTP. One that was passed on already gets no second answer."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its request, where few are left: without a
        key nobody can keep others out by doing nothing."""
        limit = self.config.limit_concurrency
        if limit is None or len(self.connections) <= limit - FREE_CONNECTIONS:
            return
        others = (other for other in self.connections if isinstance(other, Connection))
        since = {other: other._timeout.when() for other in others if other._timeout}
        since.pop(self, None)
        if since:
            oldest = min(since, key=since.__getitem__)
            oldest._cancel_timeout()  # closing takes until the loop's next turn
            oldest.transport.close()

    def _update_timeout(self) -> None:
        """The time runs from the first moment without a request, not from the last byte."""
        if not self._awaits_request():
            self._cancel_timeout()
        elif self._timeout is None:
            self._timeout = self.loop.call_later(HEADERS_TIMEOUT_S, self._close_late)

    def _awaits_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _cancel_timeout(self) -> None:
        if self._timeout:
            self._timeout.cancel()
            self._timeout = None

    def _close_late(self) -> None:
        self._timeout = None
        if self._awaits_request():
            self.transport.close()
