"""One row -> what is wrong with it: a table of kinds, each with one small function.

for kind in ROW_KINDS:
    if evidence := kind.look(item): ...

A function returns the evidence (an excerpt, or a few words), "" for a row without the fault. It sees
one row at a time; what only the whole file shows is in `set_faults`.
"""

from __future__ import annotations

import collections
import ipaddress
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from edgeft.data.items import Item

Severity = Literal["error", "warning", "note"]
Look = Callable[[Item], str]


@dataclass(frozen=True)
class RowKind:
    """A kind of fault that a single row shows."""

    name: str
    severity: Severity
    about: str
    """what it looks at, and what such a row teaches"""
    look: Look
    error_share: float | None = None
    """share of the rows from which on the finding is an error; None = it stays what it is"""


# ---- encoding

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


def _mojibake(item: Item) -> str:
    if item.text.isascii():
        return ""
    if garbled := GARBLED.search(item.text):
        return _around(item.text, garbled)
    for match in MOJIBAKE.finditer(item.text):
        if _read_again(match[0]) != match[0]:
            return _around(item.text, match)
    return ""


def _literal_escapes(item: Item) -> str:
    text = item.text
    if "\\" not in text or "`" in text or text.lstrip().startswith(("{", "[")):
        return ""
    if match := BYTE_ESCAPE.search(text):
        return _around(text, match) if '"' not in text else ""
    for answer in (item.answer, item.question):
        lines = answer.count("\\n")
        if lines >= 2 and "\n" not in answer and not set('"{}();') & set(answer):
            return excerpt(answer)
    return ""


def _html_entity(item: Item) -> str:
    if "<" in item.text or "`" in item.text or "HTML" in item.text.upper():
        return ""
    return _found(ENTITY, item.text)


def _denormalized(item: Item) -> str:
    text = item.text
    if text.isascii() or not re.search("[\u0300-\u036f\u3099\u309a]", text):
        return ""
    normal = unicodedata.normalize("NFC", text)
    return excerpt(text) if len(normal) < len(text) else ""


# ---- what the text teaches about turns and ends

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


def _truncated(item: Item) -> str:
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


def _endless(item: Item) -> str:
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


def _next_turn(item: Item) -> str:
    return next((hit for a in item.answers if (hit := _found(NEXT_TURN, a))), "")


def _speaker_prefix(item: Item) -> str:
    return next((excerpt(a) for a in item.answers if PREFIX.match(a)), "")


def _unclosed_reasoning(item: Item) -> str:
    for answer in item.answers:
        if answer.count("<think>") != answer.count("</think>"):
            return excerpt(answer)
    return ""


def _roles(item: Item) -> str:
    roles = [m.role for m in item.example.messages if m.role != "system"] if item.example else []
    if roles and roles[0] == "assistant":
        return "the first turn is the assistant's"
    pairs = itertools.pairwise(roles)
    return next((f"two {a} turns in a row" for a, b in pairs if a == b != "tool"), "")


def _repeated_turn(item: Item) -> str:
    asked = [m.content for m in item.example.messages if m.role == "user"] if item.example else []
    seen = collections.Counter(text for text in asked if len(text) >= 20)
    return next((excerpt(text) for text, count in seen.items() if count > 1), "")


# ---- what stands in the text in place of a text

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


def _placeholder(item: Item) -> str:
    for name, text in (("answer", item.answer), ("question", item.question)):
        if text.strip().lower() in PLACEHOLDERS:
            return f"{name} {text.strip()!r}"
        if name == "question" and "<noinput>" in text.lower():
            return excerpt(text)
    return ""


def _html_markup(item: Item) -> str:
    if (
        "<" not in item.answer
        or "`" in item.text
        or re.search(r"html|markup|tag|xml|web|code", item.text, re.IGNORECASE)
    ):
        return ""
    return _found(MARKUP, item.answer)


def _empty_question(item: Item) -> str:
    return "" if re.search(r"\w", item.question) else f"question {item.question.strip()[:20]!r}"


def _echo(item: Item) -> str:
    same = item.answer.strip() and item.answer.strip() == item.question.strip()
    return excerpt(item.answer) if same else ""


def _answer_in_question(item: Item) -> str:
    """The question ends with a mark such as "Answer:" and the answer itself."""
    question, answer = item.question.rstrip(), item.answer.strip()
    if not answer or len(question) <= len(answer) or not question.endswith(answer):
        return ""
    before = question[: -len(answer)].rstrip().lower()
    marks = ("answer:", "label:", "output:", "response:", "target:", "solution:", "答案：", "答案:")
    return excerpt(question[-80:]) if before.endswith(marks) else ""


def _space(item: Item) -> str:
    return next((repr(a[:20] + "…" + a[-20:]) for a in item.answers if a and a != a.strip()), "")


# ---- tools


def _unknown_tool(item: Item) -> str:
    if item.example is None or not item.example.tools:
        return ""
    names = {_function(tool).get("name") for tool in item.example.tools}
    calls = [call for m in item.example.messages for call in m.tool_calls]
    return next((f"calls {call.name}" for call in calls if call.name not in names), "")


