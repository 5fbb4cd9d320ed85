"""The voting page over HTTP: who may read and vote, and who may not."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import EdgeftError
from edgeft.human.server import serving
from edgeft.human.session import RaterSession
from edgeft.human.votes import VotesFile
from helpers.voting import NAMES, make_pairs

pytestmark = pytest.mark.unit


@pytest.fixture
def session(tmp_path: Path) -> Iterator[RaterSession]:
    pairs = make_pairs(6, identical=(0,))
    with VotesFile(tmp_path / "votes.jsonl", pairs) as file:
        yield RaterSession(pairs, file, "kim")


class Client:
    def __init__(self, url: str) -> None:
        self.host, _, self.token = url.removeprefix("http://").rstrip("/").partition("/")
        self.own = {"Host": self.host, "Origin": f"http://{self.host}",
                    "Content-Type": "application/json"}  # fmt: skip

    def ask(
        self, method: str, name: str = "", body: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        link = http.client.HTTPConnection(self.host, timeout=10)
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        given = {key: value for key, value in (self.own | sent).items() if value}
        path = name if name.startswith("/") else f"/{self.token}/{name}"
        link.putrequest(method, path, skip_host=True)
        if body is not None and "Content-Length" not in given:
            given["Content-Length"] = str(len(body.encode()))
        for key, value in given.items():
            link.putheader(key, value)
        link.endheaders(body.encode() if body else None)
        answer = link.getresponse()
        content = answer.read()
        self.headers = answer.headers
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode()


@pytest.fixture
def client(session: RaterSession) -> Iterator[Client]:
    with serving(session, 0) as url:
        yield Client(url)


def ballot(client: Client, act: str = "left") -> str:
    return json.dumps({"item": client.ask("GET", "state")[1]["pair"]["item"], "vote": act})


def test_the_page_votes(client: Client, session: RaterSession) -> None:
    status, page = client.ask("GET")
    assert status == 200 and "<title>" in page and "gguf" not in page
    assert "'sha256-" in client.headers["Content-Security-Policy"]
    assert client.headers["Access-Control-Allow-Origin"] is None
    assert client.ask("POST", "vote", ballot(client))[1]["votes"] == 1
    assert client.ask("POST", "undo", "{}")[1]["votes"] == 0
    assert client.ask("POST", "undo", "{}")[0] == 409
    assert client.ask("POST", "result", "{}")[0] == 409
    client.ask("POST", "vote", ballot(client))
    assert not session.ended.is_set()
    assert client.ask("POST", "result", "{}")[1]["a"] == NAMES[0]
    assert session.ended.wait(5)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": ""}, 400),  # RFC 9112, section 3.2
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": "99999"}, 413),
        # RFC 9112, section 6.3: a length that is no number of bytes is no HTTP
        ({"Content_Length": "9" * 5000}, 400),
        ({"Content_Length": "-1"}, 400),
        ({"Content_Length": "²"}, 400),
        ({"name": "/vote"}, 404),
        ({"name": "/x/vote"}, 404),
        ({"name": "../vote"}, 404),
        ({"name": "votes"}, 404),
        ({"body": "{"}, 400),
        ({"body": "[]"}, 400),
        ({"body": "[" * 4000}, 400),
        ({"body": "{}"}, 400),
        ({"body": '{"item": "1", "vote": "left"}'}, 400),
        ({"body": '{"item": 1, "vote": "a"}'}, 400),
        ({"body": '{"item": 1, "vote": ["left"]}'}, 400),
        ({"body": '{"item": 77, "vote": "left"}'}, 409),
    ],
)
def test_nobody_else_votes(
    client: Client, session: RaterSession, change: dict[str, str], status: int
) -> None:
    sent: dict[str, str] = {"name": "vote", "body": ballot(client)} | change
    assert client.ask("POST", sent.pop("name"), **sent)[0] == status
    assert session.file.votes == []


@pytest.mark.parametrize("change", [{"Host": "evil.example"}, {"name": "/state"}, {"name": "/"}])
def test_nobody_else_reads(client: Client, change: dict[str, str]) -> None:
    sent = {"name": "state"} | change
    status, said = client.ask("GET", sent.pop("name"), **sent)
    assert status in (404, 421) and set(said) == {"error"}


def test_only_the_loopback_listens(client: Client, session: RaterSession) -> None:
    assert client.host.startswith("127.0.0.1:")
    with pytest.raises(EdgeftError, match="port"), serving(session, int(client.host[10:])):
        pass
