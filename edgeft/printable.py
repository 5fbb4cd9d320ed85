"""A text that holds parts of a stranger's file -> one printable line of bounded length."""

from __future__ import annotations

MAX_LINE_CHARS = 4000


def one_printable_line(text: str, max_chars: int = MAX_LINE_CHARS) -> str:
    """The text with `…` for its end beyond `max_chars`, and with escapes for line breaks, control
    characters and lone surrogates: a terminal would obey them, and a log would show two lines."""
    text = _cut(text, max_chars)
    if text.isprintable():
        return text
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _cut("".join(shown), max_chars)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
