"""Grammars of JSON schemas: what they allow, and that hostile ones are refused or bounded."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import InputError
from edgeft.runtimes.grammar import (
    GrammarVocabulary,
    Logits,
    choice_rule,
    gbnf_rule,
    grammar_of,
    json_schema_grammar,
    regex_rule,
)
from edgeft.server.metrics import memory
from edgeft.tokenizer.hf_files import load_tokenizer
from helpers.engines import open_engine
from helpers.serving import exported

CALL_S = 2.0
"""that a call of llguidance may take on a busy machine; alone they take 0.3 s at most"""
GROWTH = 300_000_000
"""bytes that all hostile schemas together may add to the process"""


@pytest.fixture(scope="module")
def model(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GrammarVocabulary, Callable[[str], list[int]], frozenset[int]]]:
    """(vocabulary of a GGUF file, text -> ids, end ids)."""
    engine = open_engine(exported(tiny_base, tmp_path_factory.mktemp("g"), "f32")[0], slots=1)
    runtime: Any = engine.runtime
    yield engine._sequences._grammars, runtime.encode, runtime.eos_ids
    engine.close()


Model = tuple[GrammarVocabulary, Callable[[str], list[int]], frozenset[int]]


def reads(model: Model, schema: dict[str, Any] | str, text: str, whole: bool = True) -> bool:
    """Does the grammar of a schema, or a grammar, allow every token of the text, and the end behind it?"""
    vocabulary, encode, ends = model
    grammar = schema if isinstance(schema, str) else json_schema_grammar(schema)
    matcher = vocabulary.matcher(grammar)
    for token in encode(text):
        if not matcher.allows(token):
            return False
        assert matcher.mask()[token]
        matcher.accept(token)
    assert [matcher.allows(end) for end in ends] == [matcher.mask()[end] for end in ends]
    return not whole or any(map(matcher.allows, ends))


ITSELF = {"$ref": "#/$defs/t"}


def of_itself(*alternatives: dict[str, Any]) -> dict[str, Any]:
    return {"$defs": {"t": {"anyOf": list(alternatives)}}, **ITSELF}


def array(**more: object) -> dict[str, Any]:
    return {"type": "array", "items": ITSELF, **more}


def operation(name: str, *operands: str, first: bool = True) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(operands, ITSELF)
    told = {"op": {"const": name}}
    properties = told | values if first else values | told
    return {"type": "object", "properties": properties, "required": ["op", *operands]}


def nested(key: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        found = {key: found}
    return found


def finite_beside_endless(count: int, width: int, height: int) -> dict[str, Any]:
    """With each level of an endless one the others begin anew."""
    found: dict[str, Any] = {"e": {"enum": [0] * width}, f"s{height}": {"type": "null"}}
    for i in range(height):
        deeper = {"type": "array", "items": {"$ref": f"#/$defs/s{i + 1}"}}
        found[f"s{i}"] = {"anyOf": [deeper, {"$ref": "#/$defs/e"}]}
    finite = {"type": "array", "items": {"$ref": "#/$defs/s0"}}
    found["t"] = {"anyOf": [array(), *[finite] * count]}
    return {"$defs": found, **ITSELF}


def chain(length: int) -> dict[str, Any]:
    """Two arrays of two arrays of two arrays ..."""
    found: dict[str, Any] = {f"t{length}": {"type": "string"}}
    for i in range(length):
        found[f"t{i}"] = {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/t{i + 1}"}}] * 2}
    return {"$defs": found, "$ref": "#/$defs/t0"}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "https://example.org/schema.json"}, "not present"),
        ({"$ref": "http://[::1]"}, "not present"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"$defs": {"t": ITSELF}, **ITSELF}, "no token"),
        ({"type": "nonsense"}, "Invalid type"),
        ({"type": 3}, "type must be"),
        ({"properties": {"default": {"type": "value"}}}, "Invalid type"),
        ({"properties": 3}, "properties must be"),
        ({"type": "object", "additionalProperties": 1}, "must be an object or boolean"),
        ({"type": "string", "minLength": -1}, "positive integer"),
        ({"type": "string", "maxLength": 10**12}, "supported range"),
        ({"type": "string", "pattern": "^[" + 100 * chr(92) + "$"}, "regex parse error"),
        ({"type": "string", "pattern": "(" * 300 + "a" + ")" * 300}, "nested"),
        ({"a#": {"t": {"type": "null"}}, "t": {"anyOf": [{"type": "array", "items": {"$ref": "#/a#/t"}}] * 2},
          "$ref": "#/t"}, "Invalid URI"),
        ({"$defs": {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
          | {"a40": {"anyOf": []}}, "$ref": "#/$defs/a0"}, "anyOf is empty"),
        ({"allOf": [{"anyOf": [{"const": i * j} for i in range(12)]} for j in range(1, 40)]}, "too large"),
        ({"allOf": [{"type": "string", "pattern": f".*{c}.{{30}}.*"} for c in "abcdefghijkl"]}, "Unable"),
        ({"type": "integer", "multipleOf": 982451653}, "fuel"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"type": "object", "x-guidance": {"lenient": True}, "contains": {}}, "contains"),
        (nested("items", 200), "recursion limit"),
    ],
)  # fmt: skip
def test_a_wrong_schema_is_refused_with_one_line(
    model: Model, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as error:
        model[0].matcher(json_schema_grammar(schema))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 300
    assert error.value.hint


@pytest.mark.parametrize(
    "schema", [{"enum": ["x" * 20_000]}, {"properties": {str(i): {} for i in range(3000)}}]
)
def test_a_schema_of_too_many_characters_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="are allowed"):
        json_schema_grammar(schema)


HOSTILE = [
    {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    {"type": "array", "items": {}, "minItems": 10**12},
    {"$defs": {"enum": {"type": "array", "items": {}, "minItems": 10**9}}, "$ref": "#/$defs/enum"},
    {"type": "object", "minProperties": 10**9},
    {"type": "array", "items": {"type": "array", "items": {"type": "array", "minItems": 999},
                                "minItems": 999}, "minItems": 999},
    {"type": "string", "minLength": 10**6},
    {"type": "string", "pattern": "^" + "a" * 200 + "$"},
    {"type": "string", "pattern": "^((((a?){9}){9}){9}){9}$"},
    {"type": "string", "pattern": "^(((a*)*)*)*$"},
    {"type": "string", "pattern": "^(((a?){ 99 }){ 99 }){ 99 }$"},
    {"type": "string", "pattern": "^(((a?){99}){99}){99}$"},
    {"type": "string", "pattern": "a?" * 4000},
    {"type": "string", "pattern": "^(.{0,1000}){0,1000}x(a|b|c|d)*.{900}$"},
    {"type": "string", "pattern": "(a|aa)*.{500}b.{500}"},
    {"type": "string", "pattern": ".*a.{200}$"},
    {"type": "string", "pattern": r"\p{L}{1,1000}\p{N}{1000}"},
    of_itself(*[array(minItems=1) for _ in range(10)]),
    of_itself(array(), array(minItems=1)),
    of_itself(array(), {"type": "array"}),
    of_itself({"type": "object", "properties": {"a": ITSELF}, "additionalProperties": ITSELF}),
    of_itself(operation("add", "l", "r", first=False), operation("neg", "l", first=False)),
    of_itself(*[{"properties": {name: {"type": "null"}, "v": ITSELF}, "allOf": []} for name in "ab"]),
    of_itself(*[{"allOf": [{"anyOf": [{"properties": {name: {"type": "null"}}}]},
                           {"properties": {"v": ITSELF}}]} for name in "ab"]),
    of_itself({"properties": {"*": ITSELF}}),
    of_itself({"additionalProperties": True, "items": ITSELF}, array()),
    chain(12),
    {"$defs": {"e": {"enum": list(range(99))}}, "anyOf": [
        {"type": "object", "properties": {f"p{i}": {"$ref": "#/$defs/e"}}} for i in range(50)]},
    {"$defs": {f"a{i}": {"properties": {k: {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}]} for k in "pq"}}
               for i in range(28)} | {"a28": {"properties": {"z": {"type": "null"}}}},
     "type": "object", "allOf": [{"$ref": "#/$defs/a0"}]},
    nested("properties", 60),
    nested("items", 100),
    finite_beside_endless(31, 100, 62),
    {"$defs": {"e": {"enum": [0] * 1500}}, "anyOf": [
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}, "o": {"const": i}},
         "required": ["a", "o"]} for i in range(100)]},
    {"anyOf": [{}] * 4000},
    {"allOf": [{"properties": {"a": {"type": "string"}}}] * 2},
    {"type": "object", "properties": {str(i): {} for i in range(1300)}},
    {"type": "array", "prefixItems": [{}] * 3000},
    {"oneOf": [{"properties": {"a": {"const": i}}, "required": ["a"]} for i in range(200)]},
    {"enum": ["x" * 16_000]},
]  # fmt: skip


def follow(vocabulary: GrammarVocabulary, schema: dict[str, Any], tokens: int) -> None:
    """Random tokens that the grammar allows, to the end or an InputError; each call in `CALL_S`."""
    draw = np.random.default_rng(7)
    began = time.perf_counter()
    matcher = vocabulary.matcher(json_schema_grammar(schema))
    assert time.perf_counter() - began < CALL_S
    for _ in range(tokens):
        began = time.perf_counter()
        mask = matcher.mask()
        token = int(draw.choice(np.flatnonzero(mask)))
        assert matcher.allows(token)
        matcher.accept(token)
        assert time.perf_counter() - began < CALL_S


def follow_all(vocabulary: GrammarVocabulary, tokens: int) -> None:
    before = memory()
    for schema in HOSTILE:
        try:
            follow(vocabulary, schema, tokens)
        except InputError as error:
            assert "cannot be followed" in str(error) and "\n" not in str(error)
    assert memory() - before < GROWTH


def test_hostile_schemas_are_bounded_in_time_and_memory(model: Model) -> None:
    """Alternatives that begin alike in a recursive schema, and regular expressions that repeat
    repetitions: llama.cpp's grammars would follow them all, in a call that nothing can stop."""
    follow_all(model[0], 60)


