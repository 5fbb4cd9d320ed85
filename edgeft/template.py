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

from edgeft import sentencepiece
from edgeft.errors import EdgeftError, InputError, TemplateError
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

_SPECIAL = ("bos", "eos", "unk", "pad")


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
        if _only_sentencepiece(folder) and "<|observation|>" in tokens.values():
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
        names = (f"{name}_token" for name in _SPECIAL)
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


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """tokenizer.json of a folder, built from tokenizer.model where there is no such file."""
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        return sentencepiece.folder_json(folder)
    raise InputError(f"no tokenizer.json in {folder}", "save the fast tokenizer with the model")


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a Hugging Face folder."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            return Tokenizer.from_file(str(file))
        return Tokenizer.from_str(json.dumps(tokenizer_json(folder)))
    except EdgeftError:
        raise
    except Exception as error:  # noqa: BLE001
        # The package raises nothing more special than Exception.
        reason = str(error).partition("\n")[0]
        hint = "download the model again, or save its tokenizer with transformers"
        raise InputError(f"{file} is not a tokenizer: {reason}", hint) from None


def encoder(folder: Path) -> Encode:
    """text -> ids with special tokens recognised and nothing added (templates write their bos)."""
    tokenizer = load_tokenizer(folder)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def eos_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end generation: generation_config.json first, config.json else, a list or one."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        if value is not None:
            ids = tuple(value) if isinstance(value, list) else (value,)
            if not all(isinstance(token, int) for token in ids):
                raise InputError(
                    f"{folder / name}: eos_token_id is {value!r}", "an id or a list of ids"
                )
            return ids
    return ()


def id_to_token(folder: Path) -> dict[int, str]:
    """Added (special) tokens of the tokenizer by id."""
    sentencepiece_only = _only_sentencepiece(folder)
    read = tokenizer_json(folder) if sentencepiece_only else read_json(folder / "tokenizer.json")
    added = read.get("added_tokens", [])
    try:
        return {entry["id"]: entry["content"] for entry in added}
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{folder / 'tokenizer.json'} has broken added_tokens: {error}", "download it again"
        ) from None


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token, unk_token, pad_token and the like, where the tokenizer has them."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # written by transformers before 4.34
        config |= read_json(folder / "special_tokens_map.json")
    special = {f"{name}_token": _token_text(config.get(f"{name}_token")) for name in _SPECIAL}
    special = {key: text for key, text in special.items() if text}
    if _only_sentencepiece(folder):
        names = {"<s>": "bos_token", "</s>": "eos_token", "<unk>": "unk_token"}
        for text in id_to_token(folder).values():
            if text in names:
                special.setdefault(names[text], text)
    return special


def template_source(folder: Path) -> str | None:
    """The jinja2 text, None where there is none.

    chat_template.jinja and additional_chat_templates/ go before tokenizer_config.json. That is the
    precedence of transformers' `PreTrainedTokenizerBase.from_pretrained`;
    chat_template.json belongs to processors, the last resort of a multimodal model.
    """
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    named = {file.stem: _read_text(file) for file in more}
    if (folder / "chat_template.jinja").is_file():
        named["default"] = _read_text(folder / "chat_template.jinja")
    source: Any = named
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = source or read_json(folder / name).get("chat_template")
    try:
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}
    except (TypeError, KeyError):
        source = 0
    if isinstance(source, dict):
        source = source.get("default") or next(iter(source.values()), None)
    if not isinstance(source, (str, type(None))):
        raise InputError(f"{folder}: its chat_template is no text", "a jinja2 template is needed")
    return source or None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: {error}") from None


def _only_sentencepiece(folder: Path) -> bool:
    return (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is absent."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", "download or write it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object", "download or write it again")
    return value


def _token_text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("content", ""))
    return str(value or "")


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
