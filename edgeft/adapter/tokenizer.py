"""A base folder + adapter folders -> the folder of the merged model's tokenizer files.

    folder = tokenizer_folder(base, [adapter], rows=49160)

Tokens that were added before training are in the adapter's tokenizer only; the chat template of the
training may be there only as well. Files that the adapter lacks (for example which tokens end a
generation) come from the base, so the folder has files of both.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeft.adapter.folder import adapter_home
from edgeft.errors import AdapterError, InputError
from edgeft.files import read_json
from edgeft.tokenizer.hf_files import template_source

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_BASE_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
"""files of the base, for an adapter without them"""


def tokenizer_folder(base: Path, adapters: Sequence[Path], rows: int) -> Path:
    """`base`, or a folder of links that is removed when the process ends.

    AdapterError where the tokenizer has more tokens than the embeddings have `rows`.
    """
    places = ((adapter, adapter_home(adapter)) for adapter in adapters)
    folders = (next((p for p in pair if (p / "tokenizer.json").is_file()), None) for pair in places)
    with_tokenizer = [folder for folder in folders if folder]
    if not with_tokenizer:
        return base
    adapter, tokens = with_tokenizer[0], _tokens(with_tokenizer[0])
    for other in with_tokenizer[1:]:
        if _tokens(other) != tokens:
            raise AdapterError(f"{adapter} and {other} have different tokenizers")
    last = max(tokens.values(), default=0)
    if rows <= last and last > max(_tokens(base).values(), default=0):
        raise AdapterError(
            f"{adapter}: its tokenizer has token {last}, the embeddings have {rows} rows",
            "save the resized embeddings with it (peft: save_embedding_layers=True)",
        )
    folder = Path(tempfile.mkdtemp(prefix="edgeft-tokenizer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for source, names in ((adapter, tokenizer_files(adapter)), (base, _BASE_FILES)):
        for name in names:
            if (source / name).is_file() and not (folder / name).exists():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).symlink_to((source / name).resolve())
    template = template_source(adapter) or template_source(base)
    if template and template_source(folder) != template:
        # The base's template was not linked, or a linked file takes precedence over the right one.
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the tokenizer files in a folder, without code that transformers would run."""
    templates = (folder / "additional_chat_templates").glob("*.jinja")
    additional = [f"{file.parent.name}/{file.name}" for file in sorted(templates)]
    return [name for name in (*TOKENIZER_FILES, *additional) if (folder / name).is_file()]


def _tokens(folder: Path) -> dict[str, int]:
    """Token -> id, of vocabulary and added tokens. InputError where the file does not hold them."""
    file = folder / "tokenizer.json"
    tokenizer = read_json(file)
    try:
        vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # Unigram: [token, score]
            vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}
        tokens: dict[str, int] = {**vocabulary, **added}
        if not all(type(index) is int and index >= 0 for index in tokens.values()):
            raise TypeError("a token's id is no number")
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"{file} is no tokenizer: {error!r}", "copy it from the base") from None
    return tokens
