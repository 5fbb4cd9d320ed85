"""The oracle is transformers' apply_chat_template; hostile templates must come to nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError, TemplateError
from edgeft.files import read_json
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate, spans
from edgeft.tokenizer.hf_files import encoder, eos_ids, load_tokenizer

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
        assert template.render(talk, generation_prompt) == theirs(talk, generation_prompt)
    assert "49" not in template.render(TALK), "contents are data, not templates"


def test_a_refusing_template_gives_its_own_reason() -> None:
    with pytest.raises(InputError, match="the chat template refuses these messages: too long"):
        chat(HELPERS).render([Message("user", "x")] * 10)


SUBCLASS = (
    "{% for c in OBJECT.__subclasses__() if c.__name__ == '_wrap_close' %}"
    "{{ c.__init__.__globals__['system'](CMD) }}{% endfor %}"
)
# Each reaches os.system or shows an object's insides in a plain environment; the test checks that.
ATTACKS = [
    "{{ cycler.__init__.__globals__.os.system(CMD) }}",
    "{{ joiner.__init__.__globals__['os'].system(CMD) }}",
    "{{ namespace.__init__.__globals__.os.system(CMD) }}",
    "{{ lipsum.__globals__.os.system(CMD) }}",
    "{{ lipsum['__globals__']['os']['system'](CMD) }}",
    "{{ (lipsum|attr('__globals__'))['os'].system(CMD) }}",
    "{{ (lipsum|attr('__glo' ~ 'bals__'))['os'].system(CMD) }}",
    "{{ (lipsum|attr('\\x5f\\x5fglobals\\x5f\\x5f')).os.system(CMD) }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system(CMD) }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.system(CMD) }}",
    "{{ raise_exception.__globals__.__builtins__.__import__('os').system(CMD) }}",
    "{{ (strftime_now.__globals__.__builtins__).eval('__import__(\"os\")').system(CMD) }}",
    SUBCLASS.replace("OBJECT", "''.__class__.__mro__[1]"),
    SUBCLASS.replace("OBJECT", "[].__class__.__base__"),
    "{{ ([lipsum]|map(attribute='__globals__')|map(attribute='os')|first).system(CMD) }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ '{0.__globals__[os]}'.format(lipsum) }}",
    "{{ '{x.__globals__[os]}'.format_map({'x': lipsum}) }}",
    "{% set f = '{0.__globals__[os]}'.format %}{{ f(lipsum) }}",
    "{{ ('{0.__globals__[os]}'|attr('format'))(lipsum) }}",
]


def globals_of_ours() -> dict[str, Callable[..., Any]]:
    def anything(*_: Any) -> None: ...

    return {"raise_exception": anything, "strftime_now": anything}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_template_reaches_nothing(tmp_path: Path, attack: str) -> None:
    import jinja2

    owned = tmp_path / "owned"
    source = attack.replace("CMD", json.dumps(f"touch {owned}"))
    plain = jinja2.Environment()
    plain.globals.update(globals_of_ours())
    shown = plain.from_string(source).render(messages=[{"role": "user", "content": "hi"}])
    assert owned.exists() or "<module 'os'" in shown or "<class" in shown, "a dead attack"
    owned.unlink(missing_ok=True)

    try:
        text = chat(source).render([Message("user", "hi")])
    except InputError as error:
        assert "the chat template refuses these messages" in str(error)
    else:
        assert text.strip() == ""
    assert not owned.exists()


@pytest.mark.parametrize(
    "mutation",
    ["messages.append(messages[0])", "messages.clear()", "messages[0].update(role='system')",
     "messages[0].pop('role')", "messages.sort()", "messages[0].setdefault('x', 1)"],
)  # fmt: skip
def test_messages_cannot_be_changed(mutation: str) -> None:
    with pytest.raises(
        InputError, match="the chat template refuses these messages: access to .* is unsafe"
    ):
        chat(f"{{{{ {mutation} }}}}").render([Message("user", "hi")])


@pytest.mark.parametrize(
    "source",
    ["{{ 1 / 0 }}", "{{ messages[0].content + 1 }}", "{{ nothing.at.all }}", "{{ nothing() }}",
     "{{ range(10 ** 9) }}", "{{ '%d' % 'x' }}", "{{ '{0} {1}'.format(1) }}", "{{ 'x'.index('y') }}",
     "{% include 'other' %}", "{{ messages | map('nope') | list }}", "{{ 10.0 ** 400 }}",
     "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ 'x' * (10 ** 15) }}"],
)  # fmt: skip
def test_a_template_that_fails_while_it_runs(source: str) -> None:
    with pytest.raises(InputError, match="the chat template refuses these messages: "):
        chat(source).render([Message("user", "hi")])


@pytest.mark.parametrize("source", ["{% for", "{{ x | nofilter }}", "{% endif %}", "{% nothing %}"])
def test_a_template_that_does_not_compile(source: str) -> None:
    with pytest.raises(InputError, match="the chat template does not compile: "):
        chat(source).render([Message("user", "hi")])


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


def folder(path: Path, **files: Any) -> Path:
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


ADDED = [{"id": 1, "content": "</s>"}, {"id": 5, "content": "<|im_end|>"}]


def test_a_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    bos = {"content": "<s>", "lstrip": False, "__type": "AddedToken"}
    config = {"chat_template": "config", "bos_token": bos, "eos_token": "</s>"}
    folder(tmp_path, tokenizer_config=config)
    assert ChatTemplate.from_folder(tmp_path) == ChatTemplate("config", "<s>", "</s>", ("</s>",))
    (tmp_path / "chat_template.jinja").write_text("file ü", encoding="utf-8")
    assert ChatTemplate.from_folder(tmp_path).source == "file ü"


def test_a_list_of_named_templates(tmp_path: Path) -> None:
    entries = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder(tmp_path, tokenizer_config={"chat_template": entries})
    assert ChatTemplate.from_folder(tmp_path).source == "D"
    folder(tmp_path, tokenizer_config={"chat_template": entries[:1]})
    assert ChatTemplate.from_folder(tmp_path).source == "T"


def test_a_base_without_a_template_gets_alpacas(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config={"eos_token": "</s>", "chat_template": None})
    template = ChatTemplate.from_folder(tmp_path)
    assert template.source == ALPACA
    assert template.render([Message("system", "S"), Message("user", "U")]) == (
        "S\n\n### Instruction:\nU\n\n### Response:\n"
    )
    parts = spans(template, [Message("user", "U"), Message("assistant", "A")])
    assert parts == [("### Instruction:\nU\n\n### Response:\n", False), ("A</s>", True)]


def wordlevel(path: Path, **config: Any) -> Path:
    """A folder that transformers opens, too."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel

    path.mkdir()
    tokenizer: Any = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_special_tokens([AddedToken(f"<{name}>", special=True) for name in "abcd"])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<b>", **config}
    return folder(path, tokenizer_config=config)


