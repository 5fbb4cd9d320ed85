"""Both languages have the same texts with the same places for values, and every text is used."""

from __future__ import annotations

import re

import pytest

from edgeft.cli._forms import form_of
from edgeft.studio import pages
from edgeft.studio.render import FOLDER
from edgeft.studio.words import LANGUAGES, Words, chosen_language, helps, table

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_text(language: str) -> None:
    english, other = table("en"), table(language)
    assert other.keys() == english.keys()
    assert all(text.strip() for text in other.values())
    for key, text in english.items():
        places = [sorted(re.findall(r"\{\d\}", one)) for one in (text, other[key])]
        assert places[0] == places[1], key


def test_every_text_that_the_pages_name_is_there() -> None:
    known = table("en")
    sources = [*(FOLDER / "templates").iterdir(), *FOLDER.glob("*.py")]
    named = {
        key
        for path in sources
        for key in re.findall(
            r'(?:\bt|words)\("([\w.-]+)"(?:\)|,)', path.read_text(encoding="utf-8")
        )
        if "." in key
    }
    assert len(named) > 80 and not named - known.keys()
    scripts = "".join(path.read_text(encoding="utf-8") for path in (FOLDER / "static").glob("*.js"))
    used = set(re.findall(r'\btext\("(\w+)"', scripts)) | {"loss", "validation", "accuracy"}
    assert used <= Words("en").of("js").keys()
    for page in pages.PAGES:
        assert {f"nav.{page.name}", f"lead.{page.name}"} <= known.keys()
        for form in page.forms:
            assert {f"form.{form.name}", f"run.{form.name}"} <= known.keys()
            assert len(page.forms) == 1 or f"tab.{form.name}" in known


def test_helps_of_options_are_translated() -> None:
    """A help that was changed is English for a while; most are not."""
    shown = {
        text
        for page in pages.PAGES
        for spec in page.forms
        for part in pages.fields_of(spec, form_of(spec.command))
        for field in part
        for text in (field.help, field.default_text)
        if text
    }
    for language in LANGUAGES.keys() - {"en"}:
        known = helps(language)
        assert len(known.keys() & shown) > 0.95 * len(shown), shown - known.keys()
        assert len(known.keys() - shown) < 0.05 * len(shown), known.keys() - shown
    field = next(field for field in form_of("train").fields if field.name == "steps")
    assert Words("en").help(field.help) == field.help
    assert Words("zh").help(field.help) == "优化步数。"


@pytest.mark.parametrize(
    ("cookie", "accepted", "language"),
    [
        ("", "", "en"),
        ("zh", "en", "zh"),
        ("", "zh-CN,zh;q=0.9", "zh"),
        ("xx", "fr, zh", "zh"),
        ("", "fr", "en"),
    ],
)
def test_the_browser_chooses_the_language(cookie: str, accepted: str, language: str) -> None:
    assert chosen_language(cookie, accepted) == language
