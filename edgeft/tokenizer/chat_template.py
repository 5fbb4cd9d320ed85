"""The chat template: messages -> text -> token ids, and the ids that end a turn.

Training, conversion, chat and benchmarks share this one object, so that what a model learned to
answer is byte for byte what it is asked. Templates come from model files, so they run in jinja2's
immutable sandbox (CVE-2024-34359 was the same template without one).

    chat = ChatTemplate.from_folder(Path("model"))
    chat.render([Message("user", "hi")])     # '<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>…'
    chat.fingerprint                         # what the manifest of every stage records
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from edgeft.errors import InputError, TemplateError
from edgeft.records import Message
from edgeft.tokenizer.hf_files import (
    SPECIAL_TOKENS,
    eos_ids,
    id_to_token,
    only_sentencepiece,
    special_tokens,
    template_source,
)

ALPACA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else -%}{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"""
"""For base models that come without a template (Stanford Alpaca's wording)."""


@dataclass(frozen=True)
class ChatTemplate:
    source: str
    """jinja2"""
    bos_token: str
    eos_token: str
    stops: tuple[str, ...]
    """texts of the tokens that end the assistant's turn, the eos first"""

    unk_token: str = ""
    pad_token: str = ""

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """Read a Hugging Face folder as transformers' tokenizers do (`template_source`)."""
        special = special_tokens(folder)
        eos = special.get("eos_token", "")
        tokens = id_to_token(folder)
        stops = dict.fromkeys([eos, *(tokens[i] for i in eos_ids(folder) if i in tokens)])
        if only_sentencepiece(folder) and "<|observation|>" in tokens.values():
            # ChatGLM 3: its code, not its configuration, ends a turn where another role begins.
            stops |= dict.fromkeys(["<|user|>", "<|observation|>"])
        return cls(
            source=template_source(folder) or ALPACA,
            bos_token=special.get("bos_token", ""),
            eos_token=eos,
            stops=tuple(text for text in stops if text),
            unk_token=special.get("unk_token", ""),
            pad_token=special.get("pad_token", ""),
        )

    def render(self, messages: Iterable[Message], generation_prompt: bool = True) -> str:
        """The text that the model sees; with `generation_prompt` it ends where the answer begins."""
        import jinja2

        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return str(
                _compiled(self.source).render(
                    messages=turns,
                    tools=None,  # defined but None, as transformers passes them
                    documents=None,
                    add_generation_prompt=generation_prompt,
                    bos_token=self.bos_token,
                    eos_token=self.eos_token,
                    unk_token=self.unk_token,
                    pad_token=self.pad_token,
                )
            )
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError,
                RuntimeError, TypeError, ValueError) as error:  # fmt: skip
            told = f"the chat template refuses these messages: {error}"
            raise InputError(told, "it is in the model's tokenizer files") from None

    @property
    def fingerprint(self) -> str:
        """Equal for equal templates, tokens and stops."""
        used = {
            name: getattr(self, name) for name in ("unk_token", "pad_token") if name in self.source
        }
        text = json.dumps([self.source, self.bos_token, self.eos_token, self.stops, *used.items()])
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What a manifest keeps, so that `check_is` can compare."""
        names = (f"{name}_token" for name in SPECIAL_TOKENS)
        tokens = {name: getattr(self, name) for name in names if name in self.source}
        return {"source": self.source, "tokens": tokens, "stops": list(self.stops)}

    def check_is(self, recorded: dict[str, Any], what: str, hint: str = "") -> None:
        """TemplateError, with both shown, where this is not the template that was recorded.

        More stops than were recorded are no harm: llama.cpp knows some by their names.
        """
        if self.source != recorded["source"]:
            at = next(
                (i for i, (a, b) in enumerate(zip(self.source, recorded["source"], strict=False))
                 if a != b),
                min(len(self.source), len(recorded["source"])),
            )  # fmt: skip
            then, now = (
                text[max(0, at - 20) : at + 40] for text in (recorded["source"], self.source)
            )
            told = f"{what} another chat template: {then!r} then, {now!r} now"
            raise TemplateError(told, hint)
        for name, then in recorded["tokens"].items():
            if getattr(self, name) != then:
                told = f"{what} {name} {then!r}, now it is {getattr(self, name)!r}"
                raise TemplateError(told, hint)
        if any(stop not in self.stops for stop in recorded["stops"]):
            then, now = (", ".join(map(repr, stops)) for stops in (recorded["stops"], self.stops))
            raise TemplateError(f"{what} other stops: {then} then, {now} now", hint)


def spans(chat: ChatTemplate, messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Cut a conversation into (text, is it an answer to learn) at the turns' borders.

    An answer runs up to and including the token that ends the turn; what a template writes after
    it (a newline in ChatML) belongs to the next prompt, because at inference nobody generates it.
    Templates that rewrite earlier turns when a later one comes (dropping reasoning, say) have no
    such cut; of those only the last answer is learned.
    """
    full = chat.render(messages, generation_prompt=False)
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    for learned in (answers, answers[-1:]):
        parts: list[tuple[str, bool]] = []
        done = ""
        for i in learned:
            prompt = chat.render(messages[:i])
            turn = chat.render(messages[: i + 1], generation_prompt=False)
            if not (prompt.startswith(done) and turn.startswith(prompt)):
                break
            end = _turn_end(turn, len(prompt), messages[i].content, chat.stops)
            parts += [(prompt[len(done) :], False), (turn[len(prompt) : end], True)]
            done = turn[:end]
        else:
            if full.startswith(done):
                return parts
    raise InputError(
        "the chat template does not put the answer after its generation prompt",
        "fix the template of the base model",
    )


def _turn_end(text: str, start: int, answer: str, stops: Sequence[str]) -> int:
    after = text.find(answer.strip(), start)
    after = start if after < 0 else after + len(answer.strip())
    ends = [text.find(stop, after) + len(stop) for stop in stops if text.find(stop, after) >= 0]
    return min(ends, default=len(text))


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """Compile as transformers does: same whitespace rules, same helper functions."""
    import jinja2.nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    class Generation(Extension):
        """{% generation %} marks what the model said; the text is that of its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_body")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        told = f"the chat template does not compile: {error}"
        raise InputError(told, "chat_template.jinja or tokenizer_config.json of the base") from None