@pytest.mark.slow
def test_hostile_schemas_are_bounded_with_a_real_vocabulary() -> None:
    from edgeft.base.resolve import resolve_base

    tokenizer = load_tokenizer(resolve_base("smollm2-135m"))
    vocabulary = GrammarVocabulary.from_tokenizer(tokenizer, 49_152, {2})
    follow_all(vocabulary, 500)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (of_itself({"type": "number"}, {"type": "string"}, array(),
                   {"type": "object", "additionalProperties": ITSELF}), '[{"a": [1]}, "b"]'),
        (of_itself({"type": "null"}, {"type": "object", "properties": {"next": ITSELF},
                                      "required": ["next"]}), '{"next": {"next": null}}'),
        (of_itself(operation("add", "l", "r"), operation("neg", "l"), {"type": "number"}),
         '{"op": "add", "l": {"op": "neg", "l": 1}, "r": 2}'),
        ({"$defs": {"t": {"type": "object", "properties": {"sons": array()}}}, **ITSELF},
         '{"sons": [{"sons": []}]}'),
        (chain(5), '[[[[["a"]]]]]'),
        ({"type": "array", "items": {"anyOf": [
            {"type": "object", "properties": {"tool": {"const": f"t{i}"}, "to": {"type": "object"}},
             "required": ["tool", "to"]} for i in range(40)]}}, '[{"tool": "t39", "to": {}}]'),
        ({"enum": [f"room {i}" for i in range(1000)]}, '"room 999"'),
        (of_itself({"type": "number"}, *[operation(f"o{i}", "l", "r") for i in range(20)]),
         '{"op": "o19", "l": 1, "r": {"op": "o0", "l": 2, "r": 3}}'),
        ({"const": 'a" | [a] root [b] #'}, json.dumps('a" | [a] root [b] #')),
        ({"enum": ["a\\", 'b"']}, json.dumps('b"')),
        ({"type": "object", "properties": {"größe": {"const": "é\n"}}, "required": ["größe"]},
         '{"größe": "é\\n"}'),
        (functools.reduce(lambda inner, _: {"type": "object", "properties": {"properties": inner}},
                          range(14), {"type": "null"}), "{}"),
        ({"$defs": {"x": {"type": "null"}}, "type": "object", "required": ["ref 0", "ref-0"], "properties": {
            "ref 0": {"const": 1}, "ref-0": {"$ref": "#/$defs/x"}}}, '{"ref 0": 1, "ref-0": null}'),
        ({"type": "object", "properties": {'say "a"': {"const": {"type": "none"}}}, "required": ['say "a"']},
         json.dumps({'say "a"': {"type": "none"}})),
        ({"p": {"c": {"const": "a"}}, "q": {"c": {"const": "b"}}, "type": "array",
          "items": [{"$ref": "#/p/c"}, {"$ref": "#/q/c"}]}, '["a", "b"]'),
    ],
)  # fmt: skip
def test_a_text_of_a_schema_is_allowed(model: Model, schema: dict[str, Any], text: str) -> None:
    began = time.thread_time()
    assert reads(model, schema, text)
    assert time.thread_time() - began < 2


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": ["object", "null"], "properties": {"a": {"type": "null"}}, "required": ["a"]},
         ['{"a": null}', "null"], ['{"b', "[", "{}"]),
        ({"properties": {"default": {"type": ["array", "null"], "items": {"const": "type"}}}},
         ['{"default": ["type"]}', '{"default": null}', "{}"], ['{"default": [1', '{"default": {']),
        ({"type": ["string", "null"], "enum": ["on", None]}, ['"on"', "null"], ['"of', "1"]),
        ({"type": ["array", "string"], "items": {"type": "boolean"}, "maxItems": 1, "pattern": "^a$"},
         ["[true]", '"a"'], ['["', "[true,", '"b']),
    ],
)  # fmt: skip
def test_each_of_several_types_has_its_own_keywords(
    model: Model, schema: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [reads(model, schema, text) for text in right] == [True] * len(right)
    assert [reads(model, schema, text, whole=False) for text in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"type": "object"}, ['{"a":  1', '{"a":\n1', " {", "[", "1"]),
        ({"type": "array", "x-guidance": {"item_separator": ";"}}, ["[1;"]),
        ({"type": "integer", "minimum": 3, "maximum": 5}, ["7", "-1"]),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, ['{"b']),
    ],
)
def test_a_text_that_is_not_of_a_schema_is_not_allowed(
    model: Model, schema: dict[str, Any], wrong: list[str]
) -> None:
    assert [reads(model, schema, text, whole=False) for text in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("schema", "text", "is_allowed"),
    [
        ({"type": "object", "properties": {"a": {}}}, '{"b', False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, '{"b": 1}', True),
        ({"type": "object", "properties": {"a": {}}, "patternProperties": {"^b": {}}}, '{"b": 1}', True),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, '{"b": 1}', True),
        ({"type": "object", "properties": {"properties": {"properties": {"a": {}}, "type": "object"}}},
         '{"properties": {"b', False),
        ({"allOf": [{"type": "object", "properties": {k: {"const": 1}}, "required": [k]} for k in "ab"]},
         '{"a": 1, "b": 1}', True),
        ({"$defs": {"a": {"type": "object", "properties": {"a": {"const": 1}}}}, "$ref": "#/$defs/a",
          "properties": {"b": {"const": 2}}}, '{"a": 1, "b": 2}', True),
        ({"enum": [{"properties": {"a": 1}}]}, '{"properties": {"a": 1}}', True),
        ({"type": "integer"}, "9007199254740991", True),
        ({"type": "integer"}, "90071992547409910", False),
        ({"type": ["integer", "null"]}, "90071992547409910", False),
        ({"type": "integer", "minimum": 100}, "90071992547409910", True),
    ],
)  # fmt: skip
def test_objects_and_integers_are_bounded_unless_the_schema_says_otherwise(
    model: Model, schema: dict[str, Any], text: str, is_allowed: bool
) -> None:
    before = json.dumps(schema)
    assert reads(model, schema, text, whole=is_allowed) is is_allowed
    assert json.dumps(schema) == before


