"""A clean corpus of chats, and one with each fault that `edgeft data check` looks for.

Everything is made here, from a word list and a seed. `PLANTS` names each fault once: the kind that must be
found, and how to plant it; the planted rows are those whose place it returns.
"""

from __future__ import annotations

import base64
import json
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WORDS = tuple(
    re.findall(
        r"\w+",
        """river stone lamp garden winter copper engine letter window basket harbor pencil forest
market silver bridge thunder pocket mirror candle orchard blanket compass village saddle feather
kettle meadow anchor lantern cabin violin desert button ladder planet ribbon tunnel marble island
hammer canvas shadow turtle barrel needle summit temple willow pepper carpet signal cotton statue
museum cellar valley rocket cherry dragon magnet parcel oyster walnut shovel cradle puzzle zipper""",
    )
)
SEED = 7
ROWS = 120

Row = dict[str, Any]
Rows = list[Row]


def chat(question: str, answer: str, **more: Any) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns} | more


def clean_rows(count: int = ROWS, seed: int = SEED) -> Rows:
    """Different questions, each with a different whole sentence as its answer."""
    rng = random.Random(seed)

    def words(n: int) -> str:
        return " ".join(rng.sample(WORDS, n))

    return [
        chat(
            f"How does the {words(3)} reach a {words(2)}?",
            f"Over the {words(6)}, then by {words(4)}.",
        )
        for _ in range(count)
    ]


def labelled_rows(count: int = ROWS, seed: int = SEED) -> Rows:
    """A classification into three classes of equal size."""
    labels = ("positive", "negative", "neutral")
    rows = clean_rows(count, seed)
    return [chat(asked(row), labels[i % 3]) for i, row in enumerate(rows)]


def json_rows(count: int = ROWS) -> Rows:
    return [
        chat(asked(row), json.dumps({"place": WORDS[i % 50], "count": i}))
        for i, row in enumerate(clean_rows(count))
    ]


def asked(row: Row) -> str:
    text: str = row["messages"][-2]["content"]
    return text


def answered(row: Row) -> str:
    text: str = row["messages"][-1]["content"]
    return text


@dataclass(frozen=True)
class Plant:
    """One fault in a corpus that is clean besides."""

    name: str
    kind: str
    """of the finding that must be made"""
    content: str | bytes
    """of the file"""
    lines: tuple[int, ...] | None
    """rows that the finding must place; None = the whole file is at fault"""
    message: str = ""
    """part of the finding's message"""
    suffix: str = ".jsonl"
    against: str = ""
    """content of a file to compare with"""


PLANTS: list[Plant] = []
AT = (11, 57, 103)
"""lines where faults of rows are planted"""


def jsonl(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def plant_rows(
    name: str, kind: str, change: Callable[[Row], Row], rows: Rows | None = None, message: str = "",
    at: tuple[int, ...] = AT,
) -> None:  # fmt: skip
    """Plant a fault in the rows at `at`."""
    rows = rows or clean_rows()
    planted = [change(row) if i in at else row for i, row in enumerate(rows, start=1)]
    PLANTS.append(Plant(name, kind, jsonl(planted), at, message))


def plant_answer(name: str, kind: str, change: Callable[[str], str], **more: Any) -> None:
    plant_rows(name, kind, lambda row: chat(asked(row), change(answered(row))), **more)


def plant_question(name: str, kind: str, change: Callable[[str], str], **more: Any) -> None:
    plant_rows(name, kind, lambda row: chat(change(asked(row)), answered(row)), **more)


def plant_line(name: str, line: str, message: str) -> None:
    """Put a line that is no row at line 40."""
    lines = jsonl(clean_rows()).splitlines()
    lines[39] = line
    PLANTS.append(Plant(name, "bad-rows", "\n".join(lines) + "\n", (40,), message))


def plant_file(name: str, kind: str, rows: Rows, lines: tuple[int, ...] | None = None, message: str = "",
               against: str = "") -> None:  # fmt: skip
    PLANTS.append(Plant(name, kind, jsonl(rows), lines, message, against=against))


def turns(*pairs: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in pairs]})


