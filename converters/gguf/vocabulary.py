"""Tokenizer folder -> the vocabulary of a GGUF file, by structure and not by model name.

    write(writer, Path("model"), vocab_size=49152)

Two tokenizers are supported: byte-level BPE ("gpt2" in llama.cpp, with the name of its
pre-tokenizer), and SentencePiece BPE with byte fallback ("llama", which merges by score). Others are
refused, because llama.cpp would tokenize differently. `edgeft.benchmarks.fidelity.parity` compares the
token ids of the finished file. llama.cpp reads the keys in src/llama-vocab.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeft import models
from edgeft.errors import FormatError
from edgeft.files import read_json
from edgeft.progress import say
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import eos_ids, load_tokenizer, special_tokens, tokenizer_json
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

LLAMA_CPP_END_TOKENS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>",
     "<|end_of_text|>", "<eos>", "<EOT>", "<｜end▁of▁sentence｜>")
)  # fmt: skip
"""texts of tokens that llama.cpp treats as ends of a turn without a key"""

Tokens = list[tuple[str, int]]
"""(text, token type) of every id"""


def write(writer: Any, folder: Path, vocab_size: int) -> None:
    """Add the vocabulary, its special tokens and the chat template to a GGUFWriter."""
    load_tokenizer(folder)  # InputError for a broken file
    tokenizer = tokenizer_json(folder)
    model = tokenizer["model"]
    try:
        if model.get("type") != "BPE":
            raise FormatError(f"a {model.get('type')} vocabulary")
        if model.get("dropout") or model.get("continuing_subword_prefix"):
            raise FormatError("BPE with dropout or a subword prefix")
        strips = _strips_spaces(tokenizer)
        tokens = _tokens(tokenizer, vocab_size)
        if model.get("byte_fallback"):
            _write_sentencepiece(writer, folder, tokenizer, tokens)
        else:
            _write_byte_level(writer, tokenizer, tokens)
    except FormatError as error:
        raise FormatError(
            f"GGUF has no place for the tokenizer of {folder.name}: {error}"
        ) from None
    _adjust_name(writer, strips)
    _write_special_tokens(writer, folder, tokenizer, tokens)


def _write_byte_level(writer: Any, tokenizer: dict[str, Any], tokens: Tokens) -> None:
    for part in models.flat_parts(tokenizer.get("normalizer")):
        # llama.cpp does not normalize. Nearly all text is NFC already; parity compares NFC texts.
        if part["type"] != "NFC":
            raise FormatError(f"normalizer {part['type']}")
    model = tokenizer["model"]
    if not model["merges"]:  # GGUF has no empty lists, and llama.cpp needs the key
        raise FormatError("byte-level BPE without merges")
    steps = models.pretokenizer_steps(tokenizer.get("pre_tokenizer"))
    same_steps = [pre for pre in models.pretokenizers().values() if pre.steps == steps]
    if not same_steps:
        raise FormatError(f"no known pre-tokenizer cuts by {' then '.join(steps)[:160]}")
    ignore_merges = bool(model.get("ignore_merges"))
    same_merging = [pre for pre in same_steps if pre.ignore_merges == ignore_merges]
    if not same_merging and not _merges_reach_all(model):
        raise FormatError(f"{same_steps[0].name} with ignore_merges {ignore_merges}")
    merges = [" ".join(pair) for pair in _merges(model)]
    if any(merge.count(" ") != 1 for merge in merges):
        raise FormatError("merges of pieces with a space inside")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre((same_merging or same_steps)[0].name)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([token_type for _, token_type in tokens])
    writer.add_token_merges(merges)
    writer.add_add_space_prefix(False)


def _merges(model: dict[str, Any]) -> list[list[str]]:
    """Pairs of pieces; older files hold each pair as one text."""
    return [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]


def _merges_reach_all(model: dict[str, Any]) -> bool:
    """Whether merging makes every token from its own text; then ignore_merges has no effect."""
    from tokenizers.models import BPE

    bpe = BPE(vocab=model["vocab"], merges=[(a, b) for a, b in _merges(model)])
    return all(len(bpe.tokenize(token)) == 1 for token in model["vocab"])


def _write_sentencepiece(
    writer: Any, folder: Path, tokenizer: dict[str, Any], tokens: Tokens
) -> None:
    prefix = _space_prefix(tokenizer)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores(_scores(folder, tokenizer["model"], tokens))
    writer.add_token_types([token_type for _, token_type in tokens])
    writer.add_add_space_prefix(prefix)


def _space_prefix(tokenizer: dict[str, Any]) -> bool:
    """Whether llama.cpp must put a space before the text and after each special token."""
    normalizers = models.flat_parts(tokenizer.get("normalizer"))
    splits = models.flat_parts(tokenizer.get("pre_tokenizer"))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    # The normalizer has replaced all spaces, so the split has no effect (Gemma).
    if splits and splits[0].get("pattern") == {"String": " "} and spaces in normalizers:
        splits = splits[1:]
    if not splits and normalizers in ([prepend, spaces], [spaces]):
        return prepend in normalizers
    match splits:
        case [{"type": "Metaspace", "replacement": "\u2581", "split": False, **rest}]:
            # "first" adds no space before a special token, and chats begin with one. llama.cpp adds
            # a space before every run of text, or none at all.
            if not normalizers and rest.get("prepend_scheme") in ("first", "never"):
                return False
    unknown = [*normalizers, *splits]
    raise FormatError(f"SentencePiece with {str(unknown)[:160]}")


def _scores(folder: Path, model: dict[str, Any], tokens: Tokens) -> list[float]:
    """Scores from tokenizer.model; without that file, from the ranks of the merges."""
    path = folder / "tokenizer.model"
    pieces = SentencePiece.read(path).pieces if path.is_file() else ()
    if pieces and all(model["vocab"].get(piece.text) == i for i, piece in enumerate(pieces)):
        missing = len(tokens) - len(pieces)
        return [piece.score for piece in pieces[: len(tokens)]] + [-1000.0] * missing
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_merges(model)):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(text, len(ranks))) for text, _ in tokens]


def _tokens(tokenizer: dict[str, Any], vocab_size: int) -> Tokens:
    """A token for every id; FormatError where two ids have the same text."""
    model = tokenizer["model"]
    fallback = bool(model.get("byte_fallback"))
    by_id: dict[int, tuple[str, int]] = {}
    for text, i in model["vocab"].items():
        byte = fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", text)
        by_id[i] = (text, BYTE if byte else NORMAL)
    if max(by_id, default=0) >= vocab_size:
        raise FormatError(f"{max(by_id) + 1} tokens for an embedding of {vocab_size} rows")
    for token in tokenizer.get("added_tokens", []):
        text = token["content"]
        if token["id"] >= vocab_size:
            continue  # Gemma 3's text models have no embedding row for the image token
        if text == model.get("unk_token") and fallback:
            token_type = UNKNOWN
        elif fallback and SPACE in text and not token.get("special"):
            # A run of spaces: merges produce it, and a normal token is decoded as spaces.
            token_type = NORMAL
        else:
            token_type = CONTROL if token.get("special") else USER_DEFINED
        by_id[token["id"]] = (text, token_type)
    tokens = [by_id.get(i, (f"[PAD{i}]", UNUSED)) for i in range(vocab_size)]
    if len({text for text, _ in tokens}) < vocab_size:
        seen: set[str] = set()
        duplicate = next(text for text, _ in tokens if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise FormatError(f"two ids for {duplicate!r}")
    return tokens


def _strips_spaces(tokenizer: dict[str, Any]) -> bool:
    """Whether special tokens strip the white space after them, like Phi-3's; FormatError for others."""
    added = tokenizer.get("added_tokens", [])
    for token in added:
        if token.get("single_word") or token.get("lstrip"):
            raise FormatError(f"token {token['content']!r} depends on the text before it")
    strips = {token["content"] for token in added if token.get("rstrip")}
    if not strips:
        return False
    all_tokens = {token["content"] for token in added}
    not_stripping = {"<unk>", "<s>", "<|endoftext|>"}
    if strips != all_tokens - not_stripping or not all_tokens >= {"</s>", *not_stripping}:
        raise FormatError(f"token {min(strips)!r} swallows the white space after it")
    return True


