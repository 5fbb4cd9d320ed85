"""The chat page in a headless browser, against a stub of the API."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.chat_stub import Stub

SHOTS = os.environ.get("EDGEFT_SHOTS")
"""folder for screenshots to look at"""


class Chat:
    def __init__(self, stub: Stub, page: Any) -> None:
        self.stub, self.page = stub, page
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._heard)
        page.goto(stub.url)

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


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        yield server
        server.shutdown()


@pytest.fixture
def chat(browser: Any, stub: Stub) -> Iterator[Opened]:
    contexts = []

    def start(width: int = 1280, dark: bool = False) -> Chat:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        contexts.append(context)
        return Chat(stub, context.new_page())

    yield start
    for context in contexts:
        context.close()


def test_an_answer_is_streamed_and_measured(chat: Opened, stub: Stub) -> None:
    c = chat()
    assert c.say("Hello there, who are you?").inner_text() == "You said: Hello there, who are you?"
    facts = c.page.locator("article.assistant .actions").inner_text()
    assert "tokens/s · first token after" in facts and "12 tokens" in facts
    c.page.get_by_text("Memory 312 MB").wait_for()
    c.say("And now?")
    (first, second) = stub.asked
    assert first["model"] == "small.gguf" and first["stream"] is True
    assert first["stream_options"] == {"include_usage": True} and "temperature" not in first
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "You said: Hello there, who are you?"
    assert c.problems == []


def test_reasoning_is_folded(chat: Opened) -> None:
    c = chat()
    assert c.say("hi").inner_text() == "You said: hi"
    assert not c.page.locator("details summary", has_text="Reasoning").is_visible()
    assert c.say("think").inner_text() == "You said: think"
    thoughts = c.page.locator("article.assistant .thoughts").last
    assert not thoughts.is_visible()
    c.page.locator("article.assistant summary", has_text="Reasoning").last.click()
    assert thoughts.inner_text() == "Hm, <b>" and c.problems == []


def test_a_stream_may_be_cut_anywhere(chat: Opened, stub: Stub) -> None:
    stub.replies["go"] = "né 日本語 🙂 " * 60
    c = chat()
    assert c.say("go").inner_text() == stub.replies["go"].strip()
    assert c.say("go").inner_text() == stub.replies["go"].strip()
    stub.replies["longest"] = "never ending"
    c.say("longest")
    assert "cut off at max_tokens" in c.page.locator("article").last.inner_text()


def test_a_page_closed_in_the_middle_keeps_what_was_said(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.write("slow")
    c.page.get_by_text("and so on and so on").wait_for()
    c.page.reload()
    assert c.said()[1].startswith("and so on")
    assert "stopped" in c.page.locator("article.assistant").inner_text()
    assert stub.left.wait(5)
    assert c.say("hi").inner_text() == "You said: hi" and c.problems == []


def test_no_model_loses_no_message(chat: Opened, stub: Stub) -> None:
    stub.models = []
    c = chat()
    c.write("precious")
    c.page.get_by_role("alert").filter(has_text="no model").wait_for()
    assert c.page.get_by_label("Message", exact=True).input_value() == "precious"
    assert c.said() == [] and c.problems == []


def test_stop_keeps_what_was_said(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.write("slow")
    c.page.get_by_text("and so on and so on").wait_for()
    assert c.page.get_by_role("button", name="Regenerate").count() == 0
    c.page.keyboard.press("Escape")
    assert c.answered().inner_text().startswith("and so on")
    assert "stopped" in c.page.locator("article.assistant .actions").inner_text()
    assert stub.left.wait(5)
    c.write("slow")
    c.button("Stop").click()
    c.answered()
    c.page.reload()
    assert c.said()[1].startswith("and so on")


def test_edit_and_regenerate_are_branches(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.say("one")
    c.say("two")
    c.button("Edit", c.page.locator("article.user").first).click()
    c.page.get_by_label("Edit the message").fill("ONE")
    c.page.keyboard.press("Enter")
    c.answered()
    assert c.said() == ["ONE", "You said: ONE"]
    assert stub.asked[-1]["messages"] == [{"role": "user", "content": "ONE"}]
    c.button("Previous branch").click()
    assert c.said() == ["one", "You said: one", "two", "You said: two"]
    stub.replies["two"] = "Again."
    c.button("Regenerate").last.click()
    c.page.get_by_text("Again.", exact=True).wait_for()
    assert len(stub.asked[-1]["messages"]) == 3
    c.answered()
    assert c.page.get_by_text("2/2").count() == 1  # the first message stands at 1/2
    c.page.locator("article").last.get_by_role("button", name="Previous branch").click()
    assert c.said()[-1] == "You said: two"
    c.page.get_by_label("Message", exact=True).press("ArrowUp")
    c.page.get_by_label("Edit the message").press("Escape")
    assert c.said()[-1] == "You said: two" and c.problems == []


def test_settings_reach_the_server(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.button("Settings").click()
    c.page.get_by_label("System prompt").fill("Be brief.")
    for name, value in {
        "temperature": "0.7",
        "top_k": "40",
        "max_tokens": "0",
        "seed": "5",
    }.items():
        c.page.get_by_label(name).fill(value)
    c.page.get_by_label("Colours").select_option("dark")
    c.page.keyboard.press("Escape")
    c.say("hi")
    asked = stub.asked[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {k: asked.get(k) for k in ("temperature", "top_k", "seed", "max_tokens", "top_p")} == {
        "temperature": 0.7, "top_k": 40, "seed": 5, "max_tokens": None, "top_p": None,
    }  # fmt: skip
    c.page.reload()
    assert c.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 24)"
    c.say("again")
    assert stub.asked[-1]["temperature"] == 0.7


def test_two_windows_do_not_overwrite_each_other(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.say("first")
    other = Chat(stub, c.page.context.new_page())
    assert other.said() == ["first", "You said: first"]
    c.say("second")
    other.page.get_by_text("You said: second").wait_for()
    other.write("slow")  # is still running while the first window goes on
    other.page.get_by_text("and so on and so on").first.wait_for()
    c.say("third")
    other.button("Stop").click()
    other.button("Send").wait_for()
    c.page.reload()
    kept = c.page.evaluate("Object.values(localStorage).join()")
    assert all(text in kept for text in ("You said: second", "You said: third", "and so on"))
    assert "busy" not in kept
    other.write("slow")
    other.page.get_by_text("and so on and so on").nth(1).wait_for()
    c.write("slow")  # begins while the other is written, and ends after it
    c.page.get_by_text("and so on and so on").nth(1).wait_for()
    for window in (other, c):
        window.button("Stop").click()
        window.button("Send").wait_for()
    assert "busy" not in c.page.evaluate("Object.values(localStorage).join()")
    assert c.problems == other.problems == []


def test_a_server_without_a_list_of_models_is_told(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.say("first")
    c.page.route("**/v1/models", lambda route: route.fulfill(status=500, body="{}"))
    c.page.reload()
    c.page.get_by_text("Reload this page to try again").wait_for()
    assert c.said() == ["first", "You said: first"]


def test_conversations_are_kept_renamed_exported_and_deleted(
    chat: Opened, stub: Stub, tmp_path: Path
) -> None:
    c = chat()
    c.say("About boats")
    c.button("New chat").click()
    c.say("About trees")
    c.page.reload()
    assert c.said() == ["About trees", "You said: About trees"]
    c.button("About boats").click()
    assert c.said() == ["About boats", "You said: About boats"]
    c.button("Rename this conversation").click()
    c.page.get_by_label("Title").fill("Ships & <b>boats</b>")
    c.page.keyboard.press("Enter")
    c.button("Ships & <b>boats</b>").wait_for()
    with c.page.expect_download() as waiting:
        c.button("Export this conversation").click()
    assert waiting.value.suggested_filename == "Ships-b-boats-b-.json"
    waiting.value.save_as(tmp_path / "chat.json")
    found = json.loads((tmp_path / "chat.json").read_text())
    assert found["messages"][1] == {"role": "assistant", "content": "You said: About boats"}
    with c.page.expect_download() as waiting:
        c.button("Export all").click()
    waiting.value.save_as(tmp_path / "all.json")
    assert len(json.loads((tmp_path / "all.json").read_text())) == 2
    c.page.on("dialog", lambda dialog: dialog.accept())
    c.button("Delete this conversation").click()
    assert c.said() == ["About trees", "You said: About trees"]
    c.button("Delete this conversation").click()
    c.page.reload()
    assert c.said() == [] and c.page.locator("#chats li").count() == 0 and c.problems == []


def test_two_models_side_by_side(chat: Opened, stub: Stub) -> None:
    stub.models = ["small.gguf", "large.gguf"]
    c = chat()
    assert not c.page.get_by_label("Second model").is_visible()
    c.page.get_by_label("Model", exact=True).select_option("large.gguf")
    c.page.get_by_label("Compare").check()
    c.page.get_by_label("Second model").select_option("small.gguf")
    c.say("hi")
    assert c.page.locator(".pair .model").all_inner_texts() == ["large.gguf", "small.gguf"]
    assert [asked["model"] for asked in stub.asked] == ["large.gguf", "small.gguf"]
    one, other = (c.page.locator(".pair .columns > div").nth(i).bounding_box() for i in (0, 1))
    assert one["y"] == other["y"] and one["x"] < other["x"]
    c.button("Settings").click()
    c.page.get_by_label("Two models answer").select_option("at once")
    c.button("Done").click()
    c.write("slow")
    c.page.locator("article").last.locator(".said", has_text="and so").nth(1).wait_for()
    c.button("Stop").click()
    c.answered()
    c.page.get_by_label("Compare").uncheck()
    c.say("more")
    assert len(stub.asked) == 5 and c.problems == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("too long", "The server refused: the prompt has 9000 tokens, 4096 fit"),
        ("busy", "The server is busy; try again in 7 s: 8 are waiting"),
        ("broken", "The server failed: out of memory"),
        ("cut", "The connection broke off."),
    ],
)
def test_errors_in_words(chat: Opened, text: str, says: str) -> None:
    c = chat()
    c.say(text)
    assert c.page.locator("article .problem").inner_text() == says
    assert says in c.page.locator("#status").text_content()
    c.page.reload()
    assert c.page.locator("article .problem").inner_text() == says
    assert c.say("hi").inner_text() == "You said: hi" and c.problems == []


def test_a_server_that_is_gone(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.say("hi")
    c.page.route("**/v1/**", lambda route: route.abort())
    c.say("there")
    assert "cannot be reached" in c.page.locator("article .problem").last.inner_text()
    c.page.unroute("**/v1/**")
    c.button("Regenerate").last.click()
    c.page.get_by_text("You said: there", exact=True).wait_for()


def test_a_key_is_asked_for(chat: Opened, stub: Stub) -> None:
    stub.key = "secret"
    c = chat()
    c.page.get_by_text("This server asks for an API key.").wait_for()
    c.page.get_by_label("API key").fill("wrong")
    c.button("Done").click()
    c.page.get_by_text("This server asks for an API key.").wait_for()
    c.page.get_by_label("API key").fill("secret")
    c.button("Done").click()
    c.page.locator("#model option").wait_for(state="attached")
    assert c.say("hi").inner_text() == "You said: hi"
    assert "secret" not in c.page.evaluate("JSON.stringify(localStorage)")


MARKDOWN = """# Pumps

