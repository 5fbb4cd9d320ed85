"""A grammar of calls takes what the family's models write, and no call that does not fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.records import ToolCall
from edgeft.runtimes.grammar import GrammarVocabulary, choice_rule, gbnf_rule, json_rule, regex_rule
from edgeft.runtimes.tool_grammar import Choice, call_grammar, reasoned_grammar
from edgeft.tokenizer.answer_parts import AnswerForm
from edgeft.tokenizer.stops import split_at
from edgeft.tokenizer.tool_calls import HERMES, CallFormat, call_format
from helpers.call_forms import CALLS, TEMPLATES, TOOLS

pytestmark = pytest.mark.unit
END = 256
SPECIAL = {
    text: END + 1 + i
    for i, text in enumerate([
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call>", "<|q|>", "<|calls|>",
        "</arg_value>", "<arg_value>", "<|sep|>", "<|other|>", "<think>", "</think>",
    ])
}  # fmt: skip
VOCABULARIES = {
    has_special: GrammarVocabulary.from_pieces(
        [*(bytes([i]) for i in range(256)), b"<end>", *(text.encode() for text in special)],
        [END, *special.values()],
        [END],
    )
    for has_special, special in ((False, {}), (True, SPECIAL))
}


def ids(text: str, special: dict[str, int]) -> list[int]:
    tokens: list[int] = []
    for piece, is_token in split_at(special)(text):
        tokens += [special[piece]] if is_token else list(piece.encode())
    return tokens


def refused_at(
    form: AnswerForm, choice: Choice, text: str, has_special: bool = False, grammar: str = ""
) -> str | None:
    """The text from where the grammar refuses it; "" where the answer may not end; None for all right."""
    special = SPECIAL if has_special else {}
    matcher = VOCABULARIES[has_special].matcher(
        grammar or call_grammar(form, special, [END], choice)
    )
    tokens = ids(text, special)
    for i, token in enumerate(tokens):
        if not matcher.allows(token):
            texts = {number: word for word, number in special.items()}
            return "".join(texts.get(t) or chr(t) for t in tokens[i:])
        matcher.accept(token)
    return None if matcher.allows(END) else ""


def form_of(name: str, **tools: Any) -> AnswerForm:
    return AnswerForm(calls=call_format(TEMPLATES[name]), tools=tools or TOOLS)


def written(form: AnswerForm, calls: Sequence[ToolCall]) -> str:
    assert form.calls
    return form.calls.write(calls).lstrip()


@pytest.mark.parametrize("has_special", [False, True])
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_that_fit_are_allowed(name: str, calls: str, has_special: bool) -> None:
    form = form_of(name)
    if len(CALLS[calls]) > 1 and name == "llama":
        return
    text = written(form, CALLS[calls])
    for choice in (Choice(required=True), Choice()):
        assert refused_at(form, choice, text, has_special) is None
        if len(CALLS[calls]) > 1:
            one = dataclasses.replace(choice, several=False)
            assert refused_at(form, one, text, has_special) is not None
    free = ["", "just text <b> {", "a\n\n[b]"]
    free += [f"Wait.\n{text}"] if form.calls and form.calls.marker else []
    for other in free:
        assert refused_at(form, Choice(), other, has_special) is None
    for other in free[:3]:
        assert refused_at(form, Choice(required=True), other, has_special) is not None
    if has_special:
        assert refused_at(form, Choice(), f"Hm<|other|>m {text}", True) is None or name == "llama"


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_that_do_not_fit_are_refused(name: str) -> None:
    form = form_of(name)
    for call in (
        ToolCall("other", "{}"),
        ToolCall("weather", '{"city": "x", "unit": "k"}'),
        ToolCall("weather", '{"days": 3}'),
        ToolCall("weather", '{"city": "x", "days": true}'),
        ToolCall("note", '{"tags": 3}'),
        ToolCall("ping", '{"a": 1}'),
    ):
        for choice in (Choice(required=True), Choice()):
            assert refused_at(form, choice, written(form, [call])) is not None, call


def test_any_walk_through_the_grammar_is_a_call_that_fits() -> None:
    draw = np.random.default_rng(0)
    tools = {"set": {
        "type": "object",
        "properties": {"mode": {"enum": ["a", "b"]}, "on": {"type": "boolean"}},
        "required": ["mode"],
    }}  # fmt: skip
    for name in TEMPLATES:
        form = form_of(name, **tools)
        grammar = call_grammar(form, {}, [END], Choice(required=True, several=False))
        matcher, text = VOCABULARIES[False].matcher(grammar), b""
        for _ in range(300):
            token = matcher.choose(
                draw.normal(size=257).astype(np.float32), lambda row: int(row.argmax())
            )
            if token == END:
                break
            text += bytes([token])
        (call,) = form.parts(text.decode()).calls
        arguments = json.loads(call.arguments)
        assert call.name == "set" and arguments["mode"] in ("a", "b"), name
        assert isinstance(arguments.get("on", True), bool), name


def test_references_of_a_schema_are_those_of_the_function() -> None:
    schema = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Point"}},
        "required": ["at"],
        "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "integer"}},
                            "required": ["x"]}},
    }  # fmt: skip
    for name in TEMPLATES:
        form = form_of(name, go=schema, ping=TOOLS["ping"])
        good = written(form, [ToolCall("go", '{"at": {"x": 1}}')])
        assert refused_at(form, Choice(required=True), good) is None, name
        bad = written(form, [ToolCall("go", '{"at": {"x": "1"}}')])
        assert refused_at(form, Choice(required=True), bad) is not None, name


def test_what_texts_without_quotes_cannot_be_held_to_is_refused_by_name() -> None:
    schema = {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]+$"}}}
    for name in ("glm", "qwen coder", "gemma"):
        with pytest.raises(InputError, match=r"pattern|has no type"):
            call_grammar(form_of(name, f=schema), {}, [END], Choice(required=True))
    form = form_of("hermes", f=schema)
    for value, is_refused in (("12", False), ("x", True)):
        text = written(form, [ToolCall("f", json.dumps({"zip": value}))])
        assert (refused_at(form, Choice(required=True), text) is not None) == is_refused


def test_a_required_call_may_come_after_reasoning() -> None:
    form = AnswerForm("<think>", "</think>", calls=HERMES, tools=TOOLS)
    call = HERMES.write([ToolCall("ping", "{}")])
    opened = dataclasses.replace(form, opened=True)
    for has_special in (False, True):
        for one, text in (
            (form, call), (form, f"<think>\nhm < \n</think>\n\n{call}"),
            (opened, f"hm < \n</think>\n\n{call}"),
        ):  # fmt: skip
            assert refused_at(one, Choice(required=True), text, has_special) is None
        assert refused_at(opened, Choice(required=True), "hm", has_special) == ""
        grammar = reasoned_grammar(
            opened, SPECIAL if has_special else {}, [END], json_rule({"type": "integer"})
        )
        assert refused_at(opened, Choice(), "hm</think>\n\n12", has_special, grammar) is None


def test_an_answer_has_no_more_than_sixteen_calls() -> None:
    form = AnswerForm(calls=HERMES, tools=TOOLS)
    for count, is_refused in ((16, False), (17, True)):
        text = HERMES.write([ToolCall("ping", "{}")] * count)
        assert (refused_at(form, Choice(required=True), text) is not None) == is_refused


def test_content_by_a_schema_or_a_call() -> None:
    form = AnswerForm(calls=HERMES, tools=TOOLS)
    choice = Choice(content=json_rule({"type": "integer"}))
    assert refused_at(form, choice, "12") is None
    assert refused_at(form, choice, HERMES.write([ToolCall("ping", "{}")])) is None
    assert refused_at(form, choice, "text") is not None


@pytest.mark.parametrize(
    "rule", [regex_rule("a+/b?"), choice_rule(["aa/", "b"]), gbnf_rule('root ::= "a" root | "/"')]
)
def test_content_by_any_rule_after_the_reasoning_or_beside_a_call(rule: str) -> None:
    form = AnswerForm(calls=HERMES, tools=TOOLS)
    for text, place in (("aa/", None), ("a", ""), ("c", "c")):
        assert refused_at(form, Choice(content=rule), text) == place
    assert refused_at(form, Choice(content=rule), HERMES.write([ToolCall("ping", "{}")])) is None
    opened = AnswerForm("<think>", "</think>", opened=True)
    grammar = reasoned_grammar(opened, {}, [END], rule)
    assert refused_at(opened, Choice(), "hm</think>\n\naa/", False, grammar) is None
    assert refused_at(opened, Choice(), "hm</think>\n\nc", False, grammar) is not None


def test_ids_and_numbers_of_calls_are_written_by_the_model() -> None:
    form = CallFormat("<c>\ue000 ", " \ue001 ", "", "</c>")
    answer = AnswerForm(calls=form, tools=TOOLS)
    for text, is_refused in (
        ("<c>abcdef123 ping 0 {}</c>", False), ("<c>abc ping 0 {}</c>", True),
        ("<c>abcdef123 ping x {}</c>", True),
    ):  # fmt: skip
        assert (refused_at(answer, Choice(required=True), text) is not None) == is_refused
    assert form.read("<c>abcdef123 ping 0 {}</c>") == ("", [ToolCall("ping", "{}")])