# ---- rows that cannot be read
plant_line("cut off line", '{"messages": [{"role": "user", "content": "The ri', "not JSON")
plant_line("not an object", '["a", "b"]', "not an object")
plant_line("unknown keys", '{"foo": "a", "bar": "b"}', "unknown row")
plant_line("unknown role", turns(("user", "a"), ("narrator", "b")), "unknown role")
plant_line("empty answer", turns(("user", "a"), ("assistant", "  ")), "not an assistant's answer")
plant_line(
    "no answer",
    turns(("user", "a"), ("assistant", "b"), ("user", "c")),
    "not an assistant's answer",
)
plant_line("no user turn", turns(("system", "a"), ("assistant", "b")), "no user turn")
plant_line("no turns", '{"messages": []}', "conversation is empty")
plant_line("half a surrogate pair", '{"prompt": "a", "answer": "b \\ud83d"}', "surrogate")
plant_line(
    "null answer", '{"instruction": "a", "input": "", "output": null}', "not an assistant's answer"
)
plant_line("answer is no choice", '{"prompt": "a", "answer": "b", "choices": ["c"]}', "choices")
plant_line("plain text", '{"text": "a plain text"}', "plain text")
plant_line("tokens", '{"input_ids": [1, 2], "labels": [1, 2]}', "input_ids")
plant_line("weight 0", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", '
           '"content": "b", "weight": 0}]}', "nothing is learned")  # fmt: skip
plant_line("broken tool call", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", '
           '"tool_calls": [{"function": {"name": "f", "arguments": "{broken"}}]}]}',
           "JSON object")  # fmt: skip

# ---- encoding
plant_answer("lost bytes", "replacement-character", lambda a: a.replace("e", "\ufffd", 1))
plant_answer(
    "UTF-8 as Windows-1252", "mojibake", lambda a: a + " Caf\u00c3\u00a9 d\u00e2\u20ac\u2122or."
)
plant_question("GBK twice", "mojibake", lambda q: q + " 锟斤拷锟斤拷")
plant_answer("NUL", "control-characters", lambda a: a.replace(" ", "\x00", 1))
plant_question("escape sequence", "control-characters", lambda q: "\x1b[31m" + q)
plant_answer("zero-width space", "invisible-characters", lambda a: a.replace(" ", " \u200b", 2))
plant_question("right-to-left override", "invisible-characters", lambda q: q + "\u202egpj.exe")
plant_answer("escapes as text", "literal-escapes", lambda a: a + r" Caf\u00e9 too.")
plant_answer("line ends as text", "literal-escapes", lambda a: a.replace(" ", r"\n", 3))
plant_answer(
    "HTML entities", "html-entities", lambda a: a.replace(" ", "&nbsp;", 1) + " Tom &amp; Ann."
)
plant_answer(
    "decomposed letters",
    "not-normalized",
    lambda a: unicodedata.normalize("NFD", "Über den Fluß, née Zoë. ") + a,
)
plant_answer("carriage returns", "carriage-returns", lambda a: a + "\r\nAnd back.")

# ---- turns and ends
plant_answer("control token", "special-tokens", lambda a: a + "<|im_end|>")
plant_question("llama prompt", "special-tokens", lambda q: f"[INST] {q} [/INST]")
plant_answer("next turn", "next-turn-in-answer", lambda a: a + "\n\nHuman: And where is it now?")
plant_answer(
    "next instruction", "next-turn-in-answer", lambda a: a + "\n\n### Instruction:\nName it."
)
plant_answer("speaker", "speaker-prefix", lambda a: "Assistant: " + a)
plant_answer(
    "ends within a sentence", "truncated-answer", lambda a: a[:-1] + ", and it goes to the"
)
plant_answer("open code block", "truncated-answer", lambda a: a + "\n```python\nprint(1)")
plant_answer("cut mark", "truncated-answer", lambda a: a + " [truncated]")
plant_answer(
    "long prose without an end",
    "truncated-answer",
    lambda a: f"{a} {a} {a} The harbor is open. Then the lantern",
)
plant_answer("repeats a phrase", "endless-answer", lambda a: a + " and on it goes" * 30)
plant_answer(
    "repeats a line", "endless-answer", lambda a: a + "\nThe lamp is in the hall." * 12 + "\nEnd."
)
plant_answer("open reasoning", "unclosed-reasoning", lambda a: "<think>The bridge first. " + a)
plant_rows(
    "two user turns",
    "role-order",
    lambda row: {"messages": [{"role": "user", "content": "Please help."}, *row["messages"]]},
)
plant_rows(
    "same question twice",
    "repeated-turn",
    lambda row: {"messages": [*row["messages"], *row["messages"]]},
)