def _adjust_name(writer: Any, strips: bool) -> None:
    """Make general.name contain "phi-3" exactly where tokens strip spaces: llama.cpp reads it."""
    for data in writer.kv_data:
        if name := data.get("general.name"):
            has_phi3 = re.search("phi-?3", name.value, re.IGNORECASE)
            if strips and not has_phi3:
                name.value += " (Phi-3 tokens)"
            elif has_phi3 and not strips:
                name.value = re.sub("(?i)phi-?3", "Phi 3", name.value)


def _write_special_tokens(
    writer: Any, folder: Path, tokenizer: dict[str, Any], tokens: Tokens
) -> None:
    """Add the ids of the special tokens, of all tokens that end a turn, and the chat template."""
    ids = {text: i for i, (text, token_type) in enumerate(tokens) if token_type != UNUSED}
    chat, special = ChatTemplate.from_folder(folder), special_tokens(folder)
    first = _first_token(tokenizer)
    bos = special.get("bos_token") or first
    adders = {"unk_token": writer.add_unk_token_id, "pad_token": writer.add_pad_token_id}
    for key, add in adders.items():
        if special.get(key) in ids:
            add(ids[special[key]])
    if bos in ids:
        writer.add_bos_token_id(ids[bos])
    if not chat.stops:  # llama.cpp would use id 11 as the end
        raise FormatError(f"{folder.name} names no token that ends a turn", "eos_token is missing")
    missing = [stop for stop in chat.stops if stop not in ids]
    if missing:
        raise FormatError(f"{folder.name}: {missing[0]!r}, which ends a turn, is not a token")
    # The eos first, then the stops that llama.cpp does not know.
    stops = [
        *chat.stops[:1],
        *sorted(chat.stops[1:], key=lambda stop: stop in LLAMA_CPP_END_TOKENS),
    ]
    slots = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if unwritten := [stop for stop in stops[len(slots) :] if stop not in LLAMA_CPP_END_TOKENS]:
        raise FormatError(
            f"GGUF ends a turn at three tokens, {folder.name} also at {unwritten}",
            "take tokens that it never writes out of eos_token_id of generation_config.json",
        )
    # generation_config.json may also end a generation at ordinary tokens, such as a newline.
    ends = [ids[stop] for stop in stops]
    ordinary = [i for i in eos_ids(folder) if 0 <= i < len(tokens) and i not in ends]
    for add, token in zip(slots, [*ends, *ordinary], strict=False):
        add(token)
    for token in ordinary[max(0, len(slots) - len(ends)) :]:
        text = tokens[token][0]
        say(f"GGUF has no place for the stop {token} ({text!r}) of generation_config.json")
    config = read_json(folder / "tokenizer_config.json")
    add_bos = config.get("add_bos_token")
    add_bos = first is not None and first == bos if add_bos is None else add_bos
    writer.add_add_bos_token(bool(add_bos) and bos in ids)
    if config.get("add_eos_token"):
        say(
            "add_eos_token of tokenizer_config.json is off in the GGUF: a prompt would end with the "
            "eos, and the answer before it begins"
        )
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat.source)


def _first_token(tokenizer: dict[str, Any]) -> str | None:
    """The token that the post-processor adds before a text."""
    processor = tokenizer.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        match part:
            case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": text}}, *_]}:
                return str(text)
    return None
