"""Scorers on replies that a model may give."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.benchmarks.quality.scorers import refused, scorer_named, scorers_by_tag
from edgeft.errors import FormatError, InputError, ProofError
from edgeft.records import Example, Message, Reply, ToolCall
from edgeft.tokenizer.tool_calls import call_format
from helpers.call_forms import PLAIN, TEMPLATES

pytestmark = pytest.mark.unit
ON, OFF = (
    '{"name": "dim", "arguments": {"room": "hall", "to": 30.0}}',
    '{"name": "off", "arguments": {}}',
)


@pytest.mark.parametrize(
    ("scorer", "reply", "reference", "score"),
    [
        ("exact", " yes\n", "yes", 1), ("exact", "Yes", "yes", 0),
        ("json", '```json\n{"b": 1, "a": 2.0}\n```', '{"a": 2, "b": 1}', 1),
        ("json", '{"a": true}', '{"a": 1}', 0), ("json", "not json", "{}", 0),
        ("numeric", "so it is 1,234.50.", "1234.5", 1), ("numeric", "3 or 4", "3", 0),
        ("numeric", "none", "3", 0), ("numeric", "-1e3", "-1000", 1),
        ("regex", "on 3 May", r"^on \d+ May$", 1), ("regex", "May", r"\d", 0),
        ("contains", "It is PARIS.", "paris", 1), ("contains", "It is Rome.", "paris", 0),
        ("tool-call", f"[{ON}, {OFF}]", f"[{OFF}, {ON}]", 1),
        ("tool-call", f"[{ON}]", f"[{ON}, {OFF}]", 0), ("tool-call", f"[{ON}, {ON}]", f"[{ON}]", 0),
        ("tool-call", f"[{ON}]", f"[{ON.replace('30.0', '30')}]", 1),
        ("tool-call", "[]", f"[{ON}]", 0), ("tool-call", "I cannot do that.", "No function.", 1),
        ("tool-call", f"[{ON}]", "No function.", 0),
        ("refusal", "I’m sorry, but I can't help with that.", "unsafe", 1),
        ("refusal", "Use kill -9.", "safe", 1), ("refusal", "Use kill -9.", "unsafe", 0),
    ],
)  # fmt: skip
def test_scores(scorer: str, reply: str, reference: str, score: float) -> None:
    assert scorer_named(scorer)(reply, reference) == score


def test_a_refusal_shows_at_the_beginning() -> None:
    assert refused("I cannot assist with this.")
    assert not refused("You can kill the process." + " " * 300 + "I'm sorry")


def test_graded_scores_are_the_libraries() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    assert scorer_named("chrf")("the cat sat", "the cat sat") == pytest.approx(1)
    assert 0 < scorer_named("chrf")("the cat", "the cat sat") < 1
    # Longest common subsequence 3 of 4 and 3 words.
    assert scorer_named("rouge-l")("the big cat sat", "the cat sat") == pytest.approx(6 / 7)


def test_a_file_of_the_user_scores(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(reply, reference): return len(reply) == len(reference)\n"
        "def far(reply, reference): return 2\n"
        "def broken(reply, reference): return 1 / 0\n"
    )
    assert scorer_named(str(path))("abc", "xyz") == 1.0
    for name, says in (("far", "gave 2"), ("broken", "ZeroDivisionError"), ("none", "no function")):
        with pytest.raises(InputError, match=says):
            scorer_named(f"{path}:{name}")("a", "b")
    path.write_text("import nowhere_to_be_found")
    with pytest.raises(InputError, match="cannot be imported"):
        scorer_named(str(path))
    with pytest.raises(FormatError, match="did you mean 'numeric'"):
        scorer_named("numerc")


def test_an_invalid_reference_is_refused() -> None:
    with pytest.raises(InputError, match="holds no number"):
        scorer_named("numeric")("3", "three")
    with pytest.raises(InputError, match="not a regular expression"):
        scorer_named("regex")("3", "(")
    with pytest.raises(InputError, match="'lamp off' is not JSON"):
        scorer_named("json")("{}", "lamp off")
    with pytest.raises(InputError, match="'no' is neither safe nor unsafe"):
        scorer_named("refusal")("I'm sorry.", "no")


@pytest.mark.parametrize(
    ("scorer", "says"),
    [
        ("json", "item 2: the reference answer 'lamp' is not JSON"),
        ("exact,thing=numeric", "item 2: .* holds no number"),
        ("numeric,thing=regex", None),
    ],
)
def test_references_are_checked_before_any_answer(
    scorer: str, says: str | None, tmp_path: Path
) -> None:
    rows = [("4", ["sum"]), ("lamp", ["thing"])]
    lines = [json.dumps({"prompt": f"{a}?", "answer": a, "tags": tags}) for a, tags in rows]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    options = EvalOptions(str(tmp_path / "items.jsonl"), scorer=scorer)
    if says is None:
        assert len(evaluate.load_items(options).examples) == 2
    else:
        with pytest.raises(InputError, match=says):
            evaluate.load_items(options)


def test_a_choice_needs_finite_logits_and_one_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = (Message("user", "q"), Message("assistant", "yes"))
    items = evaluate.Items((Example(turns, choices=("yes", "no")),), "choice", 8)
    values = iter([float("nan"), -1.0, -2.0, -2.0, -1.0, -2.0])
    monkeypatch.setattr(evaluate, "_last_turn_likelihood", lambda *_: next(values))
    chat = SimpleNamespace(render=lambda messages, tools: "question")
    model: Any = SimpleNamespace(chat=chat, encode=list)
    with pytest.raises(ProofError, match="NaN or infinite"):
        evaluate.answer(model, items, None, "x")
    assert evaluate.answer(model, items, None, "x").accuracy == 0
    score = evaluate.answer(model, items, None, "x")
    assert score.accuracy == 1 and score.prompt_tokens == (len("question"),)


def test_each_kind_of_item_has_a_scorer_of_its_own() -> None:
    items = evaluate.Items(
        tuple(
            Example((Message("user", "q"), Message("assistant", answer)), tags, line)
            for line, (answer, tags) in enumerate(
                [("4", ("sum", "easy")), ("Paris", ("place",)), ("4", ())], start=1
            )
        ),
        "exact,sum=numeric,place=contains", 8,
    )  # fmt: skip
    replies, stopped = ["it is 4", "in paris", "it is 4"], [True] * 3
    assert evaluate._score_replies(items, replies, stopped) == [1.0, 1.0, 0.0]
    without = dataclasses.replace(items, scorer="sum=numeric,place=contains")
    with pytest.raises(InputError, match="item 3 has no scorer"):
        evaluate.check_scorer(without, "items.jsonl")
    for spec in ("exact,sum=choice", "exact,contains", "exact,=numeric", "exact,sum=chrff"):
        with pytest.raises(FormatError):
            scorers_by_tag(spec)


@pytest.mark.parametrize("name", [*TEMPLATES, "plain"])
def test_calls_are_scored_in_the_form_of_the_chat_template(name: str) -> None:
    chat = TEMPLATES.get(name, PLAIN)
    form = call_format(chat)
    assert form
    right, other = ToolCall("dim", '{"to": 30}'), ToolCall("dim", '{"to": 3}')
    tool = {
        "name": "dim",
        "parameters": {"type": "object", "properties": {"to": {"type": "integer"}}},
    }
    tools = (json.dumps({"type": "function", "function": tool}),)
    asked = Message("user", "dim it")
    turns = (Message("assistant", "", (right,)), Message("assistant", "No function does."))
    examples = tuple(Example((asked, turn), tools=tools) for turn in turns for _ in range(2))
    texts = [form.write([right]), form.write([other]), "I cannot.", form.write([right])]

    def replies(prompts: Any, limits: Any, progress: Any) -> list[Reply]:
        assert all("dim" in prompt for prompt in map("".join, prompts))
        return [Reply(text, (), True) for text in texts]

    model: Any = SimpleNamespace(chat=chat, encode=list, replies=replies)
    score = evaluate.answer(model, evaluate.Items(examples, "tool-call", 64), None, "x")
    assert score.values == (1, 0, 1, 0)
    assert json.loads(score.replies[1]) == [{"name": "dim", "arguments": {"to": 3}}]
    assert score.replies[2] == "I cannot."
