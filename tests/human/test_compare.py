"""Blind votes: order, the file, undo, what the votes say, who may vote, and the command."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import signal
import threading
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran

from edgeft.errors import EdgeftError
from edgeft.export.pipeline import ExportOptions, export
from edgeft.human.booth import Booth, Refused
from edgeft.human.server import serving
from edgeft.human.tally import count, text
from edgeft.human.votes import Vote, VotesFile, left_to_ask, standing
from edgeft.web.content_policy import content_policy
from helpers.tiny import make_base
from helpers.voting import NAMES, make_pairs


def votes(said: str, rater: str = "", first: int = 0) -> list[Vote]:
    """One letter an item: a, b, t(ie), x(bad), s(kip), u(ndo)."""
    names = {"a": "a", "b": "b", "t": "tie", "x": "bad", "s": "skip", "u": "undo"}
    return [Vote(first + i, names[letter], rater, "a") for i, letter in enumerate(said)]


# --- order ------------------------------------------------------------------------------------


def test_order_and_sides_are_random_balanced_and_repeatable() -> None:
    pairs = make_pairs(40, identical=(1, 2, 3, 4))
    assert sorted(pairs.order(7)) == list(range(40)) != pairs.order(7)
    assert pairs.order(7) == make_pairs(40).order(7) != pairs.order(8)
    sides = pairs.sides(7, "kim")
    assert list(sides) == [i for i in pairs.order(7) if i not in (1, 2, 3, 4)]
    assert list(sides.values()).count("a") == 18
    assert sides == pairs.sides(7, "kim") != pairs.sides(7, "sam")
    assert list(sides) == list(pairs.sides(7, "sam"))


def test_one_pair_may_stand_either_way() -> None:
    pairs = make_pairs(1)
    assert {pairs.sides(seed, "")[0] for seed in range(20)} == {"a", "b"}


def test_what_is_left_to_ask() -> None:
    def left(*acts: tuple[int, str]) -> list[int]:
        made = [Vote(item, vote, "", "a") for item, vote in acts]
        return left_to_ask([3, 1, 2], standing(made).get("", []))

    assert left() == [3, 1, 2]
    assert left((3, "a")) == [1, 2]
    assert left((3, "skip")) == [1, 2, 3]
    assert left((3, "skip"), (1, "tie"), (2, "bad")) == [3]
    assert left((3, "skip"), (3, "undo")) == [3, 1, 2]
    assert left((3, "a"), (1, "b"), (1, "undo"), (3, "undo"), (3, "undo")) == [3, 1, 2]
    assert left((3, "a"), (3, "a")) == [1, 2]


def test_a_rater_takes_back_only_his_own() -> None:
    acts = [*votes("a", "kim"), *votes("b", "sam"), Vote(0, "undo", "kim", "a")]
    assert standing(acts) == {"kim": [], "sam": votes("b", "sam")}


# --- the file ---------------------------------------------------------------------------------


def test_votes_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "votes.jsonl"
    with VotesFile(path, make_pairs()) as file:
        seed = file.seed
        file.add(Vote(3, "a", "Zoë", "b"))
        assert b'"vote": "a"' in path.read_bytes()  # not only once it is closed
        file.add(Vote(2, "undo", "Zoë", "a"))
        kept = file.votes
    with VotesFile(path, make_pairs()) as file:
        assert (file.seed, file.votes) == (seed, kept)
        assert all(vote.at for vote in file.votes)


def test_a_torn_last_line_is_dropped_and_voting_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "votes.jsonl"
    with VotesFile(path, make_pairs()) as file:
        file.add(Vote(3, "a", "", "b"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"item": 3, "vote": "a", "rater": "' + b"k" * 500)
    with VotesFile(path, make_pairs()) as file:
        assert [vote.item for vote in file.votes] == [3]
        file.add(Vote(4, "b", "", "b"))
    assert "in part" in capsys.readouterr().err
    assert path.read_bytes().startswith(whole) and path.read_bytes().count(b"k") == 0
    with VotesFile(path, make_pairs()) as file:
        assert [vote.item for vote in file.votes] == [3, 4]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"identities": ("1" * 64, "3" * 64)}, "other artifacts"),
        ({"identities": ("2" * 64, "1" * 64)}, "other artifacts"),
        ({"examples": make_pairs(7).examples[1:]}, "other items"),
        ({"scores": make_pairs(6, identical=(1,)).scores}, "other answers"),
        ({"names": ("renamed.gguf", "also.gguf")}, ""),
    ],
)
def test_votes_of_another_comparison_are_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "votes.jsonl"
    with VotesFile(path, make_pairs()) as file:
        file.add(Vote(3, "a", "", "b"))
    before = path.read_bytes()
    other = dataclasses.replace(make_pairs(), **change)
    if says:
        with pytest.raises(EdgeftError, match=says):
            VotesFile(path, other)
    else:
        VotesFile(path, other).__exit__(None, None, None)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"Dear diary", b'{"prompt": "hi"}\n{"prompt"', b"[1]\n", b"\xff\xfe\n", b'{"votes": 9, "seed": 1}\n'],
)  # fmt: skip
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(EdgeftError, match=r"not a file of votes|another edgeft"):
        VotesFile(path, make_pairs())
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"item": 6, "vote": "a", "rater": "", "left": "a"}',
     '{"item": true, "vote": "a", "rater": "", "left": "a"}',
     '{"item": 1, "vote": "c", "rater": "", "left": "a"}',
     '{"item": 1, "vote": "a", "rater": [], "left": "a"}'],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "votes.jsonl"
    with VotesFile(path, make_pairs()) as file:
        file.add(Vote(3, "a", "", "b"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(EdgeftError, match=r"votes.jsonl:3: not a vote"):
        VotesFile(path, make_pairs())


def test_one_program_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with (
        VotesFile(path, make_pairs()),
        pytest.raises(EdgeftError, match="being voted into already"),
    ):
        VotesFile(path, make_pairs())
    with VotesFile(path, make_pairs()) as file:
        assert file.votes == []


# --- what the votes say -----------------------------------------------------------------------


def test_counts_and_statistics() -> None:
    found = count(make_pairs(20), 0, votes("aaaaaaaaaaaabbbttxaa"))
    total = found.total
    assert (total.wins, total.losses, total.ties, total.bad, total.n) == (14, 3, 3, 1, 20)
    assert total.rate == 15.5 / 20 and total.decided == 14 / 17
    # Wilson's interval of 14 of 17, and 2 [P(X < 3) + P(X = 3) / 2] of Bin(17, 1/2), by hand
    assert total.decided_interval == pytest.approx((0.5897, 0.9381), abs=2e-4)
    assert total.mid_p == pytest.approx(2 * (1 + 17 + 136 + 680 / 2) / 2**17)
    assert found.meaning.startswith(f"{NAMES[0]} is preferred to {NAMES[1]}")
    other = count(make_pairs(20), 0, votes("bbbbbbbbbbbbaaattxbb"))
    assert other.meaning.startswith(f"{NAMES[1]} is preferred to {NAMES[0]}")
    assert other.total.mid_p == total.mid_p and other.total.rate == pytest.approx(1 - 15.5 / 20)


def test_few_votes_show_no_preference() -> None:
    found = count(make_pairs(20), 0, votes("aaabb"))
    assert found.missing == 15 and "No preference is shown" in found.meaning
    assert count(make_pairs(), 0, votes("ttxttt")).meaning.startswith("No difference")
    nothing = count(make_pairs(), 0, votes("sss"))
    assert (nothing.total.n, nothing.total.rate, nothing.total.mid_p) == (0, None, None)
    assert nothing.meaning.startswith("No votes") and nothing.votes == {}
    json.dumps([found.to_json(), nothing.to_json()], allow_nan=False)


def test_identical_answers_are_ties_as_far_as_the_votes_reach() -> None:
    same = tuple(range(0, 40, 2))
    pairs = make_pairs(40, identical=same)
    order = pairs.order(5)
    asked = [item for item in order if item not in same]
    acts: list[Vote] = []
    for number, item in enumerate(asked, 1):
        acts.append(Vote(item, "b", "", "a"))
        total = count(pairs, 5, acts).total
        end = order.index(asked[number]) if number < len(asked) else len(order)
        assert total.identical == sum(item in same for item in order[:end])
        assert (total.losses, total.n) == (number, end)
    assert count(make_pairs(3, identical=(0, 1, 2)), 0, []).total.ties == 3


def test_raters_together_give_each_item_one_outcome() -> None:
    acts = [*votes("aabtx", "kim"), *votes("abbax", "sam")]
    found = count(make_pairs(5), 0, acts)
    assert (found.total.wins, found.total.losses, found.total.ties) == (2, 1, 2)
    assert found.total.bad == 1 and found.votes == {"kim": 5, "sam": 5}
    assert found.agreement == 3 / 5
    assert found.left_rate == 4 / 7
    assert "2 raters; they agree on 60%" in text(found)


def test_slices_by_tag() -> None:
    found = count(make_pairs(6), 0, votes("abab"))
    assert {tag: (own.wins, own.losses) for tag, own in found.slices.items()} == {
        "kind0": (2, 0), "kind1": (0, 2),
    }  # fmt: skip
    assert "| kind0 |" in text(found) and "2 pairs have no vote yet" in text(found)


# --- one rater's session ----------------------------------------------------------------------


@pytest.fixture
def booth(tmp_path: Path) -> Iterator[Booth]:
    pairs = make_pairs(6, identical=(0,))
    with VotesFile(tmp_path / "votes.jsonl", pairs) as file:
        yield Booth(pairs, file, "kim")


def better(state: dict[str, Any]) -> str:
    return "left" if state["pair"]["left"]["text"].startswith("good") else "right"


def test_sides_become_arms_and_names_stay_hidden(booth: Booth) -> None:
    state, seen = booth.state(), ""
    assert (state["total"], state["left"], state["identical"]) == (5, 5, 1)
    while state["pair"]:
        seen += json.dumps(state)
        state = booth.vote(state["pair"]["item"], better(state))
    seen += json.dumps(state)
    assert not [name for name in ("quantized", "full", "gguf", "1111") if name in seen]
    assert [vote.vote for vote in booth.file.votes] == ["a"] * 5
    assert {vote.left for vote in booth.file.votes} == {"a", "b"}
    assert booth.result()["wins"] == 5
    for act in (lambda: booth.vote(1, "left"), booth.undo):
        with pytest.raises(Refused):
            act()
    assert len(booth.file.votes) == 5


def test_undo_shows_the_same_pair_again_and_skip_puts_it_last(booth: Booth) -> None:
    first = booth.state()["pair"]
    second = booth.vote(first["item"], "left")["pair"]
    with pytest.raises(Refused):
        booth.vote(first["item"], "left")  # a second tab
    assert booth.undo()["pair"] == first
    with pytest.raises(Refused):
        booth.undo()
    assert booth.vote(first["item"], "skip")["pair"] == second
    assert booth.queue[-1] == first["item"]
    state = booth.state()
    assert (state["left"], state["votes"], state["undo"]) == (5, 0, True)
    assert booth.undo()["pair"] == first


# --- who may vote -----------------------------------------------------------------------------


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
        html = (answer.headers["Content-Type"] or "").startswith("text/html")
        return answer.status, content.decode() if html else json.loads(content)


@pytest.fixture
def client(booth: Booth) -> Iterator[Client]:
    with serving(booth, 0) as url:
        yield Client(url)


def ballot(client: Client, act: str = "left") -> str:
    return json.dumps({"item": client.ask("GET", "state")[1]["pair"]["item"], "vote": act})


def test_the_page_votes(client: Client, booth: Booth) -> None:
    status, page = client.ask("GET")
    assert status == 200 and "<title>" in page and "gguf" not in page
    assert "'sha256-" in client.headers["Content-Security-Policy"]
    assert client.headers["Access-Control-Allow-Origin"] is None
    assert client.ask("POST", "vote", ballot(client))[1]["votes"] == 1
    assert client.ask("POST", "undo", "{}")[1]["votes"] == 0
    assert client.ask("POST", "undo", "{}")[0] == 409
    assert client.ask("POST", "result", "{}")[0] == 409
    client.ask("POST", "vote", ballot(client))
    assert not booth.ended.is_set()
    assert client.ask("POST", "result", "{}")[1]["a"] == NAMES[0]
    assert booth.ended.wait(5)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": "99999"}, 413),
        ({"Content_Length": "9" * 5000}, 413),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "²"}, 411),
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
    client: Client, booth: Booth, change: dict[str, str], status: int
) -> None:
    sent: dict[str, str] = {"name": "vote", "body": ballot(client)} | change
    assert client.ask("POST", sent.pop("name"), **sent)[0] == status
    assert booth.file.votes == []


@pytest.mark.parametrize("change", [{"Host": "evil.example"}, {"name": "/state"}, {"name": "/"}])
def test_nobody_else_reads(client: Client, change: dict[str, str]) -> None:
    sent = {"name": "state"} | change
    status, said = client.ask("GET", sent.pop("name"), **sent)
    assert status in (404, 421) and set(said) == {"error"}


def test_only_the_loopback_listens(client: Client, booth: Booth) -> None:
    assert client.host.startswith("127.0.0.1:")
    with pytest.raises(EdgeftError, match="port"), serving(booth, int(client.host[10:])):
        pass


def test_the_policy_names_each_script_and_style() -> None:
    policy = content_policy(b"<style>a</style><script>b</script><script>c</script>")
    assert "'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='" in policy  # of b
    assert policy.count("'sha256-") == 3 and "unsafe" not in policy


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("voted")
    own = export(ExportOptions(out=folder / "own", base=str(tiny_base), quants=("f16",)))
    stranger = make_base(folder / "stranger", seed=7)
    other = export(ExportOptions(out=folder / "other", base=str(stranger), quants=("q8_0",)))
    return own[0].path, other[0].path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "items.jsonl"
    rows = [{"prompt": f"river {i}", "answer": "boat", "tags": [f"kind{i % 2}"]} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    origin = "/".join(url.split("/")[:3])
    headers = {"Content-Type": "application/json", "Origin": origin}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    found: dict[str, Any] = json.load(urllib.request.urlopen(request, timeout=10))
    return found


def a_rater(act: str, count: int, then: Callable[[str], object]) -> Callable[[str], None]:
    """Instead of a browser: votes `count` times, then does something."""

    def work(url: str) -> None:
        state = json.load(urllib.request.urlopen(f"{url}state", timeout=10))
        for _ in range(count):
            state = post(f"{url}vote", {"item": state["pair"]["item"], "vote": act})
        then(url)

    return lambda url: threading.Thread(target=work, args=(url,), daemon=True).start()


def interrupt(url: str) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_vote_from_the_command_line(
    edgeft: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arms: tuple[Path, Path],
    questions: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROWSER", "some")
    command = ("ab", *arms, "--items", questions, "--human", "--json", "--max-tokens", 8)

    for at_once in (interrupt, a_rater("left", 0, interrupt)):
        monkeypatch.setattr(webbrowser, "open", at_once)
        ran = edgeft(*command)
        assert ran.code == 4 and json.loads(ran.out)["n"] == 0, ran.err

    monkeypatch.setattr(webbrowser, "open", a_rater("left", 2, interrupt))
    ran = edgeft(*command)
    found = json.loads(ran.out)
    assert ran.code == 0 and (found["missing"], found["votes"]) == (4, {"": 2})
    assert "http://127.0.0.1:" in ran.err
    assert (tmp_path / f"{arms[0].stem}-{arms[1].stem}.votes.jsonl").is_file()

    monkeypatch.setattr(webbrowser, "open", a_rater("tie", 4, lambda url: post(f"{url}result", {})))
    ran = edgeft(*command)
    found = json.loads(ran.out)
    assert (found["n"], found["ties"], found["missing"]) == (6, 4, 0)

    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("nothing is left to ask"))
    ran = edgeft(*command[:-3], "--max-tokens", 8)
    assert ran.code == 0 and "win rate" in ran.out and "| kind0 |" in ran.out

    monkeypatch.setattr(webbrowser, "open", a_rater("bad", 1, interrupt))
    found = json.loads(edgeft(*command, "--rater", "sam").out)
    assert found["votes"] == {"": 6, "sam": 1}


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--human", "THIRD"], 2, "exactly two"),
        (["--human", "--margin", "0.1"], 2, "--margin cannot be combined with --human"),
        (["--human", "--report", "x"], 2, "--report cannot be combined with --human"),
        (["--votes", "x.jsonl"], 2, "--votes needs --human"),
        (["--human", "--port", "70000"], 2, "--port"),
    ],
)
def test_wrong_usage(
    edgeft: Callable[..., Ran],
    arms: tuple[Path, Path],
    questions: Path,
    more: list[str],
    code: int,
    says: str,
) -> None:
    ran = edgeft("ab", *arms, "--items", questions, *more)
    assert ran.code == code and says in ran.err, ran.err


def test_the_same_model_twice_is_refused(
    edgeft: Callable[..., Ran], arms: tuple[Path, Path], questions: Path
) -> None:
    ran = edgeft("ab", arms[0], arms[0], "--items", questions, "--human")
    assert ran.code == 1 and "the same model" in ran.err
