"""Rendering, the oracle is transformers' apply_chat_template; fingerprint, lock, learned spans."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError, TemplateError
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate
from edgeft.tokenizer.dialogue import fit
from edgeft.tokenizer.learned_parts import spans

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = """\
{{- bos_token }}
{%- set loop_messages = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

{{ system_message }}<|eot_id|>
{%- for message in loop_messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
{{ message['content'] + eos_token }}
    {% endif %}
{% endfor %}
"""
HELPERS = """\
{% set ns = namespace(seen=0) %}
{% for message in messages %}
  {% if message.role == 'system' %}{% continue %}{% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
  {% set ns.seen = ns.seen + 1 %}
{{ message | tojson }} {{ message | tojson(indent=2) }} {{ loop.index0 }}
{% endfor %}
{{ ns.seen }} {{ strftime_now('%Y') }} {{ messages[-1].content.split('e')[0] }}
{{- ['<', 'ü', '&'] | tojson(ensure_ascii=True) }}
{% if messages | length > 9 %}{{ raise_exception('too long') }}{% endif %}
{% if tools is not none %}{{ 'TOOLS' }}{% endif %}{% if documents %}{{ 'DOCS' }}{% endif %}
"""
TEMPLATES = {
    "chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "helpers": HELPERS, "alpaca": ALPACA,
}  # fmt: skip

TALK = (
    Message("system", "Be  brief. "),
    Message("user", "Grüß <b>Gott</b> & 'more' \"quotes\"\n\n  two lines"),
    Message("assistant", " fine {{ 7 * 7 }} "),
    Message("user", "next"),
    Message("assistant", "the end"),
)


def chat(source: str, stops: tuple[str, ...] = ("<|im_end|>",)) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token=stops[0] if stops else "", stops=stops)


def apply_chat_template(template: ChatTemplate) -> Callable[..., str]:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")),
        bos_token=template.bos_token,
        eos_token=template.eos_token,
    )
    fast.chat_template = template.source

    def render(messages: tuple[Message, ...], generation_prompt: bool) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        text = fast.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation_prompt
        )
        assert isinstance(text, str)
        return text

    return render


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_render_is_transformers(name: str, generation_prompt: bool) -> None:
    template = chat(TEMPLATES[name])
    theirs = apply_chat_template(template)
    for talk in (TALK, TALK[1:], TALK[:2], TALK[1:2]):
        turns = fit(template, talk).messages
        assert turns == talk or name in ("mistral", "helpers"), "they drop a system turn silently"
        assert template.render(talk, generation_prompt) == theirs(turns, generation_prompt)
    assert "49" not in template.render(TALK), "contents are data, not templates"


def test_a_refusing_template_gives_its_own_reason() -> None:
    with pytest.raises(InputError, match="the chat template refuses these messages: too long"):
        chat(HELPERS).render([Message("user", "x")] * 10)


def test_fingerprint_changes_with_each_part() -> None:
    one = ChatTemplate("s", "b", "e", ("e", "t"))
    others = [
        replace(one, source="S"), replace(one, bos_token="B"), replace(one, eos_token="E"),
        replace(one, stops=("t", "e")), replace(one, stops=("e",)),
        ChatTemplate("sb", "", "e", ("e", "t")),
        replace(one, source="s {{ unk_token }}", unk_token="u"),
        replace(one, source="s {{ unk_token }}", unk_token="v"),
        replace(one, source="s {{ pad_token }}", pad_token="u"),
    ]  # fmt: skip
    assert one.fingerprint == ChatTemplate("s", "b", "e", ("e", "t")).fingerprint
    assert one.fingerprint == replace(one, unk_token="u", pad_token="p").fingerprint, "not used"
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_the_lock_tells_what_is_not_the_same() -> None:
    one = ChatTemplate("{{ bos_token }} s", "b", "e", ("e", "t"))
    recorded = json.loads(json.dumps(one.to_json()))
    one.check_matches(recorded, "it had")
    replace(one, stops=("e", "t", "more"), pad_token="p").check_matches(recorded, "it had")
    for other, says in (
        (replace(one, source="{{ bos_token }} S"), "it had another chat template: .* s' then"),
        (replace(one, bos_token="B"), "it had bos_token 'b', now it is 'B'"),
        (replace(one, stops=("e",)), "it had other stops: 'e', 't' then, 'e' now"),
    ):
        with pytest.raises(TemplateError, match=says):
            other.check_matches(recorded, "it had")


def test_a_base_without_a_template_gets_alpacas(tmp_path: Path) -> None:
    config = {"eos_token": "</s>", "chat_template": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.from_folder(tmp_path)
    assert template.source == ALPACA
    assert template.render([Message("system", "S"), Message("user", "U")]) == (
        "S\n\n### Instruction:\nU\n\n### Response:\n"
    )
    parts = spans(template, [Message("user", "U"), Message("assistant", "A")])
    assert parts == [("### Instruction:\nU\n\n### Response:\n", False), ("A</s>", True)]


def test_spans_learn_every_answer_with_its_stop() -> None:
    parts = spans(chat(CHATML), TALK)
    assert [text for text, learned in parts if learned] == [
        " fine {{ 7 * 7 }} <|im_end|>", "the end<|im_end|>",
    ]  # fmt: skip
    assert "".join(text for text, _ in parts) + "\n" == chat(CHATML).render(TALK, False)
    assert parts[2][0].startswith("\n<|im_start|>user"), "what follows a stop is not an answer"


def test_spans_of_the_other_families() -> None:
    parts = spans(chat(LLAMA3, ("<|eot_id|>",)), TALK)
    assert [text for text, learned in parts if learned] == [
        "fine {{ 7 * 7 }}<|eot_id|>", "the end<|eot_id|>",
    ]  # fmt: skip
    parts = spans(chat(MISTRAL, ("</s>",)), TALK[1:])
    assert [text for text, learned in parts if learned] == [
        " fine {{ 7 * 7 }} </s>", "the end</s>",
    ]  # fmt: skip


def test_an_answer_that_quotes_a_stop_is_learned_to_its_end() -> None:
    talk = [Message("user", "how does a turn end?"), Message("assistant", "with <|im_end|>, see?")]
    assert spans(chat(CHATML), talk)[-1] == ("with <|im_end|>, see?<|im_end|>", True)


def test_without_a_stop_the_answer_runs_to_the_end() -> None:
    assert spans(chat(CHATML, ()), TALK[1:3])[-1] == (" fine {{ 7 * 7 }} <|im_end|>\n", True)


def test_a_template_that_strips_earlier_answers_teaches_the_last() -> None:
    talk = [
        Message("user", "a"), Message("assistant", "<think>x</think>b"),
        Message("user", "c"), Message("assistant", "d"),
    ]  # fmt: skip
    source = CHATML.replace(
        "message['content'] +",
        "(message['content'] if loop.last else message['content'].split('</think>')[-1]) +",
    )
    parts = spans(chat(source), talk)
    assert [text for text, learned in parts if learned] == ["d<|im_end|>"]
    assert "<|im_start|>assistant\nb<|im_end|>" in parts[0][0] and "think" not in parts[0][0]


@pytest.mark.parametrize(
    "source",
    [
        CHATML.replace("assistant\\n' }}{% endif", "bot\\n' }}{% endif"),
        "{{ messages | length }}{% if add_generation_prompt %}>{% endif %}",
        "{{ messages[-1].content }}{% if add_generation_prompt %}:{% endif %}",
    ],
)
def test_an_answer_that_does_not_follow_its_prompt(source: str) -> None:
    with pytest.raises(InputError, match="does not put the answer after its generation") as no:
        spans(chat(source), TALK[1:3])
    assert no.value.hint == "fix the template of the base model"