# ---- something else in place of a text
plant_answer("NaN", "placeholder-text", lambda a: "nan")
plant_answer("spreadsheet error", "placeholder-text", lambda a: "#REF!")
plant_question("no input", "placeholder-text", lambda q: q + " <noinput>")
plant_answer("template of a name", "unfilled-template", lambda a: "I am {{name}}. " + a)
plant_question(
    "template of a prompt", "unfilled-template", lambda q: "Answer this: {question} " + q
)
plant_answer("refusal", "refusal", lambda a: "As an AI language model, I cannot help with that.")
plant_answer("another model", "other-model", lambda a: "I am ChatGPT, and I think so. " + a)
plant_question("image", "media-reference", lambda q: "<image>\n" + q)
plant_answer(
    "base64", "blob", lambda a: a + " " + base64.b64encode(random.Random(1).randbytes(300)).decode()
)
plant_answer("HTML", "html-markup", lambda a: f"<p>{a}</p><br/>")
plant_question("no question", "empty-question", lambda q: "???")
plant_rows("echo", "echo", lambda row: chat(asked(row), asked(row)))
plant_rows(
    "answer given away",
    "answer-in-question",
    lambda row: chat(f"{asked(row)}\nAnswer: {answered(row)}", answered(row)),
)
plant_answer("space around", "surrounding-space", lambda a: f"  {a}\n\n")

