"""A tokenizer -> a GGUF's vocabulary, by its structure and not by a list of known models.

    write(writer, Path("model"), vocab_size=49152)

Three kinds: byte-level BPE ("gpt2" in llama.cpp, with the name of its pre-tokenizer), SentencePiece
BPE with byte fallback ("llama", which merges by score), and nothing else: what llama.cpp would cut
differently is refused here by name. Whether it really cuts text into the same ids is proved on the
finished file (`edgeft.benchmarks.fidelity.parity`). How llama.cpp reads these keys: src/llama-vocab.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeft import models
from edgeft.errors import FormatError
from edgeft.files import read_json
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import load_tokenizer, special_tokens, tokenizer_json
from edgeft.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePiece,
)

ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>",
     "<|end_of_text|>", "<eos>", "<EOT>", "<｜end▁of▁sentence｜>")
)  # fmt: skip
"""tokens that llama.cpp ends a turn at by their text alone"""

Rows = list[tuple[str, int]]
"""text and kind of every id"""


def write(writer: Any, folder: Path, vocab_size: int) -> None:
    """Add the vocabulary, its special tokens and the chat template to a GGUFWriter."""
    load_tokenizer(folder)  # is it one?
    tokenizer = tokenizer_json(folder)
    model = tokenizer["model"]
    try:
        if model.get("type") != "BPE":
            raise FormatError(f"a {model.get('type')} vocabulary")
        if model.get("dropout") or model.get("continuing_subword_prefix"):
            raise FormatError("BPE with dropout or a subword prefix")
        strips = _strips_spaces(tokenizer)
        rows = _rows(tokenizer, vocab_size)
        if model.get("byte_fallback"):
            _write_sentencepiece(writer, folder, tokenizer, rows)
        else:
            _write_byte_level(writer, tokenizer, rows)
    except FormatError as error:
        raise FormatError(
            f"GGUF has no place for the tokenizer of {folder.name}: {error}"
        ) from None
    _name_tells(writer, strips)
    _write_special_tokens(writer, folder, tokenizer, rows)


def _write_byte_level(writer: Any, tokenizer: dict[str, Any], rows: Rows) -> None:
    for part in models.flat_parts(tokenizer.get("normalizer")):
        # llama.cpp normalizes nothing. Nearly all text is NFC already; the proof compares such.
        if part["type"] != "NFC":
            raise FormatError(f"normalizer {part['type']}")
    model = tokenizer["model"]
    if not model["merges"]:  # GGUF cannot hold an empty list, and llama.cpp asks for one
        raise FormatError("byte-level BPE without merges")
    steps = models.pretokenizer_steps(tokenizer.get("pre_tokenizer"))
    alike = [pre for pre in models.pretokenizers().values() if pre.steps == steps]
    if not alike:
        raise FormatError(f"no known pre-tokenizer cuts by {' then '.join(steps)[:160]}")
    ignore_merges = bool(model.get("ignore_merges"))
    exact = [pre for pre in alike if pre.ignore_merges == ignore_merges]
    if not exact and not _merges_reach_all(model):
        raise FormatError(f"{alike[0].name} with ignore_merges {ignore_merges}")
    merges = [" ".join(pair) for pair in _merges(model)]
    if any(merge.count(" ") != 1 for merge in merges):
        raise FormatError("merges of pieces with a space inside")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre((exact or alike)[0].name)
    writer.add_token_list([text for text, _ in rows])
    writer.add_token_types([kind for _, kind in rows])
    writer.add_token_merges(merges)
    writer.add_add_space_prefix(False)


def _merges(model: dict[str, Any]) -> list[list[str]]:
    """Pairs; older files write each as one text."""
    return [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]


def _merges_reach_all(model: dict[str, Any]) -> bool:
    """Does every token come out of its own text by merging? Then ignore_merges changes nothing."""
    from tokenizers.models import BPE

    bpe = BPE(vocab=model["vocab"], merges=[(a, b) for a, b in _merges(model)])
    return all(len(bpe.tokenize(token)) == 1 for token in model["vocab"])


def _write_sentencepiece(writer: Any, folder: Path, tokenizer: dict[str, Any], rows: Rows) -> None:
    prefix = _space_prefix(tokenizer)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in rows])
    writer.add_token_scores(_scores(folder, tokenizer["model"], rows))
    writer.add_token_types([kind for _, kind in rows])
    writer.add_add_space_prefix(prefix)


def _space_prefix(tokenizer: dict[str, Any]) -> bool:
    """Does llama.cpp have to put a space before the text (and after each special token)?"""
    normalizers = models.flat_parts(tokenizer.get("normalizer"))
    cuts = models.flat_parts(tokenizer.get("pre_tokenizer"))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    # After the normalizer there are no spaces to cut at (Gemma).
    if cuts and cuts[0].get("pattern") == {"String": " "} and spaces in normalizers:
        cuts = cuts[1:]
    if not cuts and normalizers in ([prepend, spaces], [spaces]):
        return prepend in normalizers
    match cuts:
        case [{"type": "Metaspace", "replacement": "\u2581", "split": False, **rest}]:
            # "first" puts a space before the text unless it begins with a special token, as chats
            # do; llama.cpp puts one before every run of text or before none.
            if not normalizers and rest.get("prepend_scheme") in ("first", "never"):
                return False
    unknown = [*normalizers, *cuts]
    raise FormatError(f"SentencePiece with {str(unknown)[:160]}")


def _scores(folder: Path, model: dict[str, Any], rows: Rows) -> list[float]:
    """Of tokenizer.model where it is; else from the merges' ranks, which were made from scores."""
    file = folder / "tokenizer.model"
    pieces = SentencePiece.read(file).pieces if file.is_file() else ()
    if pieces and all(model["vocab"].get(piece.text) == i for i, piece in enumerate(pieces)):
        more = len(rows) - len(pieces)
        return [piece.score for piece in pieces[: len(rows)]] + [-1000.0] * more
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_merges(model)):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(text, len(ranks))) for text, _ in rows]


