"""Conversations of many shapes with unusual words in them, and transformers as their oracle."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from edgeft.records import Message, ToolCall
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.dialogue import Dialogue, fit
from edgeft.tokenizer.learned_parts import Parts, spans

_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "where"}},
    "required": ["city"],
}
TOOL = json.dumps({
    "type": "function",
    "function": {"name": "weather_wq", "description": "Looks it up.", "parameters": _SCHEMA},
})  # fmt: skip
SYSTEM, ASK, ASK2 = (
    Message("system", "Rule_wq."),
    Message("user", "Ask_wq?"),
    Message("user", "More_wq?"),
)
ANSWER, ANSWER2 = Message("assistant", "Reply_wq."), Message("assistant", "Again_wq.")
_PARIS = ToolCall("weather_wq", '{"city": "Paris_wq"}', "call12345")
_ROME = ToolCall("weather_wq", '{"city": "Rome_wq"}', "call12346")
CALL = Message("assistant", "", (_PARIS,))
CALL_TEXT = Message("assistant", "Looking_wq.", (_PARIS,))
TWO_CALLS = Message("assistant", "", (_PARIS, _ROME))
RESULT = Message("tool", "Sunny_wq", name="weather_wq", tool_call_id="call12345")
RESULT2 = Message("tool", "Rainy_wq", name="weather_wq", tool_call_id="call12346")
THOUGHT = dataclasses.replace(ANSWER, reasoning="Thought_wq.")
THOUGHT2 = dataclasses.replace(ANSWER2, reasoning="Idea_wq.")
IN_TEXT = Message("assistant", "<think>\nThought_wq.\n</think>\n\nReply_wq.")

CONVERSATIONS: dict[str, tuple[tuple[Message, ...], tuple[str, ...]]] = {
    "one turn": ((ASK, ANSWER), ()),
    "two turns": ((ASK, ANSWER, ASK2, ANSWER2), ()),
    "system": ((SYSTEM, ASK, ANSWER), ()),
    "later system": ((ASK, ANSWER, SYSTEM, ASK2, ANSWER2), ()),
    "two users": ((ASK, ASK2, ANSWER), ()),
    "two answers": ((ASK, ANSWER, ANSWER2), ()),
    "answer first": ((ANSWER, ASK, ANSWER2), ()),
    "tools": ((ASK, ANSWER), (TOOL,)),
    "call": ((ASK, CALL), (TOOL,)),
    "tool round": ((ASK, CALL, RESULT, ANSWER), (TOOL,)),
    "call with text": ((ASK, CALL_TEXT, RESULT, ANSWER), (TOOL,)),
    "two calls": ((ASK, TWO_CALLS, RESULT, RESULT2, ANSWER), (TOOL,)),
    "reasoning": ((ASK, THOUGHT), ()),
    "two reasonings": ((ASK, THOUGHT, ASK2, THOUGHT2), ()),
    "reasoning in text": ((ASK, IN_TEXT), ()),
}


def words(texts: Iterable[str]) -> set[str]:
    """The unusual words in the texts."""
    return set(re.findall(r"[A-Z][a-z]+_wq", " ".join(texts)))


def said(message: Message, with_reasoning: bool = True) -> set[str]:
    """The unusual words of one turn."""
    calls = [call.arguments for call in message.tool_calls]
    return words([message.content, message.reasoning if with_reasoning else "", *calls])


def fast_tokenizer(chat: ChatTemplate, letters: str = "?") -> Any:
    """transformers' tokenizer with this template; each of `letters` is a token."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocab = {letter: i for i, letter in enumerate(sorted(set(letters)))}
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE(vocab=vocab, merges=[])),
        bos_token=None,
        eos_token=None,
    )
    fast.chat_template = chat.source
    return fast


def transformers_text(chat: ChatTemplate, dialogue: Dialogue, generation_prompt: bool) -> str:
    """What transformers' apply_chat_template writes for the same dialogue."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    text = fast_tokenizer(chat).apply_chat_template(
        [dialogue.form.variables(message) for message in dialogue.messages],
        tools=[json.loads(tool) for tool in dialogue.tools] or None,
        tokenize=False,
        add_generation_prompt=generation_prompt,
        **{name: getattr(chat, name) for name in names},
    )
    assert isinstance(text, str)
    return text


def marked_text(chat: ChatTemplate, dialogue: Dialogue) -> str:
    """The text between {% generation %} and {% endgeneration %}, by transformers' mask."""
    whole = transformers_text(chat, dialogue, generation_prompt=False)
    encoded = fast_tokenizer(chat, whole).apply_chat_template(
        [dialogue.form.variables(message) for message in dialogue.messages],
        return_dict=True,
        return_assistant_tokens_mask=True,
        bos_token=chat.bos_token,
        eos_token=chat.eos_token,
    )
    mask = encoded["assistant_masks"]
    assert len(mask) == len(whole)
    return "".join(letter for letter, marked in zip(whole, mask, strict=True) if marked)


def check_learned(chat: ChatTemplate, conversation: str, may_drop_reasoning: bool = True) -> Parts:
    """Check the learned parts of a conversation, and its rendering against transformers, which leaves
    out a content that is none: templates that read it have no oracle.

    `may_drop_reasoning`: the template has no place for it, which a note says.
    """
    messages, tools = CONVERSATIONS[conversation]
    dialogue = fit(chat, messages, tools)
    for generation_prompt in (True, False):
        text = chat.render(messages, generation_prompt, tools)
        has_none = any(m.tool_calls for m in dialogue.messages)
        if not (has_none and dialogue.form.empty_content is None):
            assert text == transformers_text(chat, dialogue, generation_prompt)
    parts = spans(chat, messages, tools)
    learned = words(text for text, is_learned in parts if is_learned)
    assert not learned & set().union(*(said(m) for m in messages if m.role != "assistant"))
    dropped = {"Thought_wq", "Idea_wq"} if may_drop_reasoning else {"Thought_wq"}
    last = said(messages[-1])
    assert last - learned <= (dropped if may_drop_reasoning else set()), "all of the last answer"
    everything = set().union(*map(said, messages))
    assert everything - words(text for text, _ in parts) <= dropped, "nothing else is left out"
    if conversation not in ("two answers", "two reasonings"):  # which are put another way
        prompt = "".join(text for text, _ in parts[:-1])
        assert prompt == chat.render(messages[:-1], True, tools), "the prompt that a chat sends"
    check_difference(chat, messages, tools)
    return parts


def check_difference(chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[str]) -> None:
    """With another last answer, the same parts come out, and only the learned ones differ by it.

    It is the difference of two renders: what depends on the answer is the answer.
    """

    def other(text: str) -> str:
        return text.replace(word, "Xother_wq")

    last = messages[-1]
    word = min(said(last, with_reasoning=False))
    calls = tuple(
        dataclasses.replace(call, arguments=other(call.arguments)) for call in last.tool_calls
    )
    changed = dataclasses.replace(
        last, content=other(last.content), reasoning=other(last.reasoning), tool_calls=calls
    )
    parts: Parts = spans(chat, messages, tools)
    expected = [*parts[:-1], (other(parts[-1][0]), parts[-1][1])]
    assert spans(chat, [*messages[:-1], changed], tools) == expected
    assert word in parts[-1][0] and parts[-1][1]
