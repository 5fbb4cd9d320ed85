"""A row -> faults of turns and ends: truncated and endless answers, roles, control tokens."""

from __future__ import annotations

import collections
import itertools
import re

from edgeft.data.items import Item
from edgeft.data.row_faults.look import excerpt, first_match

SPECIAL = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|"
    r"end_of_text|user|assistant|system|end|eom_id|pad)\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|"
    r"</s>|<｜(?:User|Assistant|end▁of▁sentence)｜>"
)
NEXT_TURN = re.compile(
    r"\n\s*(?:#{2,3}\s*(?:Instruction|Human|User|Input|Response|Assistant)\b|"
    r"(?:Human|User|USER|HUMAN|用户|人类)\s*[:：])"
)
PREFIX = re.compile(
    r"\s*(?:#{2,3}\s*(?:Response|Assistant)|Assistant|ASSISTANT|AI|Bot|GPT|ChatGPT|Response|助手)\s*[:：]"
)
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "because",
        "but",
        "by",
        "can",
        "for",
        "from",
        "has",
        "have",
        "if",
        "in",
        "into",
        "is",
        "its",
        "my",
        "of",
        "on",
        "or",
        "our",
        "so",
        "than",
        "that",
        "the",
        "their",
        "then",
        "this",
        "to",
        "was",
        "were",
        "when",
        "which",
        "while",
        "will",
        "with",
        "your",
    ]
)
CUT_MARK = re.compile(r"(?:\[(?:truncated|cut off|continued)\]|\(truncated\)|Read more\.{0,3}|"
                      r"\[\.\.\.\])\s*$", re.IGNORECASE)  # fmt: skip
MIN_PROSE = 120
"""characters of a last paragraph that can be expected to end with a mark"""


def truncated(item: Item) -> str:
    answer = item.answer.rstrip()
    if not answer:
        return ""
    end = answer[-60:]
    if answer.count("```") % 2 or CUT_MARK.search(end):
        return "… " + excerpt(end)
    word = re.search(r"([A-Za-z]+)$", end)
    several_words = len(answer) >= 40 and answer.count(" ") >= 5
    if several_words and (end[-1] in ",(-" or word and word[1] in FUNCTION_WORDS):
        return "… " + excerpt(end)
    if len(answer) >= 20 and end[-1] in "，、（":
        return "… " + excerpt(end)
    prose = answer[answer.rfind("\n") + 1 :]
    hashtag = re.search(r"#\w+$", end)
    if (
        len(prose) >= MIN_PROSE
        and word
        and not hashtag
        and re.search(r"[a-z]{2}[.!?] [A-Z]", prose)
    ):
        return "… " + excerpt(end)
    return ""


def endless(item: Item) -> str:
    for answer in item.answers:
        if len(answer) >= 80 and (repeated := _repeated_end(answer) or _repeated_line(answer)):
            return repeated
    return ""


def _repeated_end(answer: str) -> str:
    """The unit that an answer repeats at its end: at least 5 times, over 60 characters."""
    end = answer.rstrip()[-480:]
    if end.rfind(end[-20:], 0, -1) < 0:  # what repeats with any period up to 80 is there twice
        return ""
    for period in range(1, 81):
        size = max(60, 4 * period)
        if size + period > len(end):
            break
        if end[-size:] == end[-size - period : -period]:
            unit = end[-period:]
            return f"ends with {unit!r} again and again" if re.search(r"\w", unit) else ""
    return ""


def _repeated_line(answer: str) -> str:
    """The line that stands in an answer 6 times or more and makes up a third of it."""
    if answer.count("\n") < 6:
        return ""
    lines = collections.Counter(line.strip() for line in answer.splitlines() if len(line) >= 12)
    line, count = max(lines.items(), key=lambda pair: pair[1], default=("", 0))
    wordy = len(re.findall(r"\w", line)) >= 8
    much = count >= 6 and 3 * count * len(line) >= len(answer)
    return f"{excerpt(line)} ({count} times)" if much and wordy else ""


def next_turn(item: Item) -> str:
    return next((hit for a in item.answers if (hit := first_match(NEXT_TURN, a))), "")


def speaker_prefix(item: Item) -> str:
    return next((excerpt(a) for a in item.answers if PREFIX.match(a)), "")


def unclosed_reasoning(item: Item) -> str:
    for answer in item.answers:
        if answer.count("<think>") != answer.count("</think>"):
            return excerpt(answer)
    return ""


def roles(item: Item) -> str:
    roles = [m.role for m in item.example.messages if m.role != "system"] if item.example else []
    if roles and roles[0] == "assistant":
        return "the first turn is the assistant's"
    pairs = itertools.pairwise(roles)
    return next((f"two {a} turns in a row" for a, b in pairs if a == b != "tool"), "")


def repeated_turn(item: Item) -> str:
    asked = [m.content for m in item.example.messages if m.role == "user"] if item.example else []
    seen = collections.Counter(text for text in asked if len(text) >= 20)
    return next((excerpt(text) for text, count in seen.items() if count > 1), "")