A **heat pump** moves *heat*, `not` air; snake_case_name stays, ***both*** too; *out **in** out*.
See [the page](https://example.org/a_(b)) or https://example.org/x.

1. First
   - inner **one**
   - inner two

   ```python
   print("<b>hi</b>")
   ```
2. Second

> quoted
> > twice

| a | b |
|---|:-:|
| 1 | `x` |

---
~~gone~~ 2 * 3 * 4 \\*kept\\*"""


def test_markdown(chat: Opened, stub: Stub) -> None:
    stub.replies["md"] = MARKDOWN
    c = chat()
    said = c.say("md")

    def texts(selector: str) -> list[str]:
        found: list[str] = said.locator(selector).all_inner_texts()
        return found

    assert texts("h3") == ["Pumps"] and texts("strong") == ["heat pump", "both", "in", "one"]
    assert texts("em") == ["heat", "both", "out in out"] and texts("s") == ["gone"]
    assert texts("p code") == ["not"] and texts("td") == ["1", "x"] and texts("th") == ["a", "b"]
    assert texts("ol > li > ul > li") == ["inner one", "inner two"]
    assert said.locator("ol").count() == 1 and said.locator("ol > li").count() == 2
    assert texts("ol pre") == ['print("<b>hi</b>")'] and texts(".code span") == ["python"]
    assert texts("blockquote blockquote") == ["twice"] and said.locator("hr").count() == 1
    assert "snake_case_name" in said.inner_text() and "2 * 3 * 4 *kept*" in said.inner_text()
    links = said.locator("a")
    assert [links.nth(i).get_attribute("href") for i in (0, 1)] == [
        "https://example.org/a_(b)", "https://example.org/x",
    ]  # fmt: skip
    assert links.nth(0).get_attribute("rel") == "noopener noreferrer"
    c.button("Copy code").click()
    c.button("Copied").wait_for()
    assert c.page.evaluate("navigator.clipboard.readText()") == 'print("<b>hi</b>")'


HOSTILE = {
    "html": "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>",
    "links": "[a](javascript:document.title='broken') [b](data:text/html,x) [c]( JaVaScRiPt:1) "
    "![i](http://x.invalid/i.png) [d](//x.invalid) [e](vbscript:1) [<img src=x onerror=alert(1)>](x)",
    "fence": "```<img/onerror=1>\n</code></pre><script>document.title='broken'</script>",
    "line": "x" * 300_000,
    "stars": "*a" * 60_000 + "\n\n" + "**_`[" * 3900,
    "brackets": "[" * 19_000 + "\n\n" + "](" * 9_000,
    "quotes": ">" * 20_000 + "\n" + "> " * 5_000,
    "lists": "\n".join(" " * i + "- x" for i in range(300)),
    "table": "|" * 5_000
    + "\n"
    + "|-" * 2_000
    + "\n a | b \n"
    + " " * 50_000
    + "-"
    + " " * 50_000
    + "x",
    "controls": "\u202e\u0000\u2028\x1b[31m\ufeff" * 50,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_answers_are_harmless(chat: Opened, stub: Stub, kind: str) -> None:
    stub.replies["go"] = HOSTILE[kind]
    c = chat(360)
    said = c.say("go")
    inside = "img, script, iframe, style, [onerror], [style], [src]"
    assert said.locator(inside).count() == 0
    links = [link.get_attribute("href") for link in said.locator("a").all()]
    assert all(link.startswith("http") for link in links)
    assert c.page.title() == "edgeft chat" and c.width() <= 360 and c.problems == []
    took = c.page.evaluate(
        "text => { const t = performance.now(); markdown(text.split('\\n')); "
        "return performance.now() - t }",
        HOSTILE[kind],
    )
    assert took < 1000
    if kind == "html":
        assert said.inner_text() == HOSTILE[kind]


def test_hostile_storage_is_harmless(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.page.evaluate(
        "localStorage.setItem('edgeft.settings', 'no JSON'); localStorage.setItem('edgeft.chat.1', '7');"
        "localStorage.setItem('edgeft.chat.2', '{}')"
    )
    c.page.reload()
    assert c.say("hi").inner_text() == "You said: hi" and c.problems == []


def test_a_screen_reader_hears_whole_answers(chat: Opened) -> None:
    c = chat()
    log = c.page.get_by_role("log")
    assert log.get_attribute("aria-live") == "off"
    status = c.page.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    c.page.evaluate(
        "window.heard = []; new MutationObserver(() => heard.push(document.getElementById('status')"
        ".textContent)).observe(document.getElementById('status'), {childList: true})"
    )
    c.say("a rather long message that is streamed in many pieces")
    c.page.wait_for_function("heard.length === 2")
    assert c.page.evaluate("heard")[1].startswith("Answer: You said: a rather long message")


def test_keys(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.page.keyboard.press("Control+/")
    c.page.get_by_role("heading", name="Keys").wait_for()
    c.page.keyboard.press("Escape")
    box = c.page.get_by_label("Message", exact=True)
    box.focus()
    c.page.keyboard.type("one")
    c.page.keyboard.press("Shift+Enter")
    c.page.keyboard.type("two")
    c.page.keyboard.press("Enter")
    c.answered()
    assert stub.asked[-1]["messages"][-1]["content"] == "one\ntwo"
    assert box.input_value() == "" and box.evaluate("e => e === document.activeElement")
    c.write("   ")
    assert len(stub.asked) == 1


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_looks(chat: Opened, stub: Stub, width: int, dark: bool) -> None:
    stub.models = ["out/smollm2-135m-q4_k_m.gguf", "out/smollm2-135m-f16.gguf"]
    stub.replies["How does a heat pump work?"] = MARKDOWN
    stub.replies["Turn on the lamp"] = 'Sure:\n\n```json\n{"device": "lamp", "on": true}\n```'
    c = chat(width, dark)
    name = f"{width}-{'dark' if dark else 'light'}"
    shot(c.page, f"empty-{name}")
    c.say("How does a heat pump work?")
    assert c.width() <= width
    shot(c.page, f"answer-{name}")
    c.page.get_by_label("Compare").check()
    c.say("Turn on the lamp")
    assert c.width() <= width
    shot(c.page, f"compare-{name}")
    c.button("Settings").click()
    shot(c.page, f"settings-{name}")
    c.button("Done").click()
    if width < 800:
        c.button("Chats").click()
        shot(c.page, f"list-{name}")
        assert c.page.locator("#new").evaluate("e => e === document.activeElement")
        c.page.keyboard.press("Escape")
        assert not c.page.locator("#new").is_visible()


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"chat-{name}.png"))
