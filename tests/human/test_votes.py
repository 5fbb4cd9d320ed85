"""Order and sides of pairs, what is left to ask, and the file of votes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import EdgeftError
from edgeft.human.votes import Vote, VotesFile, active_votes, remaining_items
from helpers.voting import make_pairs, make_votes

pytestmark = pytest.mark.unit


def test_order_and_sides_are_random_balanced_and_repeatable() -> None:
    pairs = make_pairs(40, identical=(1, 2, 3, 4))
    assert sorted(pairs.order(7)) == list(range(40)) != pairs.order(7)
    assert pairs.order(7) == make_pairs(40).order(7) != pairs.order(8)
    sides = pairs.left_arms(7, "kim")
    assert list(sides) == [i for i in pairs.order(7) if i not in (1, 2, 3, 4)]
    assert list(sides.values()).count("a") == 18
    assert sides == pairs.left_arms(7, "kim") != pairs.left_arms(7, "sam")
    assert list(sides) == list(pairs.left_arms(7, "sam"))


def test_one_pair_may_stand_either_way() -> None:
    pairs = make_pairs(1)
    assert {pairs.left_arms(seed, "")[0] for seed in range(20)} == {"a", "b"}


def test_what_is_left_to_ask() -> None:
    def left(*acts: tuple[int, str]) -> list[int]:
        made = [Vote(item, vote, "", "a") for item, vote in acts]
        return remaining_items([3, 1, 2], active_votes(made).get("", []))

    assert left() == [3, 1, 2]
    assert left((3, "a")) == [1, 2]
    assert left((3, "skip")) == [1, 2, 3]
    assert left((3, "skip"), (1, "tie"), (2, "bad")) == [3]
    assert left((3, "skip"), (3, "undo")) == [3, 1, 2]
    assert left((3, "a"), (1, "b"), (1, "undo"), (3, "undo"), (3, "undo")) == [3, 1, 2]
    assert left((3, "a"), (3, "a")) == [1, 2]


def test_a_rater_takes_back_only_his_own() -> None:
    acts = [*make_votes("a", "kim"), *make_votes("b", "sam"), Vote(0, "undo", "kim", "a")]
    assert active_votes(acts) == {"kim": [], "sam": make_votes("b", "sam")}


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
