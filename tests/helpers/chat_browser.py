"""The chat page in a headless browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers.chat_stub import Stub
from helpers.serving import Served


class Chat:
    def __init__(self, server: Stub | Served, page: Any) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._heard)
        page.goto(server.url)

    def _heard(self, said: Any) -> None:
        if said.type == "error" and "Failed to load resource" not in said.text:
            self.problems.append(said.text)

    def button(self, name: str, within: Any = None) -> Any:
        return (within or self.page).get_by_role("button", name=name, exact=True)

    def write(self, text: str) -> None:
        """Send, without waiting for the answer."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.get_by_label("Message", exact=True).press("Enter")

    def say(self, text: str) -> Any:
        """Send and wait for the answer; its text's element."""
        answers = self.page.locator("article.assistant")
        count = answers.count()
        self.write(text)
        answers.nth(count).wait_for()  # until then the button still says Send
        return self.answered()

    def answered(self) -> Any:
        self.button("Send").wait_for(timeout=10_000)
        return self.page.locator("article.assistant .said").last

    def said(self) -> list[str]:
        found: list[str] = self.page.locator("article .said").all_inner_texts()
        return found

    def width(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth"))


Opened = Callable[..., Chat]
