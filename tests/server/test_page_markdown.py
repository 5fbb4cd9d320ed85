"""What a model writes, as the chat page shows it, and that none of it is read as HTML."""

from __future__ import annotations

import pytest

from helpers.chat_browser import Chat, Opened
from helpers.chat_stub import Stub
from helpers.markdown import FORMULAS, MARKDOWN


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
    assert texts("ol pre") == ['print("<b>hi</b>")'] and texts(".code > div span") == ["python"]
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


TABLES = r"""Prices of today:
| left | right | middle | plain |
|:-----|------:|:------:|-------|
| a \| b | 1 | `x\|y` | *z* | more
| only |
Behind it
a | b
no table

- [ ] open **task**
- [x] done
- [link](https://example.org/)"""


def test_tables_and_task_lists(chat: Opened, stub: Stub) -> None:
    stub.replies["go"] = TABLES
    c = chat()
    said = c.say("go")
    assert said.locator("p").first.inner_text() == "Prices of today:"
    assert said.locator("table").count() == 1
    rows = [row.locator("td").all_inner_texts() for row in said.locator("tbody tr").all()]
    assert rows == [["a | b", "1", "x|y", "z"], ["only", "", "", ""]]
    sides = said.locator("td").evaluate_all("l => l.map(e => getComputedStyle(e).textAlign)")
    assert sides[:4] == ["left", "right", "center", "left"]
    assert said.locator("p").nth(1).inner_text() == "Behind it\na | b\nno table"
    boxes = said.get_by_role("checkbox")
    assert boxes.evaluate_all("l => l.map(e => [e.checked, e.disabled])") == [
        [False, True], [True, True],
    ]  # fmt: skip
    assert said.locator("li").all_inner_texts() == ["open task", "done", "link"]
    assert c.problems == []


def test_entities_are_characters_except_in_code(chat: Opened, stub: Stub) -> None:
    stub.replies["go"] = (
        "Q&amp;A &lt;b&gt; &copy; &#8364;&#x20AC; &nosuch; &constructor; &#0; &amp;lt; AT&T `&amp;`"
    )
    said = chat().say("go")
    assert said.inner_text() == ("Q&A <b> © €€ &nosuch; &constructor; &#0; &lt; AT&T &amp;")
    assert said.locator("b").count() == 0


def test_formulas_are_drawn_or_kept_as_written(chat: Opened, stub: Stub) -> None:
    stub.replies["go"] = FORMULAS
    c = chat()
    said = c.say("go")
    maths = said.locator("math")
    assert maths.count() == 4
    sources = said.locator(".math").evaluate_all("l => l.map(e => e.title)")
    assert sources[:2] == [r"\(a_1 \le \frac{b^2}{2}\)", r"$\sqrt[3]{x}$"]
    inside = maths.nth(0)
    assert inside.locator("msub > *").all_text_contents() == ["a", "1"]
    assert inside.locator("mfrac").count() == 1 and "≤" in (inside.text_content() or "")
    assert maths.nth(1).locator("mroot").count() == 1
    matrix = maths.nth(2)
    assert matrix.locator("mtd").all_text_contents() == ["1", "2", "3", "4"]
    assert matrix.locator("munderover").count() == 1 and matrix.get_attribute("display") == "block"
    assert maths.nth(3).locator("msup > *").all_text_contents() == ["c", "2"]
    assert said.locator(".tex").all_inner_texts() == [r"$\unknown{x} * y * z$"]
    text = said.locator("p").first.inner_text()
    assert "at $5 or $6, not *bold* but ,x." in text
    last = said.locator("p").last
    assert last.inner_text().endswith(r"as does \(an open one * and * more")
    assert last.locator("em").count() == 0 and c.problems == []


@pytest.mark.parametrize(
    "source",
    [r"\frac{1}", r"{x", r"x}", r"\left( x", r"\begin{pmatrix} 1", r"\begin{evil}x\end{evil}", "^2^",
     r"\text{a", r"\end{pmatrix}", "{" * 100 + "}" * 100, r"\href{javascript:1}{x}", r"\\", "&",
     r"\begin{pmatrix} 1 \end{bmatrix}", r"\left", r"\sqrt[", "_", r"\constructor", r"\__proto__"],
)  # fmt: skip
def test_a_formula_that_is_not_understood_is_shown_as_written(
    shared_chat: Chat, source: str
) -> None:
    found = shared_chat.page.evaluate(
        "source => { const node = formula(source); return [node.tagName, node.textContent] }",
        f"\\({source}\\)",
    )
    assert found == ["CODE", f"\\({source}\\)"]


def test_code_is_coloured_and_stays_the_same_text(chat: Opened, stub: Stub) -> None:
    code = 'def f(x):  # a "comment"\n    return "it\'s" + str(1.5e3) + f\'{x}\'  # end\n'
    stub.replies["go"] = f"```python\n{code}```\n\n```unknown\nreturn 1 # x\n```"
    said = chat().say("go")
    blocks = said.locator("pre")
    assert blocks.nth(0).text_content() == code.rstrip("\n")
    spans = blocks.nth(0).locator("span")
    found = dict(spans.evaluate_all("l => l.map(e => [e.textContent, e.className])"))
    assert found['# a "comment"'] == "hc" and found['"it\'s"'] == "hs" and found["1.5e3"] == "hn"
    assert found["def"] == found["return"] == "hk" and "str" not in found
    assert blocks.nth(1).locator("span").count() == 0


def test_thoughts_are_folded(chat: Opened, stub: Stub) -> None:
    stub.replies |= {
        "inside": "<think>\nFirst *this*.\n\nThen that.\n</think>\n\nSo **yes**.",
        "unopened": "All of it before.</think>\nDone.",
        "unclosed": "<think>Never ending",
        "apart": "The answer.",
    }
    stub.thoughts["apart"] = "one two three"
    c = chat()
    for text, thought, said in (
        ("inside", "First *this*.\n\nThen that.", "So yes."),
        ("unopened", "All of it before.", "Done."),
        ("unclosed", "Never ending", ""),
        ("apart", "one two three", "The answer."),
    ):
        assert c.say(text).inner_text() == said
        fold = c.page.locator("article.assistant .thought").last
        assert not fold.locator("div").is_visible()
        fold.locator("summary").click()
        assert fold.locator("div").inner_text().strip() == thought
    stub.replies["tags"] = "Write `<think>` and `</think>`."
    assert c.say("tags").inner_text() == "Write <think> and </think>."
    c.say("next")
    sent = [m["content"] for m in stub.asked[-1]["messages"] if m["role"] == "assistant"]
    assert sent == [
        "So **yes**.", "Done.", "", "The answer.", "Write `<think>` and `</think>`.",
    ]  # fmt: skip
    assert c.problems == []
