"""A row -> damage of its characters: bytes read as another encoding, escapes, invisible characters."""

from __future__ import annotations

import re
import unicodedata

from edgeft.data.items import Item
from edgeft.data.row_faults.look import around, excerpt, first_match

CP1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
"""what bytes 0x80 to 0x9f are in Windows-1252"""
MOJIBAKE = re.compile(
    rf"[Â-ß][\x80-¿{CP1252}]|[à-ï][\x80-¿{CP1252}]{{2}}|[ð-ô][\x80-¿{CP1252}]{{3}}"
)
"""a UTF-8 lead byte with its continuation bytes, each read as a character of its own"""
GARBLED = re.compile("锟斤拷|烫烫烫|ï¿½")
BIDI_AND_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u202a-\u202e\u2066-\u2069]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|nbsp|apos|#39|#x27|#\d{2,5});")
BYTE_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}")


def demojibaked(text: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1, read right, piece by piece."""
    return MOJIBAKE.sub(lambda match: _read_again(match[0]), text)


def _read_again(piece: str) -> str:
    try:
        return b"".join(
            c.encode("latin-1") if ord(c) < 256 else c.encode("cp1252") for c in piece
        ).decode()  # fmt: skip
    except UnicodeError:
        return piece


def mojibake(item: Item) -> str:
    if item.text.isascii():
        return ""
    if garbled := GARBLED.search(item.text):
        return around(item.text, garbled)
    for match in MOJIBAKE.finditer(item.text):
        if _read_again(match[0]) != match[0]:
            return around(item.text, match)
    return ""


def literal_escapes(item: Item) -> str:
    text = item.text
    if "\\" not in text or "`" in text or text.lstrip().startswith(("{", "[")):
        return ""
    if match := BYTE_ESCAPE.search(text):
        return around(text, match) if '"' not in text else ""
    for answer in (item.answer, item.question):
        lines = answer.count("\\n")
        if lines >= 2 and "\n" not in answer and not set('"{}();') & set(answer):
            return excerpt(answer)
    return ""


def html_entity(item: Item) -> str:
    if "<" in item.text or "`" in item.text or "HTML" in item.text.upper():
        return ""
    return first_match(ENTITY, item.text)


def denormalized(item: Item) -> str:
    text = item.text
    if text.isascii() or not re.search("[\u0300-\u036f\u3099\u309a]", text):
        return ""
    normal = unicodedata.normalize("NFC", text)
    return excerpt(text) if len(normal) < len(text) else ""
