"""Markdown pages -> their links, headings, code blocks, and the edgeft commands in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import DOCS, ROOT

SHELLS = ("console", "sh")
"""languages of blocks with commands: console is run, sh is parsed"""
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SEPARATORS = ("|", "&", "&&", ";", ">")


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Commands, with lines that go on joined; of a console those behind the prompt."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return lines


def manual() -> list[Path]:
    """README.md and the pages of docs/, in the order in which a reader meets them."""
    first = [ROOT / "README.md", DOCS / "quickstart.md"]
    return first + [path for path in sorted(DOCS.rglob("*.md")) if path not in first]


def pages() -> list[Path]:
    """Every Markdown page for people, those outside docs/ included."""
    names = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "deploy/README.md")
    return [*manual(), *(ROOT / name for name in names)]


def blocks(page: Path) -> list[Block]:
    return [
        Block(page, language, textwrap.dedent(text))
        for _, language, text in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    """Inline code."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def links(page: Path) -> list[str]:
    """Targets of links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def edgeft_commands(line: str) -> Iterator[list[str]]:
    """The arguments of each `edgeft ...` in a line of shell: `echo a | edgeft chat b # c` -> [chat, b]."""
    words = shlex.split(line, comments=True)
    for start in (i + 1 for i, word in enumerate(words) if word == "edgeft"):
        end = next((i for i, w in enumerate(words) if i >= start and w in SEPARATORS), len(words))
        yield words[start:end]
