"""A server with the API that the chat page asks, and answers that the prompt chooses."""

from __future__ import annotations

import http.server
import json
import threading
import time
from pathlib import Path
from typing import Any

import edgeft
from edgeft.web.content_policy import content_policy

PAGE = Path(edgeft.__file__).parent / "server" / "page.html"


class Stub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.models = ["small.gguf"]
        self.key = ""
        self.replies: dict[str, str] = {}
        """last message -> what is answered; else "You said: ..." """
        self.asked: list[dict[str, Any]] = []
        self.left = threading.Event()
        """a reader went away in the middle"""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/":
            page = PAGE.read_bytes()
            self._send(200, page, "text/html", {"Content-Security-Policy": content_policy(page)})
        elif self.path == "/health":
            self._json(200, {"status": "ok", "memory_bytes": 312_000_000})
        elif not self._refused():
            self._json(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        self.server.asked.append(body)
        said = body["messages"][-1]["content"]
        if said == "too long":
            return self._json(400, {"error": {"message": "the prompt has 9000 tokens, 4096 fit"}})
        if said == "busy":
            return self._json(429, {"error": {"message": "8 are waiting"}}, {"Retry-After": "7"})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        text = self.server.replies.get(said, f"You said: {said}")
        if said == "slow":
            text = "and so on " * 3000
        try:
            if said == "think":
                self._event({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm, <b>"}}]})
            size = max(3, len(text) // 200)
            pieces = [text[i : i + size] for i in range(0, len(text), size)]
            for number, piece in enumerate(pieces):
                self._event({"choices": [{"index": 0, "delta": {"content": piece}}]})
                time.sleep(0.05 if said == "slow" else 0.001)
                if said == "broken" and number == 2:
                    return self._event({"error": {"message": "out of memory"}})
                if said == "cut" and number == 2:
                    return None
            finish = "length" if said == "longest" else "stop"
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            self._event({"choices": [], "usage": {"completion_tokens": len(pieces)}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.left.set()

    def _event(self, event: dict[str, Any]) -> None:
        """In two parts, which may end within a character or a line break."""
        line = f": comment\r\ndata: {json.dumps(event, ensure_ascii=False)}\r\n\r\n".encode()
        cut = len(line) * 2 // 3 if len(self.server.asked) % 2 else len(line) - 1
        self.wfile.write(line[:cut])
        self.wfile.flush()
        time.sleep(0.001)
        self.wfile.write(line[cut:])

    def _refused(self) -> bool:
        key = self.server.key
        refused = bool(key) and self.headers.get("Authorization") != f"Bearer {key}"
        if refused:
            self._json(401, {"error": {"message": "wrong key"}})
        return refused

    def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", headers or {})

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Type": f"{kind}; charset=utf-8"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
