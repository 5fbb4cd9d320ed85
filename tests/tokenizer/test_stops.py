"""The tokens that end an answer, from what templates write after one."""

from __future__ import annotations

import pytest

from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate
from edgeft.tokenizer.stops import ending_text, split_at, turn_ends
from helpers.tiny import CHATML

pytestmark = pytest.mark.unit

TOKENS = ("</s>", "<s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|endoftext|>", "\n\n",
          "\u2581\u2581", "<tool_call>", "</tool_call>", "</answer>", "<|eom|>", "<sep>", "<sep>x")  # fmt: skip


PROMPT = "{% if add_generation_prompt %}> {% endif %}"


def turns(user: str, answer: str, after: str = PROMPT) -> str:
    """A template: what it writes for a user's turn, for an answer, and at the end of all."""
    return (
        "{% for m in messages %}{% if m.role == 'user' %}" + user + "{% else %}" + answer
        + "{% endif %}{% endfor %}" + after
    )  # fmt: skip


USER, ANSWER = "{{ m.content }}", "{{ m.content }}"
LAST_EOS = "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"


def ends(source: str, *stops: str) -> tuple[str, ...]:
    """The stops that the template adds to `stops`, of which the first is the eos."""
    chat = ChatTemplate(source, bos_token="<s>", eos_token=stops[0] if stops else "", stops=stops)
    return turn_ends(chat, split_at(TOKENS))


@pytest.mark.parametrize(
    ("about", "source", "stops", "added"),
    [
        ("the eos ends a turn", CHATML, ("<|im_end|>",), ()),
        ("another token does (Qwen2.5 base)", CHATML, ("<|endoftext|>",), ("<|im_end|>",)),
        ("the files name nothing", CHATML, (), ("<|im_end|>",)),
        ("the template writes eos_token", ALPACA, ("</s>",), ()),
        ("a space before the eos (Llama 2)", turns(USER, ANSWER + " {{ eos_token }}"), ("</s>",), ()),
        ("a space before another token", turns(USER, ANSWER + " <|end|>"), ("</s>",), ("<|end|>",)),
        ("two tokens, the last turn has the eos as well (Phi-3)",
         turns("<|user|>" + USER, ANSWER + "<|end|>\n", LAST_EOS), ("<|endoftext|>",), ("<|end|>",)),
        ("the eos of the last turn only",
         turns("<|user|>" + USER, ANSWER, LAST_EOS), ("<|endoftext|>",), ()),
        ("the next turn's first token (GLM)", turns("<|user|>\n" + USER, ANSWER), ("</s>",), ("<|user|>",)),
        ("the bos of the next turn", turns("{{ bos_token }}" + USER, ANSWER), ("</s>",), ("<s>",)),
        ("a closing mark before the eos", turns(USER, ANSWER + "</answer></s>"), ("</s>",), ()),
        ("a closing mark before another token",
         turns(USER, ANSWER + "</answer>\n<|end|>"), ("</s>",), ("</answer>",)),
        ("tokens of white space (Gemma)",
         turns(USER, ANSWER + "\n\n\u2581\u2581<|end|>"), ("</s>",), ("<|end|>",)),
        ("the longest token", turns(USER, ANSWER + "<sep>x"), ("</s>",), ("<sep>x",)),
        ("text", turns("\n### User: " + USER, ANSWER), ("</s>",), ()),
        ("text before the next turn's token", turns("\n### <|user|>" + USER, ANSWER), ("</s>",), ()),
        ("a trimmed answer", turns(USER, "{{ m.content | trim }}<|end|>"), ("</s>",), ("<|end|>",)),
        ("a template that always asks for an answer",
         turns("<|user|>" + USER, ANSWER, "<|im_start|>"), ("</s>",), ("<|user|>",)),
        ("one with an end that always asks for an answer",
         turns("<|user|>" + USER, ANSWER + "<|end|>", "<|im_start|>"), ("</s>",), ("<|end|>",)),
        ("an answer that is not shown", turns(USER, "..."), ("</s>",), ()),
        ("a template that refuses", "{{ raise_exception('no') }}", ("</s>",), ()),
        ("a template that does not compile", "{% if %}", ("</s>",), ()),
        ("a template of one turn only",
         "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
         + turns(USER, ANSWER + "<|end|>"), ("</s>",), ("<|end|>",)),
    ],
)  # fmt: skip
def test_the_token_after_an_answer_is_a_stop(
    about: str, source: str, stops: tuple[str, ...], added: tuple[str, ...]
) -> None:
    assert ends(source, *stops) == added, about


CALLS = (
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}</tool_call>"
    "{% endfor %}TOOL_END{% else %}{{ m.content }}<|im_end|>{% endif %}"
)


@pytest.mark.parametrize(
    ("end", "added"),
    [
        ("<|im_end|>", ()),
        ("<|eom|>\n", ("<|eom|>",)),  # Llama 3.1 ends calls with another token than answers
        ("", ()),  # </tool_call> stands between two calls as well
        ("<|eom|> go on", ()),
    ],
)
def test_the_token_after_tool_calls_is_a_stop(end: str, added: tuple[str, ...]) -> None:
    assert ends(turns(USER, CALLS.replace("TOOL_END", end)), "<|im_end|>") == added


def test_a_text_that_ends_an_answer_is_named() -> None:
    def text(source: str) -> str:
        return ending_text(ChatTemplate(source, "<s>", "</s>", ("</s>",)))

    assert text(turns("\n\n### User:\nQ: " + USER, ANSWER)) == "### User:"
    assert text(turns(USER, ANSWER + "\n### End")) == "### End"
    assert text(ALPACA) == text(turns(USER, ANSWER + "</s>")) == ""
    assert text(turns(USER, ANSWER)) == text("{{ raise_exception('no') }}") == ""
