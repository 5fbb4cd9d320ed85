"""A Hugging Face folder -> its tokenizer, special tokens, end-of-sequence ids, template source."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeft.errors import EdgeftError, InputError
from edgeft.files import MAX_TOKENIZER_BYTES, read_bytes, read_json, read_text
from edgeft.models.text_model import TEXT_CONFIG_KEYS
from edgeft.progress import say_once
from edgeft.tokenizer import saved_tokens, sentencepiece

PRECOMPILED = b"Precompiled"
"""in a tokenizer.json: the type of a normalizer that holds a compiled table"""

Encode = Callable[[str], list[int]]
"""text -> token ids"""

SPECIAL_TOKENS = ("bos", "eos", "unk", "pad")
"""names of special tokens, without the `_token` behind them in the files"""
SAMPLING_SETTINGS = ("dropout", "alpha", "nbest_size")
"""settings of a model in tokenizer.json that cut the same text in another way each time"""


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """tokenizer.json as transformers reads it, converted from tokenizer.model where there is none."""
    if has_only_sentencepiece(folder):
        return sentencepiece.folder_tokenizer_json(folder)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"no tokenizer.json in {folder}", "save the fast tokenizer with the model")
    tokenizer = read_json(folder / "tokenizer.json")
    try:
        model = tokenizer.get("model") or {}
        left_over = [tokenizer.get("truncation"), tokenizer.get("padding")]
        left_over += map(model.get, SAMPLING_SETTINGS)
        added = tokenizer.get("added_tokens") or []
        unknown = saved_tokens.unknown(folder, added, lambda: _texts(model.get("vocab") or {}))
    except (AttributeError, KeyError, TypeError) as error:
        raise _broken_tokens(folder, error) from None
    if any(left_over) or unknown:
        tokenizer = json.loads(load_tokenizer(folder).to_str())
    return tokenizer


def _broken_tokens(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"{folder / 'tokenizer.json'} has broken added_tokens: {error}", "download it again"
    )


def _texts(vocabulary: dict[str, int] | list[Any]) -> set[str]:
    """Texts of the tokens: the keys, or, of a unigram model, the first of each pair."""
    return {entry if isinstance(entry, str) else entry[0] for entry in vocabulary}


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a folder, which reads a text as transformers' one does.

    Truncation, padding and sampling, which a training left in the file, are off. Special tokens that
    only tokenizer_config.json names are added. InputError where there is none or a broken one.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            content = read_bytes(file, MAX_TOKENIZER_BYTES)
            _check_charsmaps(file, content)
            tokenizer = Tokenizer.from_buffer(content)
        else:
            tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(folder)))
    except EdgeftError:
        raise
    except BaseException as error:
        # The package raises nothing more special than Exception, and Rust's panics, which are none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).partition("\n")[0]
        hint = "download the model again, or save its tokenizer with transformers"
        raise InputError(f"{file} is not a tokenizer: {reason}", hint) from None
    _switch_off(tokenizer, file)
    if file.is_file():
        saved_tokens.add(folder, tokenizer)
    if saved_tokens.settings(folder).get("split_special_tokens"):
        say_once(
            f"{folder / 'tokenizer_config.json'}: split_special_tokens is ignored, because chat "
            "templates write special tokens"
        )
    return tokenizer


def _check_charsmaps(file: Path, content: bytes) -> None:
    """InputError for a table of character replacements that the package would panic over.

    https://github.com/huggingface/spm_precompiled/blob/v0.1.4/src/lib.rs `parse`
    """
    if PRECOMPILED not in content:
        return
    for part in _parts(json.loads(content)):
        if part.get("type") != "Precompiled":
            continue
        try:
            table = base64.b64decode(part["precompiled_charsmap"], validate=True)
            size = int.from_bytes(table[:4], "little")
            str(table[4 + size // 4 * 4 :], "utf-8")
            if not 4 <= size <= len(table) - 4:
                raise ValueError(f"{size} of {len(table)} bytes")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{file} is not a tokenizer: its table of characters is broken: {error}",
                "download it again",
            ) from None


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, (dict, list)):
            yield from _parts(part)


def _switch_off(tokenizer: Any, file: Path) -> None:
    """Undo what a call of training left in a tokenizer, with a note."""
    left_over = [name for name in ("truncation", "padding") if getattr(tokenizer, name)]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name in SAMPLING_SETTINGS:
        if getattr(tokenizer.model, name, None):
            left_over.append(name)
            setattr(tokenizer.model, name, None)
    if left_over:
        say_once(f"{file}: its {' and '.join(left_over)}, left by a training, are ignored")


def without_leftovers(folder: Path) -> None:
    """Rewrite a folder's tokenizer.json where `load_tokenizer` reads more or less than it says.

    Then programs that read tokenizer.json alone cut a text in the same way.
    """
    file = folder / "tokenizer.json"
    if file.is_file() and (tokenizer := tokenizer_json(folder)) != read_json(file):
        file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def encoder(folder: Path) -> Encode:
    """The folder's text -> ids. Special tokens are recognised, none is added (templates add bos)."""
    tokenizer = load_tokenizer(folder)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def eos_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end generation, from generation_config.json, else from config.json.

    Of a multimodal model its text model's settings come last.
    """
    for name in ("generation_config.json", "config.json"):
        entries = read_json(folder / name)
        value = entries.get("eos_token_id")
        if value is None:
            parts = (entries.get(key) for key in TEXT_CONFIG_KEYS)
            texts = (part.get("eos_token_id") for part in parts if isinstance(part, dict))
            value = next(texts, None)
        if value is not None:
            ids = tuple(value) if isinstance(value, list) else (value,)
            if not all(isinstance(token, int) for token in ids):
                raise InputError(
                    f"{folder / name}: eos_token_id is {value!r}", "an id or a list of ids"
                )
            return ids
    return ()


def id_to_token(folder: Path) -> dict[int, str]:
    """The tokenizer's added tokens, special ones among them: id -> text."""
    has_tokenizer = (folder / "tokenizer.json").is_file() or has_only_sentencepiece(folder)
    added = tokenizer_json(folder).get("added_tokens", []) if has_tokenizer else []
    try:
        return {entry["id"]: entry["content"] for entry in added}
    except (TypeError, KeyError) as error:
        raise _broken_tokens(folder, error) from None


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token, unk_token and pad_token -> their texts, those that there are."""
    config = saved_tokens.settings(folder)
    special = {f"{name}_token": _token_text(config.get(f"{name}_token")) for name in SPECIAL_TOKENS}
    special = {key: text for key, text in special.items() if text}
    if has_only_sentencepiece(folder):
        names = {"<s>": "bos_token", "</s>": "eos_token", "<unk>": "unk_token"}
        for text in id_to_token(folder).values():
            if text in names:
                special.setdefault(names[text], text)
    return special


def template_source(folder: Path) -> str | None:
    """The jinja2 source of the chat template, None where the folder has none.

    Of several templates the default is taken, else the first. chat_template.jinja and
    additional_chat_templates/ go before tokenizer_config.json, as in transformers'
    `PreTrainedTokenizerBase.from_pretrained`. chat_template.json, which belongs to the processor of
    a multimodal model, comes last.
    """
    additional = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    named = {file.stem: read_text(file) for file in additional}
    if (folder / "chat_template.jinja").exists():
        named["default"] = read_text(folder / "chat_template.jinja")
    source: Any = named
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = source or read_json(folder / name).get("chat_template")
    try:
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}
    except (TypeError, KeyError):
        source = 0  # refused below
    if isinstance(source, dict):
        source = source.get("default") or next(iter(source.values()), None)
    if not isinstance(source, (str, type(None))):
        raise InputError(f"{folder}: its chat_template is no text", "a jinja2 template is needed")
    return source or None


def has_only_sentencepiece(folder: Path) -> bool:
    """Whether a folder has tokenizer.model and no tokenizer.json."""
    return (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()


def _token_text(value: Any) -> str:
    """The text of a special token, which files hold as a string or as an AddedToken object."""
    if isinstance(value, dict):
        return str(value.get("content", ""))
    return str(value or "")