def _rows(tokenizer: dict[str, Any], size: int) -> Rows:
    model = tokenizer["model"]
    fallback = bool(model.get("byte_fallback"))
    found: dict[int, tuple[str, int]] = {}
    for text, i in model["vocab"].items():
        byte = fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", text)
        found[i] = (text, BYTE if byte else NORMAL)
    if max(found, default=0) >= size:
        raise FormatError(f"{max(found) + 1} tokens for an embedding of {size} rows")
    for token in tokenizer.get("added_tokens", []):
        text = token["content"]
        if token["id"] >= size:
            continue  # Gemma 3's text models have no row for their image token
        if text == model.get("unk_token") and fallback:
            kind = UNKNOWN
        elif fallback and SPACE in text and not token.get("special"):
            # A run of spaces: merges find it, and as a normal token it is shown as spaces.
            kind = NORMAL
        else:
            kind = CONTROL if token.get("special") else USER_DEFINED
        found[token["id"]] = (text, kind)
    rows = [found.get(i, (f"[PAD{i}]", UNUSED)) for i in range(size)]
    if len({text for text, _ in rows}) < size:
        seen: set[str] = set()
        twice = next(text for text, _ in rows if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise FormatError(f"two ids for {twice!r}")
    return rows


def _strips_spaces(tokenizer: dict[str, Any]) -> bool:
    """Do special tokens swallow the white space after them, as Phi-3's? No other rule is known."""
    added = tokenizer.get("added_tokens", [])
    for token in added:
        if token.get("single_word") or token.get("lstrip"):
            raise FormatError(f"token {token['content']!r} depends on what is before it")
    strips = {token["content"] for token in added if token.get("rstrip")}
    if not strips:
        return False
    every, spared = {token["content"] for token in added}, {"<unk>", "<s>", "<|endoftext|>"}
    if strips != every - spared or not every >= {"</s>", *spared}:
        raise FormatError(f"token {min(strips)!r} swallows the white space after it")
    return True


def _name_tells(writer: Any, strips: bool) -> None:
    """llama.cpp lets tokens swallow white space if general.name has "phi-3" in it, and only then."""
    for data in writer.kv_data:
        if name := data.get("general.name"):
            said = re.search("phi-?3", name.value, re.IGNORECASE)
            if strips and not said:
                name.value += " (Phi-3 tokens)"
            elif said and not strips:
                name.value = re.sub("(?i)phi-?3", "Phi 3", name.value)


def _write_special_tokens(writer: Any, folder: Path, tokenizer: dict[str, Any], rows: Rows) -> None:
    """Ids of bos, eos and friends, every token that ends a turn, and the template."""
    ids = {text: i for i, (text, kind) in enumerate(rows) if kind != UNUSED}
    chat, special = ChatTemplate.from_folder(folder), special_tokens(folder)
    first = _first_token(tokenizer)
    bos = special.get("bos_token") or first
    adders = {"unk_token": writer.add_unk_token_id, "pad_token": writer.add_pad_token_id}
    for key, add in adders.items():
        if special.get(key) in ids:
            add(ids[special[key]])
    if bos in ids:
        writer.add_bos_token_id(ids[bos])
    if not chat.stops:  # llama.cpp would take id 11 for the end
        raise FormatError(f"{folder.name} names no token that ends a turn", "eos_token is missing")
    missing = [stop for stop in chat.stops if stop not in ids]
    if missing:
        raise FormatError(f"{folder.name}: {missing[0]!r}, which ends a turn, is not a token")
    # The eos, then what llama.cpp would not take for an end by itself.
    stops = [*chat.stops[:1], *sorted(chat.stops[1:], key=lambda stop: stop in ENDS)]
    slots = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if lost := [stop for stop in stops[len(slots) :] if stop not in ENDS]:
        raise FormatError(f"GGUF ends a turn at three tokens, {folder.name} also at {lost}")
    for add, stop in zip(slots, stops, strict=False):
        add(ids[stop])
    config = read_json(folder / "tokenizer_config.json")
    add_bos = config.get("add_bos_token")
    add_bos = first is not None and first == bos if add_bos is None else add_bos
    writer.add_add_bos_token(bool(add_bos) and bos in ids)
    writer.add_add_eos_token(bool(config.get("add_eos_token", False)))
    writer.add_chat_template(chat.source)


def _first_token(tokenizer: dict[str, Any]) -> str | None:
    """What the post-processor puts before a text."""
    processor = tokenizer.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        match part:
            case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": text}}, *_]}:
                return str(text)
    return None