NAMED = [{"name": "tool_use", "template": "list tool"}, {"name": "default", "template": "list"}]
PLACES: dict[str, dict[str, Any]] = {
    "config": {"config": "config"},
    "list": {"config": NAMED},
    "file": {"config": "config", "files": {"chat_template.jinja": "file"}},
    "file over list": {"config": NAMED, "files": {"chat_template.jinja": "file"}},
    "more files": {
        "config": "config",
        "files": {"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "rag"},
    },
    "a default among more files": {
        "config": "config",
        "files": {"additional_chat_templates/default.jinja": "D",
                  "additional_chat_templates/a.jinja": "A"},
    },
    "all of them": {
        "config": NAMED,
        "files": {"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "rag",
                  "chat_template.json": '{"chat_template": "json"}'},
    },
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_the_template_that_transformers_takes(tmp_path: Path, place: str) -> None:
    from transformers import AutoTokenizer

    path = wordlevel(tmp_path / "a", chat_template=PLACES[place]["config"])
    for name, text in PLACES[place].get("files", {}).items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    theirs: Any = AutoTokenizer.from_pretrained(path)
    assert ChatTemplate.from_folder(path).source == theirs.get_chat_template()


def test_a_processors_template_is_the_last_resort(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config={}, chat_template={"chat_template": "json"})
    assert ChatTemplate.from_folder(tmp_path).source == "json"


EVERY = (
    "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}"
    "{% for m in messages %}{% generation %} {{ m.content }}\n{% endgeneration %}{% endfor %}"
)


@pytest.mark.parametrize("legacy", [False, True])
def test_special_tokens_and_generation_blocks_as_transformers(tmp_path: Path, legacy: bool) -> None:
    from transformers import AutoTokenizer

    unknown = {"content": "<c>"} if legacy else {"content": "<c>", "__type": "AddedToken"}
    tokens = {"bos_token": "<a>", "unk_token": unknown, "pad_token": "<d>"}
    path = wordlevel(tmp_path / "a", chat_template=EVERY, **({} if legacy else tokens))
    if legacy:  # before transformers 4.34 they were in a file of their own
        folder(path, special_tokens_map={**tokens, "eos_token": "<a>"})
    theirs: Any = AutoTokenizer.from_pretrained(path)
    wanted = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    ours = ChatTemplate.from_folder(path)
    assert ours.render([Message("user", "hi")], generation_prompt=False) == wanted
    assert wanted == ("<a>|<a>|<c>|<d> hi\n" if legacy else "<a>|<b>|<c>|<d> hi\n")


def test_add_bos_token_is_no_special_token(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config={"add_bos_token": True, "add_eos_token": True})
    chat = ChatTemplate.from_folder(tmp_path)
    assert (chat.bos_token, chat.eos_token, chat.stops) == ("", "", ())


def test_broken_templates_and_tokenizers_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(InputError, match=r"chat_template\.jinja is not UTF-8: "):
        ChatTemplate.from_folder(tmp_path)
    for text in ("{", '{"model": {"type": "BPE"}}', '{"version": "9.9"}', "[]"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer: ") as caught:
            encoder(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer: "):
        encoder(tmp_path)


def test_stops_are_the_eos_and_the_generation_configs_list(tmp_path: Path) -> None:
    folder(
        tmp_path,
        tokenizer_config={"eos_token": "</s>"},
        tokenizer={"added_tokens": ADDED},
        config={"eos_token_id": 1},
    )
    assert eos_ids(tmp_path) == (1,)
    assert ChatTemplate.from_folder(tmp_path).stops == ("</s>",)
    folder(tmp_path, generation_config={"eos_token_id": [5, 1, 77]})
    assert eos_ids(tmp_path) == (5, 1, 77)
    assert ChatTemplate.from_folder(tmp_path).stops == ("</s>", "<|im_end|>")
    folder(tmp_path, generation_config={"eos_token_id": None})
    assert eos_ids(tmp_path) == (1,)
    assert eos_ids(tmp_path / "none") == ()


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.from_folder(tmp_path)
    folder(tmp_path, tokenizer_config=[1])
    with pytest.raises(InputError, match="does not hold a JSON object"):
        read_json(tmp_path / "tokenizer_config.json")
    assert read_json(tmp_path / "absent.json") == {}
    with pytest.raises(InputError, match=r"no tokenizer\.json in") as caught:
        load_tokenizer(tmp_path)
    assert "fast tokenizer" in caught.value.hint


def test_the_encoder_knows_special_tokens_and_adds_none(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = Tokenizer(WordLevel({"?": 0, "<s>": 1, "hi": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("hi").ids == [1, 2]
    assert encoder(tmp_path)("<s>hi hi") == [1, 2, 2]


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
        CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>' }}{% endif"),
        "{{ messages | length }}{% if add_generation_prompt %}>{% endif %}",
        "{{ messages[-1].content }}{% if add_generation_prompt %}:{% endif %}",
    ],
)
def test_an_answer_that_does_not_follow_its_prompt(source: str) -> None:
    with pytest.raises(InputError, match="does not put the answer after its generation") as no:
        spans(chat(source), TALK[1:3])
    assert no.value.hint == "fix the template of the base model"
