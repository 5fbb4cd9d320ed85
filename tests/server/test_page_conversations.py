"""What a user does with conversations on the chat page: long ones, other answers, files, presets, search."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.chat_browser import Chat, Opened
from helpers.chat_stub import Stub
from helpers.serving import exported, running


def sent(stub: Stub) -> list[str]:
    return [message["content"] for message in stub.asked[-1]["messages"]]


def wait_until(is_true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.02)


def kept(c: Chat) -> list[Any]:
    texts = c.page.evaluate(
        "Object.entries(localStorage).filter(([k]) => k.startsWith('edgeft.chat.')).map(([, v]) => v)"
    )
    return [json.loads(text) for text in texts]


def test_regenerate_samples_with_a_new_seed_each_time(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.say("hi")
    assert "temperature" not in stub.asked[-1]
    for _ in range(2):
        count = len(stub.asked)
        c.button("Regenerate").click()
        c.page.locator("article.assistant", has_text=f"{count + 1}/{count + 1}").wait_for()
        c.answered()
    first, second = stub.asked[-2:]
    assert first["temperature"] == second["temperature"] == 0.8 and first["seed"] != second["seed"]
    facts = c.page.locator("article.assistant .facts").inner_text()
    assert facts.startswith(f"temperature 0.8, seed {second['seed']} · ")
    c.button("Settings").click()
    c.page.get_by_label("temperature").fill("1.2")
    c.button("Done").click()
    c.button("Regenerate").click()
    c.page.get_by_text("4/4").wait_for()
    c.answered()
    assert stub.asked[-1]["temperature"] == 1.2 and c.problems == []


def test_the_oldest_turns_are_left_out_where_the_context_is_full(chat: Opened, stub: Stub) -> None:
    stub.context = 200
    c = chat()
    c.page.get_by_text("0 of 200 tokens").wait_for()
    for number in range(8):
        c.say(f"number {number} and ten more words that fill up this context quickly")
        assert c.page.locator("article .problem").last.inner_text() == ""
    texts = sent(stub)
    assert texts[-1].startswith("number 7") and not any("number 0" in text for text in texts)
    assert stub.asked[-1]["messages"][0]["role"] == "user"
    assert all(sum(len(m["content"].split()) for m in asked["messages"]) <= 200
               for asked in stub.asked if asked["messages"][0] == stub.asked[-1]["messages"][0])  # fmt: skip
    assert c.page.get_by_text("is no longer sent: the context is full").count() == 1
    left = c.page.locator("article.left-out").count()
    assert 0 < left < 16
    assert (
        f"of 200 tokens · {left} older messages are not sent"
        in c.page.locator("#tokens").inner_text()
    )
    c.page.reload()
    c.page.get_by_text("is no longer sent: the context is full").wait_for()
    assert c.problems == []


def test_the_meter_shows_what_the_server_counted(chat: Opened, stub: Stub) -> None:
    stub.context = 4096
    c = chat()
    c.say("one two three")
    answer = stub.asked[-1]["messages"]
    assert len(answer) == 1
    tokens = 3 + -(-len("You said: one two three") // 3)
    assert c.page.locator("#tokens").inner_text() == f"{tokens} of 4,096 tokens"
    c.page.get_by_label("Message", exact=True).fill("x" * 300)
    assert c.page.locator("#tokens").inner_text().startswith("about ")
    c.page.get_by_label("Message", exact=True).fill("x" * 30_000)
    assert c.page.locator("#tokens").inner_text().endswith("too long")


def test_a_message_that_is_too_long_spoils_no_later_one(chat: Opened, stub: Stub) -> None:
    stub.context = 50
    c = chat()
    c.say("first")
    c.say("word " * 80)
    problem = c.page.locator("article .problem").last.inner_text()
    assert problem == "The server refused: the prompt has 80 tokens, the context only 50"
    assert c.say("second").inner_text() == "You said: second"
    assert sent(stub) == ["first", "You said: first", "second"]
    assert c.problems == []


def test_an_answer_that_was_cut_off_goes_on(chat: Opened, stub: Stub) -> None:
    stub.replies |= {"longest": "a beginning", "continue": " and an end"}
    c = chat()
    c.say("hi")
    assert not c.button("Continue").is_visible()
    c.say("longest")
    c.button("Continue").click()
    c.page.get_by_text("a beginning and an end", exact=True).wait_for()
    c.answered()
    asked = stub.asked[-1]
    assert asked["messages"][-1] == {"role": "assistant", "content": "a beginning"}
    assert asked["continue_final_message"] is True and asked["add_generation_prompt"] is False
    assert c.page.locator("article").count() == 4 and not c.button("Continue").is_visible()
    stub.continues = False
    c.say("longest")
    c.button("Continue").click()
    c.page.locator("article .problem", has_text="This server does not continue answers.").wait_for()
    assert c.page.locator("article .said").last.inner_text() == "a beginning"
    c.answered()
    assert not c.button("Continue").is_visible() and c.problems == []


def test_one_answer_is_edited_as_a_branch(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.say("hi")
    c.button("Edit", c.page.locator("article.assistant")).click()
    c.page.get_by_label("Edit the answer").fill("My **own** words")
    c.button("Save").click()
    assert c.said()[-1] == "My own words"
    assert "edited" in c.page.locator("article.assistant .actions").inner_text()
    c.say("more")
    assert sent(stub) == ["hi", "My **own** words", "more"]
    c.page.locator("article").nth(1).get_by_role("button", name="Previous branch").click()
    assert c.said() == ["hi", "You said: hi"] and c.problems == []


def test_one_answer_is_deleted(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.page.on("dialog", lambda dialog: dialog.accept())
    c.say("one")
    c.say("two")
    other = Chat(stub, c.page.context.new_page())
    c.button("Delete", c.page.locator("article").last).click()
    assert c.said() == ["one", "You said: one", "two"]
    wait_until(lambda: other.page.locator("article").count() == 3)
    c.button("Answer").click()
    c.page.locator("article").nth(3).wait_for()
    c.answered()
    assert c.said()[-1] == "You said: two"
    c.button("Delete", c.page.locator("article").first).click()
    assert c.said() == []
    c.page.reload()
    assert c.said() == []
    c.say("three")
    (only,) = kept(c)
    assert len(only["nodes"]) == 2 and c.problems == other.problems == []


def test_presets_of_the_system_prompt_and_a_sign_that_one_is_set(chat: Opened, stub: Stub) -> None:
    c = chat()
    assert c.page.locator("#system-sign").count() == 0
    c.page.on("dialog", lambda dialog: dialog.accept("Pirate"))
    c.button("Settings").click()
    assert c.button("Save as preset").is_disabled()
    c.page.get_by_label("System prompt of").fill("Talk like a pirate.")
    c.button("Save as preset").click()
    c.page.get_by_label("System prompt of").fill("")
    c.page.get_by_label("Preset", exact=True).select_option("Pirate")
    assert c.page.get_by_label("System prompt of").input_value() == "Talk like a pirate."
    c.button("Done").click()
    sign = c.page.locator("#system-sign")
    assert not sign.get_by_text("Talk like a pirate.").is_visible()
    sign.get_by_text("System prompt").click()
    assert sign.get_by_text("Talk like a pirate.").is_visible()
    c.say("hi")
    assert sent(stub) == ["Talk like a pirate.", "hi"]
    c.page.reload()
    c.button("Settings").click()
    c.button("Delete preset").click()
    assert c.page.get_by_label("Preset", exact=True).is_disabled()
    assert c.problems == []


def test_conversations_are_searched(chat: Opened, stub: Stub) -> None:
    c = chat()
    for text in ("About boats", "About trees and leaves"):
        c.button("New chat").click()
        c.say(text)
    stub.replies["deep"] = "The mariner's compass points north."
    c.say("deep")
    search = c.page.get_by_label("Search conversations")
    search.fill("NORTH compass")
    rows = c.page.locator("#chats li")
    assert rows.count() == 1
    assert "points north" in rows.inner_text()
    search.fill("boats")
    assert rows.locator(".open").all_inner_texts() == ["About boats"]
    rows.locator(".open").click()
    assert c.said()[0] == "About boats"
    search.fill("nowhere")
    assert rows.all_inner_texts() == ["Nothing was found."]
    search.fill("")
    assert rows.count() == 2 and c.problems == []


def test_text_files_are_attached(chat: Opened, stub: Stub) -> None:
    c = chat()
    files = c.page.get_by_label("Text files to attach")
    files.set_input_files([
        {"name": "notes.md", "mimeType": "text/markdown", "buffer": "# é\n```x```".encode()},
        {"name": "<b>.txt", "mimeType": "text/plain", "buffer": b"plain"},
    ])  # fmt: skip
    files.set_input_files(
        [{"name": "photo.png", "mimeType": "image/png", "buffer": b"\x89PNG\0\xff"}]
    )
    c.page.get_by_role("alert").filter(has_text="photo.png was not attached").wait_for()
    files.set_input_files([{"name": "big.log", "mimeType": "text/plain", "buffer": b"x" * 900_000}])
    c.page.get_by_role("alert").filter(has_text="800 kB at most").wait_for()
    listed = c.page.locator("#files li")
    assert [text.split(" · ")[0] for text in listed.all_inner_texts()] == ["notes.md", "<b>.txt"]
    c.button("Remove <b>.txt").click()
    c.say("sum up")
    assert sent(stub) == ["notes.md:\n````\n# é\n```x```\n````\n\nsum up"]
    assert c.page.locator("article.user .said").inner_text() == "sum up"
    shown = c.page.locator("article.user .file")
    assert shown.locator("summary").inner_text().startswith("notes.md")
    shown.locator("summary").click()
    assert shown.locator("pre").inner_text() == "# é\n```x```"
    assert listed.count() == 0
    c.page.reload()
    c.say("again")
    assert sent(stub)[0].startswith("notes.md:") and c.problems == []


def test_what_was_exported_is_imported(chat: Opened, stub: Stub, tmp_path: Path) -> None:
    c = chat()
    c.say("one")
    c.button("Regenerate").click()
    c.page.get_by_text("2/2").wait_for()
    c.answered()
    c.say("two")
    with c.page.expect_download() as waiting:
        c.button("Export all").click()
    waiting.value.save_as(tmp_path / "all.json")
    before = kept(c)
    c.page.on("dialog", lambda dialog: dialog.accept())
    c.button("Delete this conversation").click()
    assert kept(c) == []
    c.page.get_by_label("Conversations to import").set_input_files(tmp_path / "all.json")
    c.page.get_by_text("You said: two", exact=True).wait_for()
    assert c.said() == ["one", "You said: one", "two", "You said: two"]
    c.page.get_by_text("2/2").wait_for()
    (after,) = kept(c)
    assert after["id"] != before[0]["id"]
    texts = [[n.get("text") or n["replies"][0]["text"] for n in one[0]["nodes"]]
             for one in (before, [after])]  # fmt: skip
    assert texts[0] == texts[1] and c.problems == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no JSON", "it is no JSON"),
        ("7", "no conversation"),
        ("[]", "no conversation"),
        ('{"branches": [{"id": "a", "parent": "b", "role": "user"}]}', "a message is broken"),
        (
            '{"branches": [{"id": "a", "role": "assistant", "replies": [{}]}]}',
            "a message is broken",
        ),
        ('{"branches": [7]}', "a message is broken"),
        ('[{"role": "tool", "content": "1"}]', "a message of the role tool cannot be shown"),
        (
            '[{"role": "user", "content": [{"type": "image_url"}]}]',
            "a message holds more than text",
        ),
        ('[{"role": "assistant", "tool_calls": [{}]}]', "a message holds more than text"),
    ],
)
def test_a_wrong_import_changes_nothing(shared_chat: Chat, content: str, says: str) -> None:
    c, name = shared_chat, f"{zlib.crc32(content.encode())}.json"  # other cases have the same page
    file = {"name": name, "mimeType": "application/json", "buffer": content.encode()}
    c.page.get_by_label("Conversations to import").set_input_files([file])
    c.page.get_by_role("alert").filter(has_text=f"{name} was not imported: {says}").wait_for()
    assert kept(c) == [] and c.problems == []


def test_messages_of_openai_are_imported_and_never_read_as_html(chat: Opened, stub: Stub) -> None:
    evil = "<img src=x onerror=\"document.title='broken'\">"
    value = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": evil}]},
        {"role": "assistant", "content": evil, "reasoning_content": evil, "__proto__": {"x": 1}},
    ]
    hostile = {
        "title": evil,
        "branches": [
            {"id": "a", "parent": "a", "role": "user", "text": evil, "onclick": evil},
            {"id": "b", "parent": "a", "role": "assistant",
             "replies": [{"model": evil, "text": evil, "finish": evil, "rate": evil}]},
        ],
    }  # fmt: skip
    c = chat()
    for one in (value, hostile):
        file = {"name": "x.json", "mimeType": "a/b", "buffer": json.dumps(one).encode()}
        c.page.get_by_label("Conversations to import").set_input_files([file])
        c.page.locator("article.assistant").wait_for()
    assert c.said() == [evil, evil]
    c.page.locator("#chats li").nth(1).get_by_role("button").first.click()
    assert c.said() == [evil, evil]
    c.say("go on")
    assert sent(stub)[:3] == ["Be brief.", evil, evil]
    assert c.page.title() == "edgeft chat" and c.page.locator("img").count() == 0
    assert c.problems == []


def test_a_new_chat_while_an_answer_is_written(chat: Opened, stub: Stub) -> None:
    c = chat()
    c.write("slow")
    c.page.get_by_text("and so on and so on").wait_for()
    c.button("New chat").click()
    assert c.said() == []
    c.say("meanwhile")
    assert c.said() == ["meanwhile", "You said: meanwhile"]
    assert c.page.locator("#chats .writing").count() == 1
    c.page.locator("#chats .open", has_text="slow").click()
    grown = len(c.said()[-1])
    wait_until(lambda: len(c.said()[-1]) > grown)
    c.button("Stop").click()
    c.answered()
    assert stub.left.wait(5)
    assert c.page.locator("#chats .writing").count() == 0
    assert "stopped" in c.page.locator("article.assistant .facts").inner_text()
    assert c.problems == []


def test_a_chat_that_is_deleted_while_its_answer_is_written_stays_deleted(
    chat: Opened, stub: Stub
) -> None:
    c = chat()
    c.page.on("dialog", lambda dialog: dialog.accept())
    c.write("slow")
    c.page.get_by_text("and so on and so on").wait_for()
    c.button("Delete this conversation").click()
    assert stub.left.wait(5)
    c.say("hi")
    assert [one["title"] for one in kept(c)] == ["hi"] and c.problems == []


def test_a_branch_that_was_left_by_an_edit_is_whole(chat: Opened, stub: Stub) -> None:
    c = chat()
    stub.replies["longest"] = "cut"
    c.say("longest")
    c.button("Edit", c.page.locator("article.user")).click()
    c.page.get_by_label("Edit the message").fill("  ")
    c.button("Send", c.page.locator("article.user")).click()
    c.page.get_by_label("Edit the message").fill("other")
    c.page.keyboard.press("Enter")
    c.page.get_by_text("You said: other", exact=True).wait_for()
    c.answered()
    c.button("Previous branch").click()
    assert c.said() == ["longest", "cut"] and c.page.get_by_role("textbox").count() == 1
    assert c.button("Continue").is_visible()
    c.page.reload()
    assert c.button("Continue").is_visible() and c.problems == []


def test_the_page_on_a_real_server(
    browser: Any, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (artifact,) = exported(tiny_base, tmp_path_factory.mktemp("page"), "f32")
    with running(artifact, context=160) as served:
        page = browser.new_page()
        c = Chat(served, page)
        c.button("Settings").click()
        page.get_by_label("max_tokens").fill("8")
        c.button("Done").click()
        page.get_by_text("0 of 160 tokens").wait_for()
        begun = c.say("hello").inner_text()
        c.button("Continue").click()
        facts = page.locator("article .facts").last
        wait_until(lambda: "16 tokens" in facts.inner_text())
        assert c.answered().inner_text().startswith(begun)
        for number in range(6):
            c.say(f"number {number}")
        c.button("Regenerate").last.click()
        page.get_by_text("2/2").wait_for()
        c.answered()
        assert "temperature 0.8, seed" in page.locator("article .facts").last.inner_text()
        assert page.locator("article.left-out").count() >= 2
        c.say("x " * 400)
        assert "the context only 160" in page.locator("article .problem").last.inner_text()
        c.say("short")
        assert not page.locator("article .problem").last.is_visible()
        assert c.problems == []
        page.close()


def test_jump_to_the_end(chat: Opened, stub: Stub) -> None:
    stub.replies["long"] = "line\n\n" * 80
    c = chat()
    c.say("long")
    end = c.button("Jump to the end")
    assert not end.is_visible()
    c.page.locator("#log").evaluate("e => e.scrollTop = 0")
    end.click()
    end.wait_for(state="hidden")
    assert c.page.evaluate("nearEnd()")


def test_the_page_has_a_main_landmark(chat: Opened) -> None:
    c = chat()
    main = c.page.get_by_role("main")
    assert main.count() == 1 and main.get_by_role("log").count() == 1


LONG_CHAT = """turns => {
  const one = { id: "long", title: "Long", system: "", nodes: [], tip: null, changed: 1 };
  for (let i = 0; i < turns; i++) {
    const parent = one.tip;
    one.nodes.push({ id: `u${i}`, parent, role: "user", text: `Question ${i}?` });
    const text = `# Part ${i}\\n\\nSome **bold** text with \\`code\\` and a [link](https://example.org/).\\n\\n` +
      "- a list\\n- of things\\n\\n".repeat(3) + "A paragraph of some length, as a model writes it. ".repeat(15) +
      "\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |\\n\\n```python\\nfor i in range(10):\\n    print(i)\\n```\\n";
    one.nodes.push({ id: one.tip = `a${i}`, parent: `u${i}`, role: "assistant", replies: [{ model: "small.gguf", text, finish: "stop" }] });
  }
  localStorage.setItem("edgeft.chat.long", JSON.stringify(one));
}"""


@pytest.mark.parametrize("turns", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_a_redraw_of_many_turns_draws_no_message_again(
    chat: Opened, stub: Stub, turns: int
) -> None:
    c = chat()
    c.page.evaluate(LONG_CHAT, turns)
    c.page.reload()
    assert c.page.locator("article").count() == 2 * turns
    # Long answers are drawn while the page is idle, which a busy machine seldom is.
    wait_until(lambda: c.page.evaluate("later.length") == 0, seconds=60)
    assert c.page.locator("article.assistant h3").count() == turns
    assert c.page.evaluate("nearEnd()")
    same = """() => {
        const before = [...document.querySelectorAll("article, article h3")];
        show();
        const after = [...document.querySelectorAll("article, article h3")];
        return before.length === after.length && before.every((element, i) => element === after[i]);
    }"""
    assert c.page.evaluate(same)
    first = c.page.locator("article").first.element_handle()
    c.say("one more")
    assert first.evaluate("e => e.isConnected")  # it was not drawn again
    assert c.problems == []
