"""Templates and saved tokenizers as users have them: what is learned is what the file says.

Each template is a small one of a conversation that real models have; transformers is the oracle.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoding import encode, encode_all
from edgeft.errors import InputError
from edgeft.progress import say_once
from edgeft.records import Example, Message
from edgeft.tokenizer import hf_files
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate
from edgeft.tokenizer.dialogue import fit
from edgeft.tokenizer.hf_files import encoder, id_to_token, load_tokenizer, tokenizer_json
from edgeft.tokenizer.learned_parts import sequences, spans
from helpers.dialogues import (
    ANSWER,
    ANSWER2,
    ASK,
    ASK2,
    CALL,
    CALL_TEXT,
    CONVERSATIONS,
    RESULT,
    SYSTEM,
    THOUGHT,
    TOOL,
    check_learned,
    marked_text,
)
from helpers.tiny import CHATML, make_tokenizer

HEAD = "{{ bos_token }}{% for m in messages %}"
TAIL = "{% endfor %}{% if add_generation_prompt %}"
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}"
    + TAIL
    + "<start_of_turn>model\n{% endif %}"
)
MISTRAL = (  # the system text goes before the last user turn; ids of nine characters
    "{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{%- for m in turns if m.role in ('user', 'assistant') and not m.tool_calls %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "{%- if tools is not none %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}{{- bos_token }}"
    "{%- for m in turns %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
    "{%- elif m.tool_calls %}[CALLS]{% for c in m.tool_calls %}"
    "{% if c.id is not defined or c.id | length != 9 %}"
    "{{ raise_exception('ids must be nine letters and digits') }}{% endif %}"
    "{{ c.function | tojson }}{{ c.id }}{% endfor %}{{ eos_token }}"
    "{%- elif m.role == 'tool' %}[RESULT]{{ m.content }}"
    "{% if m.tool_call_id | length != 9 %}{{ raise_exception('id') }}{% endif %}{{ m.tool_call_id }}"
    "{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (  # drops the reasoning of earlier turns, writes an empty one before the last answer
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- if tools %}{{- '# Tools\n' + tools | tojson + '\n' }}{%- endif %}"
    "{%- for m in messages %}{%- set c = m.content %}{%- set r = m.reasoning_content or '' %}"
    "{%- if m.role == 'assistant' and '</think>' in c %}"
    "{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or r) %}"
    "{{- '<think>\n' + r + '\n</think>\n\n' }}{%- endif %}{{- c }}"
    "{%- for t in m.tool_calls or [] %}{{- '<tool_call>' + t.function | tojson + '</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
R1 = HEAD + (  # opens a reasoning part and drops it from every answer
    "{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% else %}{% set c = m['content'] %}{% if '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + c + '<|end|>' }}"
    "{% endif %}" + TAIL + "{{ '<|Assistant|><think>\n' }}{% endif %}"
)
CLOSED = R1.replace("<think>\n' }}", "<think></think>' }}")
MINIMAX = HEAD + (  # opens a reasoning part and writes it only where there is one
    "<{{ m.role }}>{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"
    "{% endif %}{{ m.content }}<|end|>" + TAIL + "{{ '<assistant><think>\n' }}{% endif %}"
)
DEEPSEEK = HEAD + (  # calls only where the content is none, arguments as text
    "{% if m.role == 'assistant' and m.content is none %}{% for t in m.tool_calls %}"
    "{{ '<|Assistant|><call>' + t.function.name + '\n' + t.function.arguments + '</call>' }}"
    "{% endfor %}<|end|>{% elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content + '<|end|>' }}"
    "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}" + TAIL + "<|Assistant|>{% endif %}"
)
LLAVA = HEAD + (  # reads the content as parts
    "{{ m.role | upper + ': ' }}{% for part in m.content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ ' ' }}"
    + TAIL
    + "ASSISTANT: {% endif %}"
)
SILENT = HEAD + (  # writes user and assistant turns, leaves out the rest without a word
    "{% if m.role == 'user' %}<u>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<a>{{ m.content }}{{ eos_token }}{% endif %}" + TAIL + "<a>{% endif %}"
)
MARKED = HEAD + (
    "<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '\n' }}"
    + TAIL
    + "<assistant>{% endif %}"
)
LLAMA = HEAD + (
    "{% if loop.first %}Today: {{ strftime_now('%d %b %Y') }}{{ tools | tojson if tools }}{% endif %}"
    "[{{ m.role }}]{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}{{ eos_token }}"
    + TAIL
    + "[assistant]{% endif %}"
)
TEMPLATES = {
    "alpaca": ALPACA, "chatml": CHATML, "gemma": GEMMA, "mistral": MISTRAL, "qwen3": QWEN3, "r1": R1,
    "closed": CLOSED, "minimax": MINIMAX, "deepseek": DEEPSEEK, "llava": LLAVA, "silent": SILENT,
    "marked": MARKED, "llama": LLAMA,
}  # fmt: skip
STOPS = {
    "chatml": "<|im_end|>", "qwen3": "<|im_end|>", "gemma": "<end_of_turn>", "r1": "<|end|>",
    "closed": "<|end|>", "minimax": "<|end|>", "deepseek": "<|end|>",
}  # fmt: skip


def template(name: str) -> ChatTemplate:
    eos = STOPS.get(name, "</s>")
    return ChatTemplate(TEMPLATES[name], bos_token="<s>", eos_token=eos, stops=(eos,))


def learned(name: str, *messages: Message, tools: tuple[str, ...] = ()) -> list[str]:
    return [text for text, is_learned in spans(template(name), messages, tools) if is_learned]


@pytest.fixture(autouse=True)
def notes_again() -> None:
    say_once.cache_clear()


REFUSED = {
    ("deepseek", "call with text"): "leaves out text beside tool calls",
    ("mistral", "call with text"): "leaves out text beside tool calls",
    ("llama", "call with text"): "leaves out text beside tool calls",
    ("llama", "two calls"): "single tool-calls at once",
    ("gemma", "answer first"): "must alternate",
    ("mistral", "answer first"): "must alternate",
}  # fmt: skip
"""what the templates have no place for; everything else is learned"""


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answers_are_learned_and_nothing_else(name: str, conversation: str) -> None:
    chat, (messages, tools) = template(name), CONVERSATIONS[conversation]
    if reason := REFUSED.get((name, conversation)):
        for refused in (spans, lambda *args: chat.render(args[1], False, args[2])):
            with pytest.raises(InputError, match=reason) as caught:
                refused(chat, messages, tools)
            assert caught.value.hint and "\n" not in str(caught.value)
        if conversation != "answer first":
            assert "Paris_wq" in chat.render(messages, tools=tools), "a prompt puts it another way"
        return
    check_learned(chat, conversation, may_drop_reasoning=name not in ("qwen3", "r1", "minimax"))
    assert spans(chat, messages, tools)[-1][0].endswith(chat.stops)


def test_what_is_learned_of_reasoning() -> None:
    in_text = dataclasses.replace(ANSWER, content="<think>be nice</think>Great")
    assert learned("qwen3", ASK, in_text) == ["<think>\nbe nice\n</think>\n\nGreat<|im_end|>"]
    assert learned("qwen3", ASK, ANSWER, ASK2, in_text) == [
        "<think>\nbe nice\n</think>\n\nGreat<|im_end|>"
    ]
    assert learned("qwen3", ASK, ANSWER) == ["<think>\n\n</think>\n\nReply_wq.<|im_end|>"]
    # The prompt ends with <think>: the model goes on with the reasoning and closes it.
    assert learned("r1", ASK, ANSWER) == ["\n</think>\n\nReply_wq.<|end|>"]
    for answer in (THOUGHT, dataclasses.replace(THOUGHT, reasoning="", content="<think>Thought_wq.</think>Reply_wq.")):  # fmt: skip
        assert learned("r1", ASK, answer) == ["Thought_wq.\n</think>\n\nReply_wq.<|end|>"]
        assert learned("minimax", ASK, answer) == ["Thought_wq.\n</think>\n\nReply_wq.<|end|>"]
        assert learned("closed", ASK, answer) == ["Reply_wq.<|end|>"]
    assert learned("chatml", ASK, in_text) == ["<think>be nice</think>Great<|im_end|>"]


def test_notes_say_what_is_not_as_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    for name, messages, note in (
        ("gemma", (SYSTEM, ASK, ANSWER), "has no system turn: its text begins the first user turn"),
        ("silent", (SYSTEM, ASK, ANSWER), "has no system turn"),
        ("gemma", (ASK, ASK2, ANSWER), "no two user turns in a row: they are joined"),
        ("gemma", (ASK, ANSWER, ANSWER2), "no two assistant turns in a row: they are joined"),
        ("chatml", (ASK, THOUGHT), "no place for reasoning: it is left out"),
        ("closed", (ASK, THOUGHT), "holds an empty reasoning part"),
        ("qwen3", (ASK, ANSWER, ASK2, ANSWER2), "only the last answer of each conversation"),
    ):
        say_once.cache_clear()
        for _ in range(2):
            spans(template(name), messages)
        assert capsys.readouterr().err.count(note) == 1, "once for each run"
    spans(template("chatml"), (SYSTEM, ASK, ANSWER, ASK2, ANSWER2))
    assert not capsys.readouterr().err


def test_a_system_text_begins_the_first_user_turn() -> None:
    expected = "<s><start_of_turn>user\nRule_wq.\n\nAsk_wq?<end_of_turn>\n<start_of_turn>model\n"
    assert template("gemma").render([SYSTEM, ASK]) == expected
    assert spans(template("gemma"), [SYSTEM, ASK, ANSWER]) == [
        (expected, False), ("Reply_wq.<end_of_turn>", True),
    ]  # fmt: skip
    # One that greets first: the system text is the turn before the greeting.
    talk = [SYSTEM, ANSWER, ASK]
    assert [m.role for m in fit(template("gemma"), talk).messages] == ["user", "assistant", "user"]


def test_a_system_text_that_moves_is_in_the_prompt_of_the_answer() -> None:
    parts = spans(template("mistral"), [SYSTEM, ASK, ANSWER])
    assert parts == [("<s>[INST]Rule_wq.\n\nAsk_wq?[/INST]", False), (" Reply_wq.</s>", True)]


def test_joined_answers_are_both_learned_or_refused() -> None:
    assert learned("gemma", ASK, ANSWER, ANSWER2) == ["Reply_wq.\n\nAgain_wq.<end_of_turn>"]
    assert learned("chatml", ASK, ANSWER, ANSWER2) == ["Reply_wq.<|im_end|>", "Again_wq.<|im_end|>"]
    with pytest.raises(
        InputError, match="of two assistant turns in a row only one is to be learned"
    ):
        learned("gemma", ASK, dataclasses.replace(ANSWER, learned=False), ANSWER2)


def test_turns_that_are_not_to_be_learned() -> None:
    quiet = dataclasses.replace(ANSWER, learned=False)
    assert learned("chatml", ASK, quiet, ASK2, ANSWER2) == ["Again_wq.<|im_end|>"]
    # A template that rewrites earlier turns: the last answer that is to be learned, with its prompt.
    last = dataclasses.replace(ANSWER2, learned=False)
    assert learned("qwen3", ASK, ANSWER, ASK2, last) == [
        "<think>\n\n</think>\n\nReply_wq.<|im_end|>"
    ]


def test_calls_in_the_form_that_the_template_reads() -> None:
    form = fit(template("deepseek"), [ASK, CALL]).form
    assert (form.arguments, form.empty_content) == ("text", None)
    assert learned("deepseek", ASK, CALL) == [
        '<call>weather_wq\n{"city": "Paris_wq"}</call><|end|>'
    ]
    assert fit(template("llama"), [ASK, CALL], (TOOL,)).form.arguments == "object"
    with pytest.raises(InputError, match="leaves out text beside tool calls"):
        learned("deepseek", ASK, CALL_TEXT)
    broken = dataclasses.replace(CALL.tool_calls[0], arguments="{city")
    with pytest.raises(InputError, match="arguments of the tool call weather_wq are not JSON"):
        learned("llama", ASK, dataclasses.replace(CALL, tool_calls=(broken,)), tools=(TOOL,))


def test_a_call_that_is_rewritten_later_is_learned_after_its_own_prompt() -> None:
    chat, (messages, tools) = template("qwen3"), CONVERSATIONS["tool round"]
    call, answer = sequences(chat, messages, tools)
    assert call == [
        (chat.render(messages[:1], True, tools), False),
        (
            (
                '<think>\n\n</think>\n\n<tool_call>{"name": "weather_wq", "arguments": '
                '{"city": "Paris_wq"}}</tool_call><|im_end|>'
            ),
            True,
        ),
    ]
    assert answer == spans(chat, messages, tools)
    assert answer[0] == (chat.render(messages[:-1], True, tools), False)
    kept, _ = encode_all([Example(messages, tools=tools)], chat, lambda text: [len(text)], 9)
    assert len(kept) == 2
    assert len(sequences(template("llama"), messages, tools)) == 1, "one text has both"


@pytest.mark.parametrize("call_id", ["call_0123456789abcdef", ""])
def test_ids_of_tool_calls_for_mistral(call_id: str) -> None:
    call = dataclasses.replace(CALL.tool_calls[0], id=call_id)
    talk = [
        ASK, dataclasses.replace(CALL, tool_calls=(call,)),
        dataclasses.replace(RESULT, tool_call_id=call_id), ANSWER,
    ]  # fmt: skip
    turns = fit(template("mistral"), talk, (TOOL,)).messages
    short = turns[1].tool_calls[0].id
    assert len(short) == 9 and short.isalnum() and turns[2].tool_call_id == short
    assert learned("mistral", *talk, tools=(TOOL,))[-1] == " Reply_wq.</s>"
    assert fit(template("qwen3"), talk, (TOOL,)).messages == tuple(talk), "others keep theirs"


def test_generation_marks_agree() -> None:
    for conversation in ("one turn", "two turns", "system", "two users", "answer first"):
        messages, _ = CONVERSATIONS[conversation]
        chat = template("marked")
        assert "".join(learned("marked", *messages)) == marked_text(chat, fit(chat, messages))


def test_variables_for_the_template() -> None:
    chat = template("qwen3")
    text = chat.render([ASK], template_kwargs={"enable_thinking": False})
    assert text == chat.render([ASK]) + "<think>\n\n</think>\n\n"
    for unknown in ("enable_thinkin", "messages", "bos_token", "add_generation_prompt"):
        with pytest.raises(InputError, match=f"the chat template reads no {unknown}"):
            chat.render([ASK], template_kwargs={unknown: False})


def test_a_template_with_the_date_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    example = Example((ASK, ANSWER))
    encode_all([example], template("chatml"), lambda text: [0], 9)
    assert "today's" not in capsys.readouterr().err
    encode_all([example], template("llama"), lambda text: [0], 9)
    assert "today's" in capsys.readouterr().err


TRUNCATION = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "!",
}  # fmt: skip
LEFT_OVER: dict[str, dict[str, Any]] = {
    "truncation": {"truncation": TRUNCATION},
    "padding": {"padding": PADDING},
    "both": {"truncation": TRUNCATION, "padding": PADDING},
    "left": {"truncation": {**TRUNCATION, "direction": "Left"}, "padding": {**PADDING, "direction": "Left"}},
}  # fmt: skip


def saved(folder: Path, config: dict[str, Any] | None = None, **entries: Any) -> Path:
    """A folder with the tiny tokenizer and changed entries of its two files."""
    make_tokenizer(folder)
    for name, changes in (("tokenizer.json", entries), ("tokenizer_config.json", config or {})):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))
    return folder


TEXT = "<|im_start|>user\nturn  off the lamp on the lamp<|im_end|>\n" * 3


@pytest.mark.parametrize("case", LEFT_OVER)
def test_truncation_and_padding_are_ignored_as_transformers_does(tmp_path: Path, case: str) -> None:
    from transformers import AutoTokenizer

    folder, plain = saved(tmp_path / "a", **LEFT_OVER[case]), saved(tmp_path / "b")
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    assert encoder(folder)(TEXT) == encoder(plain)(TEXT)
    assert encoder(folder)(TEXT) == theirs(TEXT, add_special_tokens=False).input_ids
    tokenizer = tokenizer_json(folder)
    assert tokenizer["truncation"] is tokenizer["padding"] is None
    assert id_to_token(folder) == id_to_token(plain)
    example = Example((Message("user", "a lamp " * 9), Message("assistant", "on " * 20)))
    chat = ChatTemplate.from_folder(folder)
    assert encode(example, chat, encoder(folder)) == encode(example, chat, encoder(plain))


def test_a_copied_tokenizer_json_truncates_nowhere(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder, plain = saved(tmp_path / "a", **LEFT_OVER["both"]), saved(tmp_path / "b")
    before = (plain / "tokenizer.json").read_bytes()
    for path in (folder, plain):
        hf_files.without_leftovers(path)
    assert (plain / "tokenizer.json").read_bytes() == before, "a good file stays as it is"
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert alone.encode(TEXT).ids == encoder(plain)(TEXT)


def test_sampling_of_a_tokenizer_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, plain = saved(tmp_path / "a"), saved(tmp_path / "b")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["dropout"] = 0.9
    file.write_text(json.dumps(content))
    assert {tuple(encoder(folder)("the lamp " * 4)) for _ in range(8)} == {
        tuple(encoder(plain)("the lamp " * 4))
    }
    assert capsys.readouterr().err.count("dropout, left by a training, are ignored") == 1
    assert tokenizer_json(folder)["model"]["dropout"] is None


FLAGS = {
    "lstrip": False,
    "rstrip": True,
    "single_word": False,
    "normalized": False,
    "special": True,
}
CONFIGURED: dict[str, tuple[dict[str, Any], str]] = {
    "an eos that tokenizer.json holds as a piece": ({"eos_token": "lam"}, "a lamp lam"),
    "an eos as an object": ({"eos_token": {"content": "lam", "__type": "AddedToken", **FLAGS}}, "lam a"),
    "a new eos": ({"eos_token": "<|turn|>"}, "on<|turn|>the"),
    "more special tokens": ({"additional_special_tokens": ["<|call|>", "lam"]}, "a<|call|>lamp"),
    "named by what they are": ({"extra_special_tokens": {"call_token": "<|call|>"}}, "a<|call|>b"),
    "other flags": ({"added_tokens_decoder": {"264": {"content": "<|im_end|>", **FLAGS}}}, "a<|im_end|> b"),
    "only listed": ({"added_tokens_decoder": {"265": {"content": "<|more|>", **FLAGS}}}, "a<|more|> b"),
    "model_max_length": ({"model_max_length": 4, "truncation_side": "left"}, "the lamp " * 9),
    "padding_side": ({"padding_side": "left", "pad_token": "<|im_end|>"}, "the lamp"),
    "added bos and eos": ({"add_bos_token": True, "add_eos_token": True}, "the lamp"),
    "add_prefix_space": ({"add_prefix_space": True}, "the lamp"),
    "legacy": ({"legacy": True, "clean_up_tokenization_spaces": True}, "the lamp ."),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGURED)
def test_settings_of_tokenizer_config_as_transformers_reads_them(tmp_path: Path, case: str) -> None:
    from transformers import AutoTokenizer

    config, text = CONFIGURED[case]
    folder = saved(tmp_path / "a", config)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 300}')
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    ids = theirs(text, add_special_tokens=False).input_ids
    assert encoder(folder)(text) == ids
    alone = load_tokenizer(folder).from_str(json.dumps(tokenizer_json(folder)))
    assert alone.encode(text, add_special_tokens=False).ids == ids
    if eos := config.get("eos_token"):
        content = eos if isinstance(eos, str) else eos["content"]
        assert content in ChatTemplate.from_folder(folder).stops
        assert len(encoder(folder)(content)) == 1, "a stop is one token"


def test_a_token_without_a_row_of_the_embedding_stays_text(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", {"pad_token": "[PAD]"})
    size = load_tokenizer(saved(tmp_path / "b")).get_vocab_size()
    (folder / "config.json").write_text(json.dumps({"vocab_size": size}))
    before = (folder / "tokenizer.json").read_bytes()
    assert max(encoder(folder)("[PAD] lamp")) < size
    hf_files.without_leftovers(folder)
    assert (folder / "tokenizer.json").read_bytes() == before


def test_split_special_tokens_is_ignored_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "a", {"split_special_tokens": True})
    assert len(encoder(folder)("<|im_end|>")) == 1
    assert "split_special_tokens is ignored" in capsys.readouterr().err
