"""The files of page/ -> the chat page as one document, which loads nothing.

page/ is plain HTML, CSS and JavaScript without a build step: index.html names the other files in the order
in which a browser reads them.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).with_name("page")
PART = re.compile(
    r'<link rel="stylesheet" href="(?P<style>[\w.]+)">|<script src="(?P<script>[\w.]+)"></script>'
)


def chat_page() -> bytes:
    """index.html with the styles and scripts that it names in their places."""

    def inlined(part: re.Match[str]) -> str:
        tag = "style" if part["style"] else "script"
        text = (FOLDER / (part["style"] or part["script"])).read_text(encoding="utf-8")
        return f"<{tag}>\n{text}</{tag}>"

    return PART.sub(inlined, (FOLDER / "index.html").read_text(encoding="utf-8")).encode()
