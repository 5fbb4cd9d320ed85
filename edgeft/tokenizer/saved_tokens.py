"""A folder's tokenizer_config.json + its tokenizer -> the tokens that only the first file names.

transformers adds them when it loads the tokenizer, so a text that holds one is cut differently
without them: an eos token that was chosen by editing tokenizer_config.json would be learned in pieces.
Flags of a token in `added_tokens_decoder` also replace those in tokenizer.json. (transformers 5,
`TokenizersBackend.__init__`.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from edgeft.files import read_json

NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""special tokens in the order in which transformers adds them, without the `_token` behind them"""
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


def settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with special_tokens_map.json where transformers before 4.34 wrote it."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(folder / "special_tokens_map.json")
    return config


def unknown(
    folder: Path, added: Iterable[dict[str, Any]], vocabulary: Callable[[], Collection[str]]
) -> list[dict[str, Any]]:
    """Entries that the configuration has and `added` (of tokenizer.json) lacks or has otherwise.

    `vocabulary`: gives the texts of all tokens. A token that is not among them is left out where
    config.json has no row of the embedding for it.
    """
    known = {entry["content"]: _flags(entry) for entry in added}
    config = settings(folder)
    listed = config.get("added_tokens_decoder")
    listed = listed.values() if isinstance(listed, dict) else ()
    entries = {e["content"]: e for e in listed if known.get(e["content"]) != _flags(e)}
    for value in _named(config):
        entry = value if isinstance(value, dict) else {"content": value}
        if entry["content"] not in known:
            entries.setdefault(entry["content"], {"normalized": False, **entry, "special": True})
    if not entries:
        return []
    texts = vocabulary()
    new = [text for text in entries if text not in texts and text not in known]
    without_row = new[max(0, _rows(folder) - len({*texts, *known})) :]
    return [entry for text, entry in entries.items() if text not in without_row]


def add(folder: Path, tokenizer: Any) -> None:
    """Add the unknown tokens to a `tokenizers.Tokenizer`, as transformers does."""
    from tokenizers import AddedToken

    present = tokenizer.get_added_tokens_decoder().values()
    known = [{"content": t.content, **{flag: getattr(t, flag) for flag in FLAGS}} for t in present]
    for entry in unknown(folder, known, tokenizer.get_vocab):
        tokenizer.add_tokens([AddedToken(entry["content"], **_flags(entry))])


def _named(config: dict[str, Any]) -> list[Any]:
    values = [config.get(f"{name}_token") for name in NAMES]
    for name in LISTS:
        listed = config.get(name)
        values += listed.values() if isinstance(listed, dict) else listed or []
    return [value for value in values if value and isinstance(value, (str, dict))]


def _flags(entry: dict[str, Any]) -> dict[str, bool]:
    return {flag: bool(entry.get(flag)) for flag in FLAGS}


def _rows(folder: Path) -> int:
    config = read_json(folder / "config.json")
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0
    return rows if isinstance(rows, int) else 0
