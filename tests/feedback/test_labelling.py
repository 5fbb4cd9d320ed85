"""`edgeft data label`: a judge on the loopback, asked in both positions, resumed, and its errors."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.data.rows import load_examples
from edgeft.errors import EdgeftError, InputError, StaleError
from edgeft.feedback import LabelOptions, chat_api
from edgeft.feedback.chat_api import ChatAPI
from edgeft.feedback.judge import Judge, choice_of
from edgeft.feedback.judgements import judgements_path
from edgeft.feedback.labelling import label

Decide = Callable[[str, str], Any]
"""(answer A, answer B) -> the judge's reply, or an HTTP status"""


class Server(http.server.ThreadingHTTPServer):
    """Chat completions, answered by `decide`; `asked` holds (answer A, answer B, headers)."""

    decide: Decide
    asked: list[tuple[str, str, dict[str, str]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self.say(200, {"data": [{"id": "judge-1"}, {"id": "other"}]})

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "judge-1" and body["temperature"] == 0
        text = body["messages"][-1]["content"]
        match = re.search(r"\[Answer A\]\n(.*?)\n\n\[Answer B\]\n(.*?)\n\n\[Which", text, re.DOTALL)
        assert match
        self.server.asked.append((match[1], match[2], dict(self.headers)))
        reply = self.server.decide(match[1], match[2])
        if isinstance(reply, int):
            self.say(reply, {"error": {"message": "slow down"}})
        else:
            self.say(200, {"choices": [{"message": {"role": "assistant", "content": reply}}]})

    def say(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def judging(decide: Decide) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.decide, server.asked = decide, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def longer(a: str, b: str) -> str:
    return "TIE" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def always_first(a: str, b: str) -> str:
    return "A"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(chat_api.time, "sleep", slept.append)
    return slept


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "lamp", "responses": ["on", "switched on"]},
        {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "fan"}],
         "responses": ["spinning", "off"]},
        {"prompt": "tie", "responses": ["aaa", "bbb"]},
        {"prompt": "same", "responses": ["x", " x "]},
        {"prompt": "pair", "chosen": "no", "rejected": "certainly"},
    ]  # fmt: skip
    return write(tmp_path / "answers.jsonl", rows)


def options(data: Path, url: str, **more: Any) -> LabelOptions:
    return LabelOptions(data, data.parent / "pairs.jsonl", url, **more)


def test_an_answer_that_wins_in_both_positions_is_the_better_one(answers: Path) -> None:
    with judging(longer) as server:
        result = label(options(answers, server.url, clients=3))
        assert label(options(answers, server.url)) == result, "complete"
    assert len(server.asked) == 8, "the equal answers are not judged, the others twice"
    assert {(a, b) for a, b, _ in server.asked} == {(b, a) for a, b, _ in server.asked}
    assert result.outcomes == {"equal": 1, "pair": 3, "ties": 1}
    assert (result.rows, result.pairs) == (5, 3)
    assert result.self_agreement and result.self_agreement[0] == 1
    assert result.first_position and result.first_position[0] == 0.5
    assert result.label_agreement and result.label_agreement[0] == 0
    pairs = load_examples(Path(result.output), layout="pairs")
    assert [(one.answer, one.rejected[-1].content) for one in pairs] == [
        ("switched on", "on"), ("spinning", "off"), ("certainly", "no"),
    ]  # fmt: skip
    assert [message.role for message in pairs[1].prompt] == ["system", "user"]
    kept = judgements_path(Path(result.output)).read_text().splitlines()[1:]
    tie = next(row for row in map(json.loads, kept) if row["prompt"][0]["content"] == "tie")
    assert tie["outcome"] == "ties" and tie["replies"] == ["TIE", "TIE"]


def test_a_judge_that_takes_the_first_answer_makes_no_pairs(answers: Path) -> None:
    with judging(always_first) as server, pytest.raises(InputError, match="in both positions"):
        label(options(answers, server.url))
    assert not (answers.parent / "pairs.jsonl").exists()

    def mostly_first(a: str, b: str) -> str:
        return "A" if "on" not in (a, b) else longer(a, b)

    with judging(mostly_first) as server:
        result = label(options(answers, server.url), overwrite=True)
    assert result.outcomes == {"equal": 1, "pair": 1, "positions": 3}
    assert len(Path(result.output).read_text().splitlines()) == 1
    assert result.self_agreement and result.self_agreement[0] == 0.25
    assert result.first_position and result.first_position[0] == 7 / 8


def test_it_goes_on_where_it_was_interrupted(answers: Path, no_pauses: list[float]) -> None:
    def breaks(a: str, b: str) -> Any:
        return 503 if "aaa" in (a, b) else longer(a, b)

    with judging(breaks) as server:
        with pytest.raises(
            InputError, match="does not answer after 5 tries: HTTP 503: slow down.*goes on"
        ):
            label(options(answers, server.url))
        assert len(server.asked) == 4 + 5 and no_pauses == [1, 2, 4, 8]
        server.decide = longer
        path = judgements_path(answers.parent / "pairs.jsonl")
        path.write_bytes(path.read_bytes()[:-9])  # killed in a line
        result = label(options(answers, server.url))
        assert len(server.asked) == 9 + 2 + 4, "the broken line's, and what was left"
        assert result.pairs == 3 and result.rows == 5
        with pytest.raises(StaleError, match="other criterion"):
            label(options(answers, server.url, criterion="Shorter is better."))
        Path(result.output).unlink()
        with pytest.raises(StaleError, match=r"other answers, or by another judge.*--overwrite"):
            label(options(answers, server.url, criterion="Shorter is better."))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_something_else_is_left_alone(overwrite: bool, answers: Path) -> None:
    path = judgements_path(answers.parent / "pairs.jsonl")
    path.write_text('{"prompt": "mine"}\n')
    with judging(longer) as server, pytest.raises(InputError, match="is no file of judgements"):
        label(options(answers, server.url), overwrite)
    assert path.read_text() == '{"prompt": "mine"}\n' and not server.asked
    path.unlink()
    with judging(longer) as server:
        result = label(options(answers, server.url))
        path.write_text(path.read_text() + '{"line": 1}\n')
        Path(result.output).unlink()
        with pytest.raises(EdgeftError, match="judgements.jsonl:7: not a judgement"):
            label(options(answers, server.url))


