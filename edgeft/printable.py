"""A text that holds parts of a stranger's file -> one printable line of bounded length."""

from __future__ import annotations

MAX_LINE_CHARS = 2000


def one_printable_line(text: str, max_chars: int = MAX_LINE_CHARS) -> str:
    """The text with `…` for its end beyond `max_chars`, and with escapes for line breaks, control
    characters and lone surrogates: a terminal would obey them, and a log would show two lines."""
    if len(text) > max_chars:
        text = text[: max_chars - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
