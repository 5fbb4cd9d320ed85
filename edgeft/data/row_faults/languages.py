"""A row -> the scripts of question and answer."""

from __future__ import annotations

import re

from edgeft.data.items import Item
from edgeft.data.row_faults.look import excerpt

SCRIPTS = {
    "Latin": "A-Za-zÀ-ɏ", "Cyrillic": "Ѐ-ӿ", "Greek": "Ͱ-Ͽ", "Arabic": "؀-ۿ", "Hebrew": "֐-׿",
    "Devanagari": "ऀ-ॿ", "Thai": "฀-๿", "Hangul": "가-힣", "Kana": "぀-ヿ", "Han": "㐀-鿿",
}  # fmt: skip
SCRIPT_PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
SCRIPT_WEIGHT = {"Han": 3, "Kana": 2, "Hangul": 2}
"""a letter of these says as much as so many of an alphabet"""
MIN_LETTERS = 20


def main_script(text: str) -> str:
    """The commonest script of a text; "" where it has too few letters to say."""
    text = text[:2000]
    if text.isascii():
        return "Latin" if sum(map(str.isalpha, text)) >= MIN_LETTERS else ""
    counts = {
        name: len(pattern.findall(text)) * SCRIPT_WEIGHT.get(name, 1)
        for name, pattern in SCRIPT_PATTERNS.items()
    }
    if counts["Kana"]:  # Japanese is written in both
        counts["Kana"] += counts.pop("Han")
    name = max(counts, key=lambda script: counts[script])
    return name if counts[name] >= MIN_LETTERS else ""


def other_script(item: Item) -> str:
    """An answer in another script than its question, where that asks for no translation."""
    if item.text.isascii():
        return ""
    asked, answered = main_script(item.question), main_script(item.answer)
    if not asked or not answered or asked == answered or "`" in item.answer:
        return ""
    if re.search(r"translat|翻译|译成|перев|英文|英语|代码", item.question, re.IGNORECASE):
        return ""
    return f"{asked} question, {answered} answer: {excerpt(item.answer)}"
