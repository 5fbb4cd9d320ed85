"""The chat page is one document of the files in page/."""

from __future__ import annotations

import re

import pytest

from edgeft.server.chat_page import FOLDER, chat_page
from edgeft.web.content_policy import content_policy

pytestmark = pytest.mark.unit


def test_every_file_of_the_folder_is_in_the_page() -> None:
    page = chat_page().decode()
    files = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert set(files) >= {"index.html", "style.css", "app.js"}
    for name, text in files.items():
        assert name == "index.html" or text in page, name
        assert "</script" not in text or name == "index.html"


def test_the_page_loads_nothing_and_reads_no_text_as_html() -> None:
    page = chat_page().decode()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:)", page)
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", page
    )
    assert not re.findall(r"\son\w+=|style=\"", page)


def test_every_script_and_style_has_its_hash() -> None:
    policy = content_policy(chat_page())
    scripts = len(list(FOLDER.glob("*.js")))
    assert policy.partition("style-src")[0].count("'sha256-") == scripts
    assert "unsafe" not in policy
