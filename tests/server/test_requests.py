"""Bodies become generation requests, within limits; no model is loaded."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from edgeft.errors import InputError, TooLong
from edgeft.server import requests
from edgeft.server.requests import chat_requests, completion_requests, tokenized
from edgeft.server.schemas import Chat, Completion

pytestmark = pytest.mark.unit

FULL = frozenset(
    {"logprobs", "grammar", "penalties", "top_k", "min_p", "bias", "ignore_eos", "return_progress"}
)
HI = [{"role": "developer", "content": "be"}, {"role": "user", "content": "hi"}]


def engine(supports: frozenset[str] = FULL, context: int = 20, adds_bos: bool = False) -> Any:
    """Of a model whose tokens are the characters of a text."""

    def render(
        messages: Any, generation_prompt: bool = True, tools: Any = (), template_kwargs: Any = None
    ) -> str:
        text = "".join(f"{message.role[0]}{message.content}" for message in messages)
        return text + str(template_kwargs or "") + ("" if generation_prompt else ".")

    chat = SimpleNamespace(render=render, bos_token="^", source="")
    runtime = SimpleNamespace(
        encode=lambda text: [ord(c) % 128 for c in text],
        chat=chat, vocab_size=128, context=context, adds_bos=adds_bos,
    )  # fmt: skip
    return SimpleNamespace(name="any", runtime=runtime, supports=supports)


def chat(limit: int = 20, on: Any = None, **more: Any) -> list[Any]:
    body = Chat.model_validate({"messages": HI, **more})
    return chat_requests(body, on or engine(), limit)


def completion(limit: int = 20, on: Any = None, **more: Any) -> list[Any]:
    body = Completion.model_validate({"prompt": "hi", **more})
    return completion_requests(body, on or engine(), limit)


def test_a_chat_is_rendered_and_its_roles_are_those_of_templates() -> None:
    (request,) = chat()
    assert bytes(request.prompt_ids) == b"sbeuhi"
    assert bytes(chat(chat_template_kwargs={"x": 1})[0].prompt_ids) == b"sbeuhi{'x': 1}"
    assert request.max_tokens == 20 and request.logprobs is None and not request.echo


def test_each_choice_has_its_own_seed() -> None:
    made = completion(prompt=["a", "b"], n=2, seed=5)
    assert [(bytes(r.prompt_ids), r.sampling.seed) for r in made] == [
        (b"a", 5), (b"a", 6), (b"b", 5), (b"b", 6)]  # fmt: skip
    assert completion()[0].sampling.seed != completion()[0].sampling.seed


def test_defaults_and_limits_of_max_tokens() -> None:
    assert completion()[0].max_tokens == 16 and completion(max_tokens=0)[0].max_tokens == 0
    assert chat(limit=9)[0].max_tokens == 9
    assert completion(max_tokens=None)[0].max_tokens == 16
    assert chat(max_tokens=3, max_completion_tokens=4)[0].max_tokens == 4
    assert chat(max_tokens=21)[0].max_tokens == completion(max_tokens=2**31 - 1)[0].max_tokens == 20
    assert chat(max_tokens=-1)[0].max_tokens == completion(n_predict=-1)[0].max_tokens == 20
    assert chat(n_predict=7)[0].max_tokens == 7


@pytest.mark.parametrize(
    ("more", "logprobs", "echo"),
    [
        ({"logprobs": 2, "echo": True}, 2, True),
        ({"echo": True}, None, False),
        ({"logprobs": 0}, 0, False),
    ],
)
def test_log_probabilities_of_the_prompt(
    more: dict[str, Any], logprobs: int | None, echo: bool
) -> None:
    (request,) = completion(**more)
    assert (request.logprobs, request.echo) == (logprobs, echo)


def test_log_probabilities_of_a_chat() -> None:
    asked = [{}, {"logprobs": True}, {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 2}]
    assert [chat(**more)[0].logprobs for more in asked] == [None, 0, 3, 2]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("top_k", {"top_k": 3}),
        ("min_p", {"min_p": 0.1}),
        ("penalties", {"presence_penalty": 1.0}),
        ("penalties", {"repeat_penalty": 1.1}),
        ("bias", {"logit_bias": {"3": 1.0}}),
        ("grammar", {"response_format": {"type": "json_object"}}),
        ("logprobs", {"logprobs": True}),
        ("return_progress", {"return_progress": True, "stream": True}),
    ],
)
def test_a_field_that_the_engine_does_not_support_is_refused(
    name: str, more: dict[str, Any]
) -> None:
    assert chat(**more)
    with pytest.raises(InputError, match=f"the engine of any has no {name}"):
        chat(on=engine(FULL - {name}), **more)
    assert chat(on=engine(frozenset()), top_k=-1, frequency_penalty=0.0, repeat_penalty=1.0)


def test_prompts_beyond_the_limits_are_refused() -> None:
    with pytest.raises(TooLong, match="the prompt has 21 tokens, the context only 20"):
        completion(prompt="x" * 21)
    with pytest.raises(InputError, match="empty"):
        completion(prompt="")
    with pytest.raises(InputError, match="ids of tokens go from 0 to 127"):
        completion(prompt=[1, 128])
    with pytest.raises(InputError, match="66 answers at once, 64 are allowed"):
        completion(prompt=["a"] * 33, n=2)
    with pytest.raises(InputError, match="logit_bias"):
        completion(logit_bias={"128": 1.0})


def test_log_probabilities_are_bounded_by_what_answers_can_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "MAX_LOGPROBS", 0)
    monkeypatch.setattr(requests, "MAX_TOP_LOGPROBS", 1)
    # 2 x context = 40 values: two for each of 19 tokens behind a prompt of two.
    assert completion(logprobs=1, max_tokens=20)
    with pytest.raises(InputError, match="more log probabilities"):
        completion(logprobs=1, max_tokens=20, n=2)
    with pytest.raises(InputError, match="more log probabilities"):
        completion(logprobs=1, max_tokens=20, echo=True)
    assert completion(logprobs=1, max_tokens=10, n=2)


def test_a_bos_is_added_where_the_vocabulary_has_one() -> None:
    runtime = engine(adds_bos=True).runtime
    assert [bytes(ids) for ids in tokenized(["a", "^b"], runtime)] == [b"^a", b"^b"]
    assert tokenized([1, 2], runtime) == [[1, 2]]
    assert tokenized([[1], [2]], engine().runtime) == [[1], [2]]


def test_a_schema_that_is_missing_is_refused() -> None:
    for form in ({"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x"}}):
        with pytest.raises(InputError, match="needs json_schema.schema"):
            chat(response_format=form)


ANSWER = {"role": "assistant", "content": "yes, "}


@pytest.mark.parametrize(
    ("more", "prompt"),
    [
        ({}, b"uhiyes, "),
        ({"continue_final_message": True, "add_generation_prompt": False}, b"uhiyes, "),
        ({"continue_final_message": False}, b"uhiayes, "),
        ({"add_generation_prompt": True}, b"uhiayes, "),
        ({"add_generation_prompt": False}, b"uhiayes, ."),
    ],
)
def test_the_last_message_of_the_assistant_is_continued(
    more: dict[str, Any], prompt: bytes
) -> None:
    (request,) = chat(messages=[*HI[1:], ANSWER], **more)
    assert bytes(request.prompt_ids) == prompt


def test_a_continuation_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="last message of the assistant"):
        chat(continue_final_message=True)
    with pytest.raises(InputError, match="exclude each other"):
        chat(messages=[*HI, ANSWER], continue_final_message=True, add_generation_prompt=True)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_other_servers_names_of_a_grammar_mean_the_same() -> None:
    asked: list[list[dict[str, Any]]] = [
        [{"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
         {"response_format": {"type": "json_object", "schema": SCHEMA}}, {"json_schema": SCHEMA},
         {"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)},
         {"structured_outputs": {"json": SCHEMA}}],
        [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}],
        [{"guided_regex": "a+"}, {"structured_outputs": {"regex": "a+"}}],
        [{"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}],
        [{"grammar": 'root ::= "a"'}, {"guided_grammar": 'root ::= "a"'},
         {"structured_outputs": {"grammar": 'root ::= "a"'}, "response_format": {"type": "text"}}],
    ]  # fmt: skip
    grammars = [
        {make(**more)[0].sampling.grammar for more in same for make in (chat, completion)}
        for same in asked
    ]
    assert [len(same) for same in grammars] == [1] * 5 and "" not in set().union(*grammars)
    assert len(set().union(*grammars)) == 5
    assert chat(grammar="", guided_choice=None)[0].sampling.grammar == ""


def test_two_grammars_are_refused_by_their_names() -> None:
    with pytest.raises(InputError, match="guided_regex and structured_outputs.choice"):
        chat(guided_regex="a", structured_outputs={"choice": ["a"]})


def test_prompts_may_be_texts_and_ids_at_once() -> None:
    assert [bytes(r.prompt_ids) for r in completion(prompt=["a", [5, 6]])] == [b"a", b"\x05\x06"]
    assert bytes(completion(prompt=[5, 6])[0].prompt_ids) == b"\x05\x06"


def test_empty_stops_are_none() -> None:
    assert [chat(stop=stop)[0].stop for stop in ("", [], ["", "."], None)] == [(), (), (".",), ()]
    assert len(chat(stop=[str(i) for i in range(40)])[0].stop) == 40


def test_whole_numbers_may_be_floats() -> None:
    (request,) = chat(max_tokens=5.0, top_k=40.0, seed=3.0, n=1.0)
    assert (request.max_tokens, request.sampling.top_k, request.sampling.seed) == (5, 40, 3)
    assert chat(repeat_last_n=64.0)[0].sampling.repeat_last_n == 64