def test_escaped_characters_are_allowed(model: Model) -> None:
    for text in ('"\\u00e9"', '"\\u0041"', '"é"', '"\\n"'):
        assert reads(model, {"type": "string"}, text) and isinstance(json.loads(text), str)


def test_special_tokens_are_no_part_of_a_string(model: Model) -> None:
    assert not reads(model, {"type": "string"}, '"<|im_start|>"')


def test_a_tokenizer_and_the_gguf_vocabulary_allow_the_same(model: Model, tiny_base: Path) -> None:
    vocabulary, encode, ends = model
    other = GrammarVocabulary.from_tokenizer(load_tokenizer(tiny_base), vocabulary._size, ends)
    on = {"on": {"type": "boolean"}}
    schema = {"type": "object", "properties": on, "additionalProperties": True}
    grammar = json_schema_grammar(schema)
    first, second = vocabulary.matcher(grammar), other.matcher(grammar)
    for token in encode('{"on": true, "more": ["é", 1.5]}'):
        np.testing.assert_array_equal(first.mask(), second.mask())
        first.accept(token)
        second.accept(token)
    np.testing.assert_array_equal(first.mask(), second.mask())
    assert all(first.mask()[list(ends)])


def test_a_token_that_is_not_allowed_is_chosen_again(model: Model) -> None:
    vocabulary, encode, _ = model
    matcher = vocabulary.matcher(json_schema_grammar({"enum": ["on", "off"]}))
    wanted, logits = encode('"off"'), np.zeros(vocabulary._size, np.float32)
    logits[wanted] = 1.0
    logits[encode("z")] = 2.0
    asked: list[Logits] = []

    def sample(row: Logits) -> int:
        asked.append(row)
        return int(row.argmax())

    first = matcher.choose(logits, sample)
    assert first in wanted and len(asked) == 2 and not np.isfinite(asked[1]).all()


