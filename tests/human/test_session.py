"""One rater's session: sides, undo, skip, and what stays hidden."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.human.session import Conflict, RaterSession
from edgeft.human.votes import VotesFile
from helpers.voting import make_pairs

pytestmark = pytest.mark.unit


@pytest.fixture
def session(tmp_path: Path) -> Iterator[RaterSession]:
    pairs = make_pairs(6, identical=(0,))
    with VotesFile(tmp_path / "votes.jsonl", pairs) as file:
        yield RaterSession(pairs, file, "kim")


def better(state: dict[str, Any]) -> str:
    return "left" if state["pair"]["left"]["text"].startswith("good") else "right"


def test_sides_become_arms_and_names_stay_hidden(session: RaterSession) -> None:
    state, seen = session.state(), ""
    assert (state["total"], state["left"], state["identical"]) == (5, 5, 1)
    while state["pair"]:
        seen += json.dumps(state)
        state = session.vote(state["pair"]["item"], better(state))
    seen += json.dumps(state)
    assert not [name for name in ("quantized", "full", "gguf", "1111") if name in seen]
    assert [vote.vote for vote in session.file.votes] == ["a"] * 5
    assert {vote.left for vote in session.file.votes} == {"a", "b"}
    assert session.result()["wins"] == 5
    for act in (lambda: session.vote(1, "left"), session.undo):
        with pytest.raises(Conflict):
            act()
    assert len(session.file.votes) == 5


def test_undo_shows_the_same_pair_again_and_skip_puts_it_last(session: RaterSession) -> None:
    first = session.state()["pair"]
    second = session.vote(first["item"], "left")["pair"]
    with pytest.raises(Conflict):
        session.vote(first["item"], "left")  # a second tab
    assert session.undo()["pair"] == first
    with pytest.raises(Conflict):
        session.undo()
    assert session.vote(first["item"], "skip")["pair"] == second
    assert session.queue[-1] == first["item"]
    state = session.state()
    assert (state["left"], state["votes"], state["undo"]) == (5, 0, True)
    assert session.undo()["pair"] == first
