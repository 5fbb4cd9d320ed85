"""Stop texts within a stream."""

from __future__ import annotations

import pytest

from edgeft.server.jobs import StopText

pytestmark = pytest.mark.unit


def test_what_may_begin_a_stop_text_is_held_back() -> None:
    stops = StopText(("###", "\n\n"))
    assert [stops.push(text) for text in ("a#", "#b", "\n", "c##")] == ["a", "##b", "", "\nc"]
    assert stops.rest() == "##" and not stops.hit
    assert stops.push("x\n") + stops.push("\ny") == "x" and stops.hit == "\n\n"
