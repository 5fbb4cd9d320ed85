"""A row -> what stands in place of a text: placeholders, refusals, media, markup, echoes."""

from __future__ import annotations

import re

from edgeft.data.items import Item
from edgeft.data.row_faults.look import excerpt, first_match

PLACEHOLDERS = frozenset(
    [
        "n/a",
        "null",
        "nan",
        "todo",
        "tbd",
        "undefined",
        "fixme",
        "xxx",
        "...",
        "…",
        "-",
        "--",
        "?",
        "[deleted]",
        "[removed]",
        "<noinput>",
        "noinput",
        "#n/a",
        "#ref!",
        "#name?",
        "#value!",
        "#div/0!",
    ]
)
UNFILLED = re.compile(
    r"\{\{\s*\w+(?:\.\w+)*\s*\}\}|\{(?:input|question|instruction|context|prompt|output|answer)\}|"
    r"<(?:insert|your|add)[ _][\w ]{2,40}>|\[insert[^\]\n]{0,60}\]|lorem ipsum",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\b(?:as an AI(?: language)? model|I(?:'m| am) (?:sorry|unable), but I (?:can't|cannot|am unable)|"
    r"I (?:cannot|can't) (?:assist|help|fulfill|comply) (?:you )?with)|作为(?:一个|一名)?(?:AI|人工智能)",
    re.IGNORECASE,
)
OTHER_MODEL = re.compile(
    r"\bI(?:'m| am) (?:ChatGPT|GPT-?[34]|Claude|Gemini|Bard|Qwen|LLaMA|DeepSeek)\b|"
    r"\bI\b[^.\n]{0,60}\b(?:developed|created|trained|made) by (?:OpenAI|Anthropic|Google DeepMind|Meta AI|Alibaba)\b|"
    r"我是(?:ChatGPT|通义千问|文心一言)"
)
MEDIA = re.compile(r"<(?:image|video|audio|img)>|!\[[^\]\n]{0,80}\]\([^)\s]{4,}\)")
BLOB = re.compile(r"[A-Za-z0-9+/=_-]{300,}")
MARKUP = re.compile(
    r"</?(?:p|br|div|span|font|table|tr|td|li|ul|b|i|a)\b[^<>]{0,100}>", re.IGNORECASE
)


def placeholder(item: Item) -> str:
    for name, text in (("answer", item.answer), ("question", item.question)):
        if text.strip().lower() in PLACEHOLDERS:
            return f"{name} {text.strip()!r}"
        if name == "question" and "<noinput>" in text.lower():
            return excerpt(text)
    return ""


def html_markup(item: Item) -> str:
    if (
        "<" not in item.answer
        or "`" in item.text
        or re.search(r"html|markup|tag|xml|web|code", item.text, re.IGNORECASE)
    ):
        return ""
    return first_match(MARKUP, item.answer)


def empty_question(item: Item) -> str:
    return "" if re.search(r"\w", item.question) else f"question {item.question.strip()[:20]!r}"


def echo(item: Item) -> str:
    same = item.answer.strip() and item.answer.strip() == item.question.strip()
    return excerpt(item.answer) if same else ""


def answer_in_question(item: Item) -> str:
    """The question ends with a mark such as "Answer:" and the answer itself."""
    question, answer = item.question.rstrip(), item.answer.strip()
    if not answer or len(question) <= len(answer) or not question.endswith(answer):
        return ""
    before = question[: -len(answer)].rstrip().lower()
    marks = ("answer:", "label:", "output:", "response:", "target:", "solution:", "答案：", "答案:")
    return excerpt(question[-80:]) if before.endswith(marks) else ""


def space(item: Item) -> str:
    return next((repr(a[:20] + "…" + a[-20:]) for a in item.answers if a and a != a.strip()), "")
