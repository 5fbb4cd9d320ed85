"""Takes a vocabulary and a grammar, gives the tokens that may come next: llguidance's matchers.

    vocabulary = GrammarVocabulary.from_pieces(pieces, special_ids, end_ids)  # once per model
    matcher = vocabulary.matcher(json_schema_grammar({"type": "object"}))     # once per answer
    token = matcher.choose(logits, lambda row: int(row.argmax()))

llguidance (github.com/guidance-ai/llguidance) parses with Earley's algorithm over a lexer of regular
expressions. Schemas come from strangers, so `LIMITS` bounds the time and memory of every call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError, require

Logits = npt.NDArray[np.float32]

MAX_SCHEMA_CHARS = 16_384
MAX_GBNF_CHARS = 4_096
"""its conversion takes time that grows with the square of the rules"""
WHITESPACE = " "
"""regular expression of the blanks between two JSON tokens, of which there may be none; unbounded
ones would let a model fill its answer with blanks"""
MAX_INTEGER = 2**53 - 1
"""up to which all readers of JSON agree (RFC 7493); more digits would let a model count for ever"""
SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""keywords that hold schemas by any names"""
LITERALS = ("const", "enum", "default", "examples", "required")
"""keywords that hold values and no schemas"""
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
OBJECT_KEYWORDS = {"properties", "required", "additionalProperties", "patternProperties"}
LIMITS = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 500_000,
}
"""arguments of llguidance.LLParserLimits: its defaults, but for 20,000 states of the lexer (about
2 kB each) in place of 250,000"""


# Forced text would be tokenized for the model; the model itself decides how to split it.
HEADER = f"%llguidance {json.dumps({'no_forcing': True})}"
"""first line of every grammar"""


def json_schema_grammar(schema: dict[str, Any]) -> str:
    """A JSON schema -> llguidance's Lark text, which `GrammarVocabulary.matcher` compiles.

    Raises as `json_rule`.
    """
    return grammar_of(json_rule(schema))


def grammar_of(rule: str) -> str:
    """The grammar of answers that follow one rule."""
    return f"{HEADER}\nstart: {rule}"


def json_rule(schema: Mapping[str, Any]) -> str:
    """A JSON schema -> the part of a rule in Lark's syntax that follows it.

    InputError for a schema of more than `MAX_SCHEMA_CHARS`. A `oneOf` counts as an `anyOf`, an object
    with `properties` has no others, and an integer is at most `MAX_INTEGER`, unless the schema says
    otherwise. Settings of llguidance within the schema have no effect.
    """
    text = json.dumps(schema)
    _check_length("schema", text, MAX_SCHEMA_CHARS)
    schema = json.loads(text)
    _bound(list(_subschemas(schema)))
    settings = {
        "whitespace_pattern": WHITESPACE,
        "coerce_one_of": True,
        "json_allow_general_unicode_escapes": True,
    }
    return f"%json {json.dumps({**schema, 'x-guidance': settings})}"


def regex_rule(pattern: str) -> str:
    """A regular expression that the whole answer matches -> the part of a rule.

    InputError for one of more than `MAX_SCHEMA_CHARS`. Of the syntax, lookaround and backreferences are
    missing; `GrammarVocabulary.matcher` refuses them.
    """
    _check_length("regular expression", pattern, MAX_SCHEMA_CHARS)
    llguidance = require("llguidance", "serve")
    pattern = pattern.removeprefix("^")
    if re.search(r"(?<!\\)(\\\\)*\$\Z", pattern):
        pattern = pattern[:-1]
    return f"/{llguidance.regex_to_lark(pattern)}/"


def choice_rule(texts: Sequence[str]) -> str:
    """One of these texts. InputError for none, and for more than `MAX_SCHEMA_CHARS`."""
    rule = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    _check_length("list of choices", rule, MAX_SCHEMA_CHARS)
    if not all(texts) or not texts:
        raise InputError("a choice is a text with at least one character")
    return f"({rule})"


def gbnf_rule(text: str) -> str:
    """A grammar in llama.cpp's GBNF -> the part of a rule.

    InputError for one that is no GBNF or has more than `MAX_GBNF_CHARS`. Rules that refer to no rule
    with recursion become tokens of a lexer, which takes as many characters as it can.
    """
    _check_length("grammar", text, MAX_GBNF_CHARS)
    require("llguidance", "serve")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        converted = gbnf_to_lark(text)
    except RecursionError:
        raise InputError("the grammar is nested too deeply", "simplify it") from None
    except Exception as error:  # noqa: BLE001  it raises Exception and IndexError, too
        raise InputError(f"the grammar is no GBNF: {str(error)[:200]}") from None
    rules = converted.partition("\n")[2]  # behind its settings
    return f"%lark {{{rules}}}"