# ---- tools
TOOL = {"type": "function", "function": {"name": "find", "parameters": {
    "type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}}}  # fmt: skip


def calling(row: Row, name: str, arguments: Row, tools: bool = True) -> Row:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    turns = [row["messages"][0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": turns} | ({"tools": [TOOL]} if tools else {})


TOOL_ROWS = [calling(row, "find", {"place": WORDS[i % 60]}) for i, row in enumerate(clean_rows())]
plant_rows("unknown tool", "unknown-tool", lambda r: calling(r, "lose", {"place": "x"}), TOOL_ROWS)
plant_rows("missing argument", "tool-arguments", lambda r: calling(r, "find", {}), TOOL_ROWS)
plant_rows(
    "extra argument",
    "tool-arguments",
    lambda r: calling(r, "find", {"place": "x", "n": 1}),
    TOOL_ROWS,
)
plant_rows(
    "no tools listed",
    "calls-without-tools",
    lambda r: calling(r, "find", {"place": "x"}, tools=False),
    TOOL_ROWS,
)

# ---- secrets and personal data; the values are made up and have the right form only
plant_answer("API key", "secret", lambda a: a + " sk-" + "Ab3" * 10)
plant_answer("cloud key", "secret", lambda a: a + " AKIA" + "Q7" * 8)
plant_question(
    "password in an address", "secret", lambda q: q + " postgres://admin:hunter22@db.internal/x"
)
plant_answer("private key", "secret", lambda a: a + "\n-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE")
plant_question(
    "email address", "personal-data", lambda q: q + " Write to jane.roe@mail-service.org."
)
plant_question("phone number", "personal-data", lambda q: q + " Call +44 20 7946 0958.")
plant_question("card number", "personal-data", lambda q: q + " My card is 4111 1111 1111 1111.")
plant_question("IBAN", "personal-data", lambda q: q + " Pay to DE89 3704 0044 0532 0130 00.")
plant_question("social security number", "personal-data", lambda q: q + " Mine is 219-09-9999.")

# ---- what only the whole file shows
rows = clean_rows()
plant_file("rows twice", "exact-duplicates", [*rows[:60], rows[3], rows[9], *rows[60:]], (61, 62))
long_rows = [
    chat(asked(r), " ".join(answered(x) for x in (r, *rows[i : i + 3]))) for i, r in enumerate(rows)
]
near = [
    chat("So, " + asked(long_rows[i]), answered(long_rows[i])[:-1] + " indeed.") for i in (3, 9)
]
plant_file(
    "nearly the same rows", "near-duplicates", [*long_rows[:60], *near, *long_rows[60:]], (61, 62)
)
again = [chat(asked(rows[i]), answered(rows[i + 50])) for i in (3, 9)]
plant_file("one question, two texts", "several-answers", [*rows, *again], (121, 122))
labels = labelled_rows()
plant_file(
    "one question, two labels",
    "conflicting-labels",
    [*labels, *(chat(asked(labels[i]), "neutral") for i in (0, 1, 3))],
    (121, 122, 123),
)
plant_file("one answer", "one-answer", [chat(asked(row), "yes") for row in rows], None)
plant_file(
    "one class",
    "class-balance",
    [chat(asked(row), "no" if i in (10, 56, 102) else "yes") for i, row in enumerate(rows)],
    AT,
)
plant_file(
    "rare class",
    "rare-classes",
    [chat(asked(row), "unsure" if i + 1 in AT else answered(row)) for i, row in enumerate(labels)],
    AT,
)
plant_file(
    "one label, two forms",
    "label-variants",
    [
        chat(asked(r), answered(r).title() if i + 1 in AT else answered(r))
        for i, r in enumerate(labels)
    ],
    AT,
)
plant_file(
    "numbers as labels",
    "numeric-labels",
    [chat(asked(r), str(i % 3)) for i, r in enumerate(rows)],
    None,
)
plant_rows("broken JSON", "broken-json", lambda r: chat(asked(r), answered(r)[:-1]), json_rows())
plant_rows(
    "key in another form",
    "key-variants",
    lambda r: chat(asked(r), answered(r).replace("place", "Place")),
    json_rows(),
)
PLANTS[-1] = Plant(PLANTS[-1].name, "key-variants", PLANTS[-1].content, None)
plant_rows(
    "system turn in few rows",
    "system-in-some",
    lambda r: {"messages": [{"role": "system", "content": "Be brief."}, *r["messages"]]},
)
plant_answer("reasoning in few rows", "reasoning-in-some", lambda a: f"<think>A bridge.</think>{a}")
plant_answer(
    "another script", "language-mix", lambda a: "Через реку и потом по старому мосту к дому."
)
plant_answer(
    "answer in another script",
    "other-script",
    lambda a: "Через реку и потом по старому мосту к дому.",
)
plant_file(
    "cut at 150 characters",
    "cut-at-one-length",
    [chat(asked(r), (answered(r) * 3)[:150]) for r in rows],
    None,
)
plant_rows("other columns", "mixed-shapes", lambda r: {"prompt": asked(r), "answer": answered(r)})
plant_rows("unused column", "unused-keys", lambda r: r | {"score": 3})
PLANTS[-1] = Plant(PLANTS[-1].name, "unused-keys", PLANTS[-1].content, None, "score")
plant_file("ten rows", "few-rows", rows[:10])
plant_file(
    "question of the test set",
    "leak",
    rows,
    (5,),
    against=jsonl([chat(asked(rows[4]).upper(), "x")]),
)
leaked = chat(asked(long_rows[4]), answered(long_rows[4])[:-1] + " indeed.")
leaked["messages"][0]["content"] += " Please tell me."
plant_file("nearly a row of the test set", "near-leak", long_rows, (5,), against=jsonl([leaked]))
plant_file("class of the test set only", "missing-class", labels, None, against=jsonl(
    [chat(asked(r), ("mixed", "neutral")[i % 2]) for i, r in enumerate(clean_rows(40, seed=8))]))  # fmt: skip

# ---- preference pairs and KTO rows
pairs = [{"prompt": asked(r), "chosen": answered(r), "rejected": "I do not know."} for r in rows]
plant_rows("equal pair", "chosen-is-rejected", lambda r: r | {"rejected": r["chosen"]}, pairs)
plant_rows(
    "no rejected text",
    "rejected-is-empty",
    lambda r: r | {"rejected": [{"role": "assistant", "content": " "}]},
    pairs,
)
plant_file("pairs among answers", "mixed-objectives", [*rows[:100], *pairs[100:]], None)
plant_file(
    "only good answers",
    "one-sided-labels",
    [{"prompt": asked(r), "completion": answered(r), "label": True} for r in rows],
    None,
)
PLANTS.append(Plant("CSV with a row of three cells", "bad-rows", "prompt,answer\n" + "".join(
    f"{asked(r)},{answered(r).replace(',', '')}{',x' if i == 30 else ''}\n" for i, r in enumerate(rows)
), (32,), "cells", ".csv"))  # fmt: skip
