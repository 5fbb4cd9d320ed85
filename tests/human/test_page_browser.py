"""The voting page in a headless browser: keys, buttons, undo, reload, blindness, a phone's width."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.human.server import serving
from edgeft.human.session import RaterSession
from edgeft.human.votes import Pairs, VotesFile
from helpers.voting import NAMES, make_pairs

SHOTS = os.environ.get("EDGEFT_SHOTS")
"""folder for screenshots to look at"""
LONG = (
    "A heat pump moves heat instead of making it. In winter it takes some from the cold air.\n\n"
    * 3
)


def talkative() -> Pairs:
    """Long answers with markup, one unbreakable word and an empty one."""
    pairs = make_pairs(5)
    one, other = pairs.scores
    hostile = (
        "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    )
    texts = [LONG + "It is quiet.", hostile, "x" * 3000, "", '{"device": "lamp", "on": true}']
    others = [
        LONG + "It is loud.",
        "**no**",
        "short",
        "not empty",
        '{"device": "lamp", "on": false}',
    ]
    examples = tuple(
        dataclasses.replace(example, messages=(*example.messages[:-2], turn, example.messages[-1]))
        for example in pairs.examples
        for turn in [dataclasses.replace(example.messages[1], content="How does a heat pump work?")]
    )
    scores = (
        dataclasses.replace(one, replies=tuple(texts), stopped=(True, True, False, True, True)),
        dataclasses.replace(other, replies=tuple(others)),
    )
    return dataclasses.replace(pairs, examples=examples, scores=scores)


@dataclasses.dataclass
class Voting:
    page: Any
    session: RaterSession
    url: str
    problems: list[str]

    def place(self, text: str) -> None:
        self.page.locator("#place", has_text=text).wait_for(timeout=5000)

    @property
    def kept(self) -> list[str]:
        """As the page means it: which side."""
        sides = {"ab": "right", "ba": "right", "aa": "left", "bb": "left"}
        votes = self.session.file.votes
        return [sides.get(vote.left + vote.vote, vote.vote) for vote in votes]


Opened = Callable[..., Voting]


@pytest.fixture
def voting(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    stack = []

    def start(pairs: Pairs | None = None, width: int = 1280, dark: bool = False) -> Voting:
        file = VotesFile(tmp_path / "votes.jsonl", pairs or make_pairs(identical=(0,)))
        session = RaterSession(pairs or make_pairs(identical=(0,)), file, "")
        server = serving(session, 0)
        url = server.__enter__()
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light",
            has_touch=width < 500,
        )  # fmt: skip
        page = context.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console", lambda said: problems.append(said.text) if said.type == "error" else None
        )
        page.goto(url)
        stack.append((context, server, file))
        return Voting(page, session, url, problems)

    yield start
    for context, server, file in stack:
        context.close()
        server.__exit__(None, None, None)
        file.__exit__(None, None, None)


def test_keys_buttons_and_undo(voting: Opened) -> None:
    v = voting()
    press = v.page.keyboard.press
    v.place("1 of 5 · 5 left")
    press("ArrowLeft")
    v.place("2 of 5 · 4 left")
    press("l")
    v.place("3 of 5")
    v.page.get_by_role("button", name="Equally good").click()
    v.place("4 of 5")
    press("Control+b")  # the browser's own, no vote
    press("b")
    v.place("5 of 5")
    assert "Both bad. 5 of 5" in v.page.locator("#status").text_content()
    assert v.page.locator("#skip").is_disabled()
    press("u")
    v.place("4 of 5")
    press("s")
    v.page.locator("#status", has_text="Skipped. 4 of 5 · 2 left").wait_for()
    press("2")
    v.place("5 of 5")
    v.page.locator("#one").click()
    v.page.get_by_role("heading", name="Every pair has your vote").wait_for()
    assert v.kept == ["left", "right", "tie", "bad", "undo", "skip", "right", "left"]
    assert v.problems == []


def test_names_are_hidden_until_the_end(voting: Opened) -> None:
    v = voting()
    said: list[str] = []
    v.page.on("response", lambda answer: said.append(answer.url + answer.text()))
    v.page.reload()
    for number in range(5):
        v.place(f"{number + 1} of 5")
        left = v.page.locator("#left").text_content()
        said.append(v.page.content())
        v.page.keyboard.press("a" if left.startswith("good") else "ArrowRight")
    v.page.get_by_role("heading", name="Every pair has your vote").wait_for()
    said.append(v.page.content())
    shown = "".join(said)
    assert "Question" in shown
    assert not [word for word in ("quantized", "full-arm", "gguf", "1111", "2222") if word in shown]
    v.page.keyboard.press("Enter")  # the button has the focus
    v.page.get_by_role("heading", name=f"{NAMES[0]} is preferred to {NAMES[1]}").wait_for()
    shown = v.page.locator("main").inner_text()
    assert "5, of these" not in shown and "1, of these 0 both bad and 1 identical" in shown
    assert "92 %" in shown  # 5.5 of 6
    assert v.session.ended.wait(5) and v.problems == []


def test_reload_and_a_new_server_go_on(voting: Opened) -> None:
    v = voting()
    v.place("1 of 5")
    v.page.keyboard.press("ArrowLeft")
    v.place("2 of 5")
    asked = v.page.locator("#prompt").text_content()
    v.page.reload()
    v.place("2 of 5 · 4 left")
    assert v.page.locator("#prompt").text_content() == asked
    other = v.page.context.new_page()
    other.goto(v.url)
    other.locator("#place", has_text="2 of 5").wait_for()
    v.page.keyboard.press("t")
    v.place("3 of 5")
    other.keyboard.press("b")  # of a pair that has its vote: shows what is asked now
    other.locator("#place", has_text="3 of 5").wait_for()
    assert v.kept == ["left", "tie"]
    v.session.file.__exit__(None, None, None)
    again = voting()
    again.place("3 of 5 · 3 left")
    again.page.keyboard.press("u")
    again.place("2 of 5")
    assert again.page.locator("#prompt").text_content() == asked


def test_a_server_that_is_gone_is_said(voting: Opened) -> None:
    v = voting()
    v.place("1 of 5")
    v.page.route("**/vote", lambda route: route.abort())
    v.page.keyboard.press("t")
    v.page.get_by_role("alert").filter(has_text="The program has ended").wait_for()
    v.page.unroute("**/vote")
    v.page.keyboard.press("t")
    v.place("2 of 5")
    assert not v.page.get_by_role("alert").is_visible() and v.kept == ["tie"]


def test_help_differences_and_ending_early(voting: Opened) -> None:
    v = voting()
    v.place("1 of 5")
    v.page.keyboard.press("?")
    v.page.keyboard.press("t")  # belongs to the dialog, no vote
    assert not v.page.locator("#early").is_visible()
    v.page.keyboard.press("Escape")
    v.page.keyboard.press("d")
    assert sorted(v.page.locator("mark").all_text_contents()) == ["good", "poor"]
    v.page.keyboard.press("t")
    v.place("2 of 5")
    v.page.locator("#help").click()
    v.page.get_by_label("Use these keys").uncheck()
    v.page.locator("#close").click()
    v.page.keyboard.press("t")
    v.page.locator("#help").click()
    v.page.locator("#early").click()
    v.page.get_by_text("No difference that a rater saw").wait_for()
    assert v.kept == ["tie"] and v.problems == []


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_any_answer_fits_and_is_harmless(voting: Opened, width: int, dark: bool) -> None:
    v = voting(talkative(), width, dark)
    for number in range(5):
        v.place(f"{number + 1} of 5")
        wide = "document.documentElement.scrollWidth"
        assert v.page.evaluate(wide) <= width
        if "quiet" in v.page.locator(".answers").text_content():
            v.page.keyboard.press("d")
            shot(v.page, f"vote-{width}-{'dark' if dark else 'light'}")
        texts = {v.page.locator(side).text_content() for side in ("#left", "#right")}
        assert texts & {*(reply or "(empty)" for reply in v.session.pairs.scores[0].replies)}
        act = v.page.locator("#tie" if number == 2 else "#one")
        assert act.bounding_box()["height"] >= 44
        act.tap() if width < 500 else act.click()
    v.page.locator("#show").click()
    v.page.locator("#meaning").wait_for()
    assert v.page.evaluate("document.documentElement.scrollWidth") <= width
    assert v.page.title() == "Result of the vote" and v.problems == []
    shot(v.page, f"result-{width}-{'dark' if dark else 'light'}")


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"human-{name}.png"))