def _check_length(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InputError(f"the {what} has {len(text)} characters, {most} are allowed")


def _bound(schemas: list[dict[str, Any]]) -> None:
    """Writes the defaults into the parts of a schema that keep an answer short. Where schemas are
    combined, objects stay open: each part would exclude the properties of the others."""
    combined = any(
        "allOf" in one or ({"$ref", "anyOf", "oneOf"} & one.keys() and OBJECT_KEYWORDS & one.keys())
        for one in schemas
    )
    for one in schemas:
        if not combined and _is_closable(one):
            one.setdefault("additionalProperties", False)
        types = one.get("type")
        if "integer" in (types if isinstance(types, list) else [types]) and not BOUNDS & one.keys():
            one.update(minimum=-MAX_INTEGER, maximum=MAX_INTEGER)


def _is_closable(schema: dict[str, Any]) -> bool:
    """Does it name all properties that an object needs?"""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return False
    return "patternProperties" not in schema and {*map(str, required)} <= properties.keys()


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema within a schema, itself first."""
    if isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key in SCHEMA_MAPS and isinstance(value, dict):
                yield from _subschemas(list(value.values()))
            elif key not in LITERALS:
                yield from _subschemas(value)
    elif isinstance(schema, list):
        for one in schema:
            yield from _subschemas(one)


class GrammarVocabulary:
    """The texts of a model's tokens, as llguidance indexes them. Takes a second for 100,000 tokens."""

    def __init__(self, tokenizer: Any, size: int, end_ids: Collection[int]) -> None:
        """`tokenizer`: a llguidance.LLTokenizer. `size`: logits per token of the model."""
        self._tokenizer, self._size, self._end_ids = tokenizer, size, frozenset(end_ids)

    @classmethod
    def from_pieces(
        cls, pieces: Sequence[bytes], special_ids: Sequence[int], end_ids: Collection[int]
    ) -> GrammarVocabulary:
        """`pieces`: the bytes of each token. Special tokens are never part of a text. `end_ids`: the
        tokens that end an answer; InputError where there are none."""
        llguidance = require("llguidance", "serve")
        wrapper = _Pieces(pieces, special_ids, _sorted(end_ids))
        tokenizer = llguidance.LLTokenizer(wrapper, eos_token=_sorted(end_ids))
        return cls(tokenizer, len(pieces), end_ids)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, size: int, end_ids: Collection[int]
    ) -> GrammarVocabulary:
        """`tokenizer`: a tokenizers.Tokenizer, which may have fewer or more tokens than the model's
        `size`. InputError where llguidance cannot read it or `end_ids` is empty."""
        llguidance = require("llguidance", "serve")
        count = max(size, tokenizer.get_vocab_size(with_added_tokens=True))
        try:
            indexed = llguidance.LLTokenizer(
                tokenizer.to_str(), n_vocab=count, eos_token=_sorted(end_ids)
            )
        except ValueError as error:
            reason = _reason(str(error))
            raise InputError(f"no schema with this tokenizer: {reason}") from None
        return cls(indexed, size, end_ids)

    def matcher(self, grammar: str) -> Matcher:
        """InputError for a grammar that is invalid, too complex, or allows no text at all."""
        llguidance = require("llguidance", "serve")
        limits = llguidance.LLParserLimits(**LIMITS, verbose_errors=False)
        inner = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        matcher = Matcher(inner, self._size, self._end_ids)
        matcher.mask()
        return matcher


class Matcher:
    """Follows one answer through its grammar."""

    def __init__(self, matcher: Any, size: int, end_ids: frozenset[int]) -> None:
        self._matcher, self._size, self._end_ids = matcher, size, end_ids
        self._check()

    def allows(self, token: int) -> bool:
        """May the answer go on with this token? An end token may come where the text is complete."""
        if token in self._end_ids:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]) == 1)

    def mask(self) -> npt.NDArray[np.bool_]:
        """(vocabulary,): the tokens that may come next; InputError where the limits are reached."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._size, bitorder="little")
        return mask.view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on behind this token; an end token changes nothing."""
        if token not in self._end_ids:
            self._matcher.consume_token(token)
            self._check()

    def choose(self, logits: Logits, sample: Callable[[Logits], int]) -> int:
        """Accept the token that `sample` chooses among all, or else among those that are allowed.

        Most tokens that a model chooses are allowed, and one token is checked faster than a mask of
        the vocabulary is made.
        """
        token = sample(logits)
        if not self.allows(token):
            token = sample(np.where(self.mask(), logits, np.float32(-np.inf)))
        self.accept(token)
        return token

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise InputError(f"the schema or grammar cannot be followed: {reason}", "simplify it")


class _Pieces:
    """What llguidance.LLTokenizer reads of a tokenizer that is not Hugging Face's."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, tokens: Sequence[bytes], special_ids: Sequence[int], end_ids: Sequence[int]
    ) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_ids, end_ids[0]

    def __call__(self, text: str) -> list[int]:
        """Asked only for forced text, which `json_schema_grammar` switches off."""
        return []


def _sorted(end_ids: Collection[int]) -> list[int]:
    if not end_ids:
        raise InputError("this vocabulary has no end token, so an answer to a schema cannot end")
    return sorted(end_ids)


def _reason(error: str) -> str:
    """One line of llguidance's message, without the text around the place in the grammar."""
    first, *others = error.strip().splitlines() or [""]
    details = [line.removeprefix("error: ") for line in others if line.startswith("error: ")]
    reason = first.rpartition("failed to compile JSON schema: ")[2]
    if reason == "NoExtensionBias":
        reason = "no token of the vocabulary continues it"
    return " ".join([reason, *details])[:200]
