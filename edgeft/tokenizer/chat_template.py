"""A model's chat template: messages -> text.

Training, conversion, chat and benchmarks share this one object, so that a fine-tuned model is asked
byte for byte as it was trained.

    chat = ChatTemplate.from_folder(Path("model"))
    chat.render([Message("user", "hi")])     # '<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>…'
    chat.fingerprint                         # the manifest of every stage records it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import InputError, TemplateError
from edgeft.progress import say_once
from edgeft.records import Message
from edgeft.tokenizer.dialogue import fit
from edgeft.tokenizer.hf_files import (
    SPECIAL_TOKENS,
    eos_ids,
    has_only_sentencepiece,
    id_to_token,
    special_tokens,
    template_source,
)
from edgeft.tokenizer.message_form import MessageForm
from edgeft.tokenizer.stops import split_at, turn_ends

ALPACA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else -%}{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"""
"""jinja2 source for base models without a template, in Stanford Alpaca's wording"""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source and the tokens that it uses."""

    source: str
    """jinja2"""
    bos_token: str
    eos_token: str
    stops: tuple[str, ...]
    """texts of the tokens that end the assistant's turn: the eos, those that generation_config.json
    names, and those that the template writes (`edgeft.tokenizer.stops`)"""
    unk_token: str = ""
    pad_token: str = ""

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """Read a Hugging Face folder as transformers' tokenizers do (`template_source`)."""
        special = special_tokens(folder)
        eos = special.get("eos_token", "")
        tokens = id_to_token(folder)
        ends = dict.fromkeys([eos, *(tokens[i] for i in eos_ids(folder) if i in tokens)])
        if has_only_sentencepiece(folder) and "<|observation|>" in tokens.values():
            # ChatGLM 3: its code, not its configuration, ends a turn where another role begins.
            ends |= dict.fromkeys(["<|user|>", "<|observation|>"])
        chat = cls(
            source=template_source(folder) or ALPACA,
            bos_token=special.get("bos_token", ""),
            eos_token=eos,
            stops=tuple(text for text in ends if text),
            unk_token=special.get("unk_token", ""),
            pad_token=special.get("pad_token", ""),
        )
        ends_of_turn = turn_ends(chat, split_at(tokens.values()))
        return dataclasses.replace(chat, stops=(*chat.stops, *ends_of_turn))

    def render(
        self,
        messages: Iterable[Message],
        generation_prompt: bool = True,
        tools: Sequence[str] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text; with `generation_prompt` it ends where the answer begins.

        What the template does not know is put another way, with a note (`dialogue.fit`).
        `tools`: as in `Example`. `template_kwargs`: more variables, such as enable_thinking.
        InputError where the template does not compile, refuses the messages, has no place for a part
        of them, or reads no such variable.
        """
        dialogue = fit(self, messages, tools, prompt=generation_prompt)
        text = self.render_form(
            dialogue.messages, dialogue.form, generation_prompt, dialogue.tools, template_kwargs
        )
        for note in dialogue.notes:
            say_once(note)
        return text

    def render_form(
        self,
        messages: Iterable[Message],
        form: MessageForm,
        generation_prompt: bool = True,
        tools: Sequence[str] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """What the template makes of the messages as they are, in one form."""
        from edgeft.tokenizer import jinja_sandbox

        variables = {
            "messages": [form.variables(message) for message in messages],
            "tools": [json.loads(tool) for tool in tools] or None,  # None as in transformers
            "documents": None,
            "add_generation_prompt": generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "unk_token": self.unk_token,
            "pad_token": self.pad_token,
        }
        if template_kwargs:
            known = jinja_sandbox.variables(self.source) - variables.keys()
            if unknown := sorted(template_kwargs.keys() - known):
                raise InputError(
                    f"the chat template reads no {', '.join(unknown)}", "it would have no effect"
                )
        return jinja_sandbox.render(self.source, **variables, **(template_kwargs or {}))

    @property
    def writes_the_date(self) -> bool:
        """Whether the text depends on the day on which it is rendered."""
        return "strftime_now" in self.source

    @property
    def fingerprint(self) -> str:
        """sha256 of the source, the tokens that it uses and the stops."""
        rare = [
            (name, getattr(self, name))
            for name in ("unk_token", "pad_token")
            if name in self.source
        ]
        text = json.dumps([self.source, self.bos_token, self.eos_token, self.stops, *rare])
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The record in a manifest that `check_matches` compares with."""
        names = (f"{name}_token" for name in SPECIAL_TOKENS)
        tokens = {name: getattr(self, name) for name in names if name in self.source}
        return {"source": self.source, "tokens": tokens, "stops": list(self.stops)}

    def check_matches(self, recorded: dict[str, Any], what: str, hint: str = "") -> None:
        """TemplateError, with both shown, where this differs from a template that was recorded.

        `recorded`: from `to_json`. `what`: begins the message, such as "the adapter learned".
        More stops than recorded are allowed: llama.cpp adds some that it knows by name.
        """
        if self.source != recorded["source"]:
            then, now = _around_first_difference(recorded["source"], self.source)
            raise TemplateError(f"{what} another chat template: {then!r} then, {now!r} now", hint)
        for name, then in recorded["tokens"].items():
            if getattr(self, name) != then:
                now = getattr(self, name)
                raise TemplateError(f"{what} {name} {then!r}, now it is {now!r}", hint)
        if any(stop not in self.stops for stop in recorded["stops"]):
            then, now = (", ".join(map(repr, stops)) for stops in (recorded["stops"], self.stops))
            raise TemplateError(f"{what} other stops: {then} then, {now} now", hint)


def _around_first_difference(one: str, other: str) -> tuple[str, str]:
    """At most 60 characters of each text around the first place where they differ."""
    pairs = enumerate(zip(one, other, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    part = slice(max(0, place - 20), place + 40)
    return one[part], other[part]