def test_more_rows_of_the_same_file_may_follow(answers: Path) -> None:
    with judging(longer) as server:
        first = label(options(answers, server.url, limit=2))
        with pytest.raises(StaleError, match="--overwrite"):
            label(options(answers, server.url))
        assert (first.pairs, len(server.asked)) == (2, 4)
        result = label(options(answers, server.url), overwrite=True)
        assert (result.pairs, len(server.asked)) == (3, 8), "the judged rows are not asked again"
        Path(result.output).unlink()
    assert label(options(answers, server.url)).pairs == 3, "the judge is not needed any more"


def test_a_model_writes_the_answers(tiny_base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(3)])
    with judging(longer) as server:
        more: dict[str, Any] = {"model": tiny_base, "max_tokens": 40, "temperature": 1.5}
        with contextlib.suppress(InputError):  # the tiny model may write all answers to the end
            label(options(data, server.url, **more))
    lines = judgements_path(tmp_path / "pairs.jsonl").read_text().splitlines()[1:]
    judged = [json.loads(line) for line in lines]
    assert len(judged) == 3
    assert all((row["outcome"] == "cut_off") == (not row["replies"]) for row in judged)
    assert len({text for row in judged for text in row["answers"]}) > 3


def test_the_key_goes_to_the_judge_alone(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with judging(longer) as server:
        result = label(options(answers, server.url, api_key_env="JUDGE_KEY"))
        assert all(headers["Authorization"] == "Bearer sk-secret" for *_, headers in server.asked)
    for path in answers.parent.iterdir():
        assert "sk-secret" not in path.read_text() and "JUDGE_KEY" not in path.read_text()
    manifest = store.read_manifest(Path(result.output))
    assert manifest and manifest.facts["judge_model"] == "judge-1"
    with pytest.raises(InputError, match="without encryption"):
        label(options(answers, "http://judge.example/v1", api_key_env="JUDGE_KEY"))
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(InputError, match="JUDGE_KEY is not set"):
        label(options(answers, "https://judge.example/v1", api_key_env="JUDGE_KEY"))
    assert "sk-secret" not in repr(Judge(ChatAPI("https://judge.example/v1", "sk-secret")))


@pytest.mark.parametrize(
    ("reply", "problem", "requests"),
    [
        (401, "refuses the key .HTTP 401: slow down.*--api-key-env", 1),
        (404, "HTTP 404: slow down.*ends with /v1", 1),
        (429, "after 5 tries: HTTP 429", 5),
    ],
)
def test_what_the_judge_refuses_is_one_line(
    reply: int, problem: str, requests: int, answers: Path
) -> None:
    with judging(lambda a, b: reply) as server, pytest.raises(InputError, match=problem) as error:
        label(options(answers, server.url))
    assert len(server.asked) == requests and "\n" not in str(error.value)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("127.0.0.1:8080", "is no URL"),
        ("ftp://host/v1", "is no URL"),
        ("http://host:port/v1", "is no URL"),
        ("https://name:word@host/v1", "takes no name, password"),
        ("http://127.0.0.1:1/v1", "nothing answers at .*edgeft serve MODEL"),
    ],
)
def test_a_url_without_a_judge(url: str, problem: str, answers: Path) -> None:
    with pytest.raises(InputError, match=problem):
        label(options(answers, url))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "x", "responses": ["a"]}, "no list of two texts"),
        ({"prompt": "x", "responses": ["a", ""]}, "no list of two texts"),
        ({"prompt": "x"}, "has no chosen answer"),
        ({"responses": ["a", "b"]}, ""),
        ({"prompt": "x", "responses": ["a", "b"], "tools": [{"type": "function", "function": {
            "name": "f", "parameters": {"type": "object", "properties": {}}}}]}, "has tools"),
    ],
)  # fmt: skip
def test_bad_rows(row: Any, problem: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"prompt": "y", "responses": ["a", "b"]}, row])
    with pytest.raises(EdgeftError, match=f"rows.jsonl:2: .*{problem}"):
        label(options(data, "http://127.0.0.1:1/v1"))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", "A"), (" b.", None), ("**B**", "B"), ("Tie", "TIE"), ("[A]\nIt is longer.", "A"),
        ("Both are fine, but one is shorter.\n\nVerdict: B", "B"), ("Answer A", "A"),
        ("A good answer needs a reason.", None), ("", None), ("The better answer is A\nVerdict: B", None), ("The better answer is A.", "A"),
        ("A or B", None), ("C", None),
    ],
)  # fmt: skip
def test_the_choice_of_a_reply(reply: str, choice: str | None) -> None:
    assert choice_of(reply) == choice


def test_on_the_command_line(answers: Path, edgeft: Callable[..., Any]) -> None:
    output = answers.parent / "pairs.jsonl"
    with judging(longer) as server:
        words = ("data", "label", "--data", answers, "--judge", server.url, "--output", output)
        ran = edgeft(*words)
    assert ran.code == 0 and ran.out.strip() == str(output)
    assert "pair: 3 rows" in ran.err and "the same verdict in both positions: 100.0%" in ran.err
    ran = edgeft(*words, "--json")
    assert json.loads(ran.out)["pairs"] == 3
