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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.records import Message

Encode = Callable[[str], list[int]]

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

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """Read a Hugging Face folder; `chat_template.jinja` goes before tokenizer_config.json.

        That is the precedence of transformers' `PreTrainedTokenizerBase.from_pretrained`.
        """
        config = read_json(folder / "tokenizer_config.json")
        file = folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default") or next(iter(named.values()), None)
        eos = _token_text(config.get("eos_token"))
        tokens = id_to_token(folder)
        ids = eos_ids(folder)
        stops = dict.fromkeys([eos, *(tokens[i] for i in ids if i in tokens)])
        return cls(
            source=source or ALPACA,
            bos_token=_token_text(config.get("bos_token")),
            eos_token=eos,
            stops=tuple(text for text in stops if text),
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
                )
            )
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError,
                RuntimeError, TypeError, ValueError) as error:  # fmt: skip
            raise InputError(f"the chat template refuses these messages: {error}") from None

    @property
    def fingerprint(self) -> str:
        text = json.dumps([self.source, self.bos_token, self.eos_token, self.stops])
        return hashlib.sha256(text.encode()).hexdigest()


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


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a Hugging Face folder."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"no tokenizer.json in {folder}", "save the fast tokenizer with the model")
    return Tokenizer.from_file(str(file))


def encoder(folder: Path) -> Encode:
    """text -> ids with special tokens recognised and nothing added (templates write their bos)."""
    tokenizer = load_tokenizer(folder)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def eos_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end generation: generation_config.json first, config.json else, a list or one."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        if value is not None:
            return tuple(value) if isinstance(value, list) else (int(value),)
    return ()


def id_to_token(folder: Path) -> dict[int, str]:
    """Added (special) tokens of tokenizer.json by id."""
    added = read_json(folder / "tokenizer.json").get("added_tokens", [])
    return {entry["id"]: entry["content"] for entry in added}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is absent."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value


def _token_text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("content", ""))
    return str(value or "")


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """Compile as transformers does: same whitespace rules, same helper functions."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template does not compile: {error}") from None