def test_a_vocabulary_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="no end token"):
        GrammarVocabulary.from_pieces([b"a", b'"'], [], [])


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (regex_rule(r"^\d{3}-[a-c/]+$"), ["123-a", "000-c/b"], ["12", "123-", "123-d", "a123-a"]),
        (regex_rule(r"a\$"), ["a$"], ["a"]),
        (regex_rule("on|off"), ["on", "off"], ["o", "onoff"]),
        (choice_rule(["a/b", 'say "é"', "a"]), ["a/b", 'say "é"', "a"], ["a/", "say", "b"]),
        (gbnf_rule('root ::= "yes" | "no" tail?\ntail ::= ", " [a-z]+ # end'), ["yes", "no, sir"], ["no,", "yes, x"]),
        (gbnf_rule('root ::= "(" (root | "x"){1,2} ")"'), ["(x)", "((x)x)"], ["()", "(xxx)", "((x)"]),
    ],
)  # fmt: skip
def test_an_answer_of_a_regex_a_choice_or_a_gbnf(
    model: Model, rule: str, right: list[str], wrong: list[str]
) -> None:
    grammar = grammar_of(rule)
    assert [reads(model, grammar, text) for text in right] == [True] * len(right)
    assert [reads(model, grammar, text) for text in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('root ::= "a', "end of input"),
        ("root ::= nowhere", "'nowhere' not found"),
        ('a ::= "b"', "No 'root'"),
        ("root ::= " + "(" * 2000, "nested|end of input|Expected"),
        ("#" * 5000, "4096 are allowed"),
    ],
)
def test_what_is_no_gbnf_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        gbnf_rule(text)


def test_a_gbnf_of_many_rules_is_read_in_a_second() -> None:
    chain = "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(270)) + 'a270 ::= "x"'
    began = time.thread_time()
    gbnf_rule(chain)
    assert time.thread_time() - began < CALL_S
