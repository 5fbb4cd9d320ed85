"""The tokenizer that belongs to a merged model: the base's, or the one saved with an adapter.

    folder = tokenizer_folder(base, [adapter], rows=49160)

Tokens that were added before training are in the adapter's tokenizer only, and so may be the chat
template that it was trained with. What an adapter does not bring (which tokens end a generation)
is still the base's: the folder has both.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeft.errors import AdapterError
from edgeft.files import read_json
from edgeft.tokenizer.hf_files import template_source

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_FROM_BASE = ("config.json", "generation_config.json", "tokenizer_config.json")
"""taken from the base where the adapter has none"""


def tokenizer_folder(base: Path, adapters: Sequence[Path], rows: int) -> Path:
    """`base`, or a temporary folder of links until the process ends.

    AdapterError where the tokenizer does not fit embeddings of `rows` tokens.
    """
    own = [adapter for adapter in adapters if (adapter / "tokenizer.json").is_file()]
    if not own:
        return base
    adapter, tokens = own[0], _tokens(own[0])
    for other in own[1:]:
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
    for source, names in ((adapter, tokenizer_files(adapter)), (base, _FROM_BASE)):
        for name in names:
            if (source / name).is_file() and not (folder / name).exists():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).symlink_to((source / name).resolve())
    template = template_source(adapter) or template_source(base)
    if template and template_source(folder) != template:
        # The base's, of which no file was linked, or one that such a file would go before.
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def tokenizer_files(folder: Path) -> list[str]:
    """The names of those in a folder; no code, which transformers would run."""
    more = (folder / "additional_chat_templates").glob("*.jinja")
    named = [f"{file.parent.name}/{file.name}" for file in sorted(more)]
    return [name for name in (*TOKENIZER_FILES, *named) if (folder / name).is_file()]


def _tokens(folder: Path) -> dict[str, int]:
    tokenizer = read_json(folder / "tokenizer.json")
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [token, score]
        vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary)}
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    return {**vocabulary, **added}