def _tool_arguments(item: Item) -> str:
    """A required argument that is missing, or one that the tool does not have."""
    if item.example is None or not item.example.tools:
        return ""
    tools = {_function(tool).get("name"): _function(tool) for tool in item.example.tools}
    for call in (call for m in item.example.messages for call in m.tool_calls):
        schema = tools.get(call.name, {}).get("parameters")
        if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
            continue
        given = json.loads(call.arguments)
        required = schema.get("required")
        for name in required if isinstance(required, list) else []:
            if name not in given:
                return f"{call.name} without {name}"
        if schema["properties"] and (unknown := set(given) - set(schema["properties"])):
            return f"{call.name} with {min(unknown)}"
    return ""


def _calls_without_tools(item: Item) -> str:
    if item.example is None or item.example.tools:
        return ""
    return next(
        (f"calls {m.tool_calls[0].name}" for m in item.example.messages if m.tool_calls), ""
    )


def _function(tool: str) -> dict[str, object]:
    function = json.loads(tool).get("function")
    return function if isinstance(function, dict) else {}


# ---- secrets and personal data

SECRETS = re.compile(
    r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|"
    r"\bgithub_pat_\w{22,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}\b|\bhf_[A-Za-z0-9]{30,}\b|"
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|"
    r"\b[a-z][a-z0-9+]{2,12}://[^\s:/@<>]{1,40}:[^\s:/@<>]{3,}@[\w.-]+"
)
SECRET_MARKS = ("sk-", "AKIA", "gh", "xox", "AIza", "hf_", "PRIVATE KEY", "eyJ", "://")
"""one of these is in every secret: looking for them is quicker than the pattern"""
EMAIL = re.compile(r"(?<![\w.+:/-])[\w.+-]{1,64}@(?!example\.)[\w-]{1,63}(?:\.[\w-]{2,63})+\b")
PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)|\d{2,4})[ .-]\d{3,4}[ .-]\d{3,5}(?![\w-]|\.\d)"
)
CARD = re.compile(
    r"(?<![\w.-])(?:[3-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}|[3-6]\d{12,15})(?![\w-]|\.\d)"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")


def personal_spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, what) of addresses and numbers of persons in a text; none overlaps another."""
    matches: list[tuple[str, Iterator[re.Match[str]]]] = []
    if "@" in text:
        matches.append(("email address", EMAIL.finditer(text)))
    if re.search(r"\d{2}", text):
        matches += [
            ("IBAN", (m for m in IBAN.finditer(text) if _mod_97(m[0]))),
            ("card number", (m for m in CARD.finditer(text) if _luhn(m[0]))),
            ("social security number", SSN.finditer(text)),
            ("phone number", (m for m in PHONE.finditer(text) if _has_nine_digits(m[0]))),
            ("IP address", (m for m in IPV4.finditer(text) if _public(m[0]))),
        ]
    spans: list[tuple[int, int, str]] = []
    for what, found in matches:
        for start, end in (match.span() for match in found):
            if all(end <= other[0] or start >= other[1] for other in spans):
                spans.append((start, end, what))
    return spans


def _has_nine_digits(number: str) -> bool:
    return sum(map(str.isdigit, number)) >= 9


def _luhn(number: str) -> bool:
    """Whether the check digit of a card number is right (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in number if c.isdigit()][::-1]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[1::2])
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _mod_97(iban: str) -> bool:
    """Whether the check digits of an IBAN are right (ISO 13616)."""
    plain = iban.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _public(address: str) -> bool:
    """Whether four numbers are an address of the open network, and not a version such as 1.2.3.4."""
    try:
        return ipaddress.ip_address(address).is_global and int(address.partition(".")[0]) > 9
    except ValueError:
        return False


def _secret(item: Item) -> str:
    if not any(mark in item.text for mark in SECRET_MARKS):
        return ""
    match = SECRETS.search(item.text)
    return f"{match[0][:8]}… ({len(match[0])} characters)" if match else ""


def _personal(item: Item) -> str:
    """The kind only: the evidence must not repeat the data."""
    spans = personal_spans(item.text)
    return ", ".join(sorted({what for _, _, what in spans}))


# ---- languages

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


def _other_script(item: Item) -> str:
    """An answer in another script than its question, where that asks for no translation."""
    if item.text.isascii():
        return ""
    asked, answered = main_script(item.question), main_script(item.answer)
    if not asked or not answered or asked == answered or "`" in item.answer:
        return ""
    if re.search(r"translat|翻译|译成|перев|英文|英语|代码", item.question, re.IGNORECASE):
        return ""
    return f"{asked} question, {answered} answer: {excerpt(item.answer)}"


# ---- preference pairs


def _chosen_is_rejected(item: Item) -> str:
    same = item.rejected is not None and item.rejected.strip() == item.answer.strip()
    return excerpt(item.answer) if same else ""


def _rejected_is_empty(item: Item) -> str:
    return "no text" if item.rejected is not None and not item.rejected.strip() else ""


# ---- helpers

