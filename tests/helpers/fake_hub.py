"""A server on the loopback with the few answers of the hub that downloads of data sets need."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Data sets by name, each with one commit on the branch main."""

    url: str
    repos: dict[str, dict[str, bytes]]
    """owner/name -> file -> content"""
    downloads: list[str] = field(default_factory=list)
    """files that were fetched"""


@contextlib.contextmanager
def fake_hub(
    repos: dict[str, dict[str, str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """The hub's client asks this server and keeps its files in `cache` meanwhile."""
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        hub = FakeHub(
            f"http://127.0.0.1:{server.server_port}",
            {
                name: {n: text.encode() for n, text in files.items()}
                for name, files in repos.items()
            },
        )
        server.hub = hub  # type: ignore[attr-defined]
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub: FakeHub = self.server.hub  # type: ignore[attr-defined]
        parts = self.path.partition("?")[0].strip("/").split("/")
        api, parts = parts[0] == "api", parts[parts[0] == "api" :]
        files = hub.repos.get("/".join(parts[1:3]))
        rest = parts[3:]
        if parts[0] != "datasets" or files is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._send(200, json.dumps(_facts(files, "/".join(parts[1:3]), rest)).encode(), {})
        else:
            name = "/".join(rest[2:])
            content = files[name]
            if body:
                hub.downloads.append(name)
            etag = hashlib.sha1(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self._send(200, content, headers, body)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _facts(files: dict[str, bytes], repo: str, rest: list[str]) -> object:
    """What the hub's API says of a data set, or of its tree."""
    if rest[:1] == ["tree"]:
        return [
            {"type": "file", "path": name, "size": len(content),
             "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]  # fmt: skip
    siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
    return {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [],
            "downloads": 0, "likes": 0, "disabled": False, "gated": False}  # fmt: skip
