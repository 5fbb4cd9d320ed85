"""The report in a real browser: narrow and wide, light and dark, without a network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgeft.report import storage
from helpers.releases import LONG, bare, sample

CONTRAST = """() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  const rgb = text => text.match(/[\\d.]+/g).map(Number)
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2])
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor)
      if (c.length < 4 || c[3] > 0) return c
    }
    return [255, 255, 255]
  }
  const found = []
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement, style = getComputedStyle(e)
    if (!node.textContent.trim() || e.closest('title, desc')) continue
    const fore = light(rgb(e.closest('svg') ? style.fill : style.color)), back = light(behind(e))
    const ratio = (Math.max(fore, back) + 0.05) / (Math.min(fore, back) + 0.05)
    found.push([ratio, e.tagName + ' ' + e.className + ' ' + node.textContent.trim().slice(0, 30)])
  }
  return found.sort((a, b) => a[0] - b[0])
}"""

WIDE = """() => [...document.body.querySelectorAll('*')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.box, svg'))
  .map(e => e.tagName + '.' + e.className)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("report")
    full = sample()
    names = {arm.name: f"{LONG[:90]}-{arm.name}" for arm in full.arms}
    wordy = dataclasses.replace(
        full, ship=names["q4_k_m.gguf"], reason=LONG * 2, notes=(LONG,), commands=(LONG,),
        machine={LONG: LONG}, task=full.task | {"name": LONG},
        arms=tuple(dataclasses.replace(arm, name=names[arm.name]) for arm in full.arms),
    )  # fmt: skip
    releases = {"full": full, "bare": bare(), "wordy": wordy}
    return {name: storage.write(one, folder / name) for name, one in releases.items()}


@pytest.mark.parametrize("name", ["full", "bare", "wordy"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme)
    problems: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert page.evaluate(WIDE) == []
    assert problems == []
    assert [url for url in asked if url.startswith(("http", "ws"))] == []
    ratio, where = page.evaluate(CONTRAST)[0]
    assert ratio >= 4.5, where
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_verdict_is_the_first_thing_to_see(
    browser: Any, pages: dict[str, Path], width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 740})
    page.goto(pages["full"].as_uri())
    first = page.evaluate(
        "document.elementFromPoint(innerWidth / 2, 30).closest('header').innerText"
    )
    assert first.startswith("PASS") and "Ship q4_k_m.gguf" in first
    heading = page.get_by_role("heading", level=1).bounding_box()
    assert heading["y"] + heading["height"] < 200
    page.close()


def test_it_speaks_to_those_who_do_not_see_it(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["full"].as_uri())
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    figure = page.get_by_role("img", name="Quality against size")
    assert figure.count() == 1
    assert page.get_by_role("row").filter(has=page.get_by_role("rowheader")).count() > 20
    assert page.locator("table").count() == page.locator("table:has(thead th[scope=col])").count()
    page.get_by_role("link", name="Losses").click()
    assert page.evaluate("document.querySelector('#losses').getBoundingClientRect().top < 100")
    page.close()