EXCERPT_CHARS = 80


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: EXCERPT_CHARS * 2].split())
    return line if len(line) <= EXCERPT_CHARS else line[:EXCERPT_CHARS] + "…"


def _around(text: str, match: re.Match[str]) -> str:
    """A match with a little of what stands around it. Invisible characters are written as escapes."""
    start = max(0, match.start() - 20)
    piece = " ".join(text[start : match.end() + 30].split(" "))[: EXCERPT_CHARS + 20]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece)


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return _around(text, match) if match else ""


def _in_text(pattern: re.Pattern[str]) -> Look:
    return lambda item: _found(pattern, item.text)


def _in_answer(pattern: re.Pattern[str]) -> Look:
    return lambda item: _found(pattern, item.answer)


def _unprintable(pattern: re.Pattern[str]) -> Look:
    return lambda item: "" if item.text.isprintable() else _found(pattern, item.text)


ROW_KINDS = (
    RowKind("replacement-character", "warning", "U+FFFD: bytes that were lost when the text was decoded",
            _in_text(re.compile("\ufffd")), 0.05),
    RowKind("mojibake", "warning", "UTF-8 that was read as Windows-1252 (Ã© for é)", _mojibake, 0.05),
    RowKind("control-characters", "warning", "control characters such as NUL or ESC",
            _unprintable(CONTROL), 0.05),
    RowKind("invisible-characters", "warning", "zero-width and direction-changing characters",
            _unprintable(BIDI_AND_INVISIBLE)),
    RowKind("literal-escapes", "warning", r"\n or \u00e9 as characters and not what they stand for",
            _literal_escapes, 0.05),
    RowKind("html-entities", "warning", "&amp; or &#39; in a text that is no HTML",
            _html_entity, 0.05),
    RowKind("not-normalized", "note", "letters and accents apart (NFD): other tokens than usual",
            _denormalized),
    RowKind("special-tokens", "warning", "a chat template's control tokens within a text",
            _in_text(SPECIAL), 0.01),
    RowKind("next-turn-in-answer", "warning", "an answer that goes on with the user's next turn",
            _next_turn, 0.05),
    RowKind("speaker-prefix", "warning", "an answer that begins with 'Assistant:'", _speaker_prefix, 0.5),
    RowKind("truncated-answer", "warning", "an answer that stops within a sentence or a code block",
            _truncated, 0.2),
    RowKind("endless-answer", "warning", "an answer that repeats itself to its end: the model learns not to stop",
            _endless, 0.01),
    RowKind("unclosed-reasoning", "warning", "<think> without </think>, or the reverse",
            _unclosed_reasoning, 0.01),
    RowKind("role-order", "warning", "two turns of one role in a row, or an answer first", _roles),
    RowKind("repeated-turn", "warning", "the same user turn twice in one conversation", _repeated_turn),
    RowKind("placeholder-text", "warning", "NaN, N/A, TODO, #REF! or [deleted] in place of a text",
            _placeholder, 0.02),
    RowKind("unfilled-template", "warning", "{{name}}, [insert …], lorem ipsum: a template that nobody filled",
            _in_text(UNFILLED)),
    RowKind("refusal", "note", "answers that refuse ('as an AI language model')", _in_answer(REFUSAL)),
    RowKind("other-model", "warning", "answers that name another model or its maker as themselves",
            _in_answer(OTHER_MODEL)),
    RowKind("media-reference", "warning", "an image, audio or video that a text model cannot see",
            _in_text(MEDIA), 0.2),
    RowKind("blob", "warning", "more than 300 characters without a space: base64 or a hash",
            _in_text(BLOB)),
    RowKind("html-markup", "warning", "HTML tags in answers that are no HTML", _html_markup),
    RowKind("empty-question", "warning", "a question without a letter or digit", _empty_question, 0.02),
    RowKind("echo", "warning", "the answer is the question", _echo, 0.05),
    RowKind("answer-in-question", "warning", "the question ends with its answer ('Answer: yes')",
            _answer_in_question, 0.02),
    RowKind("surrounding-space", "note", "answers that begin or end with white space", _space),
    RowKind("carriage-returns", "note", "carriage returns within a text",
            _unprintable(re.compile("\r"))),
    RowKind("unknown-tool", "warning", "a call of a function that the row does not list",
            _unknown_tool, 0.05),
    RowKind("tool-arguments", "warning", "a call without a required argument, or with an unknown one",
            _tool_arguments, 0.05),
    RowKind("calls-without-tools", "note", "calls in a row that lists no tools", _calls_without_tools),
    RowKind("secret", "warning", "keys, tokens and passwords by their form", _secret),
    RowKind("personal-data", "warning", "email addresses, phone, card and account numbers by their form",
            _personal),
    RowKind("other-script", "note", "an answer in another script than its question", _other_script),
    RowKind("chosen-is-rejected", "warning", "a preference pair of two equal answers",
            _chosen_is_rejected, 0.02),
    RowKind("rejected-is-empty", "warning", "a preference pair without a rejected answer",
            _rejected_is_empty, 0.02),
)  # fmt: skip
"""one row for each kind; a new kind is one function and one row"""
