"""SentencePiece's tokenizer.model -> the equivalent tokenizer.json, without the sentencepiece package.

    folder_tokenizer_json(Path("chatglm3-6b"))               # for tokenizers.Tokenizer.from_str
    SentencePiece.read(Path("tokenizer.model")).pieces[3]    # Piece("<0x00>", 0.0, BYTE)

The file is one protobuf message (sentencepiece_model.proto), a few fields of which matter. A
SentencePiece tokenizer normalizes text (replace characters by a table, drop repeated spaces, put a
space before the first word, write spaces as U+2581), then merges pieces by score (BPE) or takes the
likeliest pieces (unigram).

ChatGLM 2 and 3 come with only this file and Python code. The code is never run; the tokens that it
adds stand here.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import FormatError, InputError
from edgeft.files import MAX_TOKENIZER_BYTES, read_bytes, read_text

MAX_FIELDS = 3_000_000
"""of a file; the largest vocabularies have a million"""
MAX_VARINT_BYTES = 10
MAX_ADDED_TOKENS = 1 << 16
"""that a tokenizer may have behind its pieces"""
MAX_CUTS = 300_000_000
"""sum of the squares of the pieces' lengths: how long it takes to find their merges. Large vocabularies
have 30 million."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""types of pieces, numbered as in the protobuf message and in GGUF"""
UNIGRAM, BPE = 1, 2
"""TrainerSpec.model_type"""
SPACE = "\u2581"
"""how a piece writes a space"""

CHATGLM_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""tokens that tokenization_chatglm.py appends to the pieces"""
CHATGLM_ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""tokens that it appends behind those since version 3"""


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; its place is its id."""

    text: str
    score: float
    """higher merges first (BPE), log probability (unigram)"""
    token_type: int
    """NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE"""


@dataclass(frozen=True)
class SentencePiece:
    """A model file: its pieces and how it normalizes text."""

    pieces: tuple[Piece, ...]
    unigram: bool = False
    """unigram model, else BPE"""
    charsmap: bytes = b""
    """compiled table of character replacements (NFKC in most unigram models)"""
    space_prefix: bool = True
    """put a space before the first word (`add_dummy_prefix`)"""
    strip_spaces: bool = False
    """drop spaces at both ends and repeated ones (`remove_extra_whitespaces`)"""

    @classmethod
    def read(cls, path: Path) -> SentencePiece:
        """InputError where the file is missing, broken or of a kind that is not supported."""
        try:
            return _model(read_bytes(path, MAX_TOKENIZER_BYTES))
        except FileNotFoundError:
            raise InputError(f"no such file: {path}") from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
            raise InputError(f"{path} is not a SentencePiece model: {error}") from None

    def tokenizer_json(self, added: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
        """The same tokenizer as tokenizer.json; `added`: more entries of its `added_tokens`."""
        special = [
            added_token(i, piece.text, special=piece.token_type != USER_DEFINED)
            for i, piece in enumerate(self.pieces)
            if piece.token_type in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
        tokens = {token["id"]: token for token in [*special, *added]}
        model = self._unigram() if self.unigram else self._bpe()
        # The package numbers added tokens by itself, unless the vocabulary has them.
        if self.unigram:
            lowest = min(piece.score for piece in self.pieces)
            for i in range(len(self.pieces), max(tokens, default=-1) + 1):
                text = tokens[i]["content"] if i in tokens else f"[PAD{i}]"
                model["vocab"].append([text, lowest])
        else:
            model["vocab"] |= {token["content"]: i for i, token in tokens.items()}
        return {
            "version": "1.0",
            "added_tokens": [tokens[i] for i in sorted(tokens)],
            "normalizer": {"type": "Sequence", "normalizers": list(self._normalizers())},
            "pre_tokenizer": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
                      if self.space_prefix else []),
                ],
            },
            "model": model,
        }  # fmt: skip

    def _normalizers(self) -> Iterator[dict[str, Any]]:
        if self.charsmap:
            table = base64.b64encode(self.charsmap).decode("ascii")
            yield {"type": "Precompiled", "precompiled_charsmap": table}
        if self.strip_spaces:
            yield {"type": "Strip", "strip_left": True, "strip_right": True}
            yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        if self.space_prefix:
            yield {"type": "Prepend", "prepend": SPACE}
        yield {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}

    def _unknown(self) -> int | None:
        return next((i for i, p in enumerate(self.pieces) if p.token_type == UNKNOWN), None)

    def _byte_fallback(self) -> bool:
        return any(piece.token_type == BYTE for piece in self.pieces)

    def _unigram(self) -> dict[str, Any]:
        return {
            "type": "Unigram", "unk_id": self._unknown(), "byte_fallback": self._byte_fallback(),
            "vocab": [[piece.text, piece.score] for piece in self.pieces],
        }  # fmt: skip

    def _bpe(self) -> dict[str, Any]:
        unknown = self._unknown()
        return {
            "type": "BPE", "dropout": None, "fuse_unk": True,
            "unk_token": None if unknown is None else self.pieces[unknown].text,
            "byte_fallback": self._byte_fallback(), "ignore_merges": False,
            "vocab": {piece.text: i for i, piece in enumerate(self.pieces)},
            "merges": self._merges(),
        }  # fmt: skip

    def _merges(self) -> list[tuple[str, str]]:
        """Every pair of pieces that makes a piece, in the order of that piece's score."""
        if sum(len(piece.text) ** 2 for piece in self.pieces) > MAX_CUTS:
            raise FormatError("the pieces of the vocabulary are longer than those of any model")
        mergeable = {p.text for p in self.pieces if p.token_type in (NORMAL, USER_DEFINED, UNUSED)}
        whole = [p for p in self.pieces if p.token_type in (NORMAL, USER_DEFINED)]
        whole.sort(key=lambda piece: -piece.score)
        return [
            (piece.text[:cut], piece.text[cut:])
            for piece in whole
            for cut in range(1, len(piece.text))
            if piece.text[:cut] in mergeable and piece.text[cut:] in mergeable
        ]


def added_token(index: int, text: str, special: bool, rstrip: bool = False) -> dict[str, Any]:
    """An entry of tokenizer.json's `added_tokens`, recognised in the text before normalization."""
    return {"id": index, "content": text, "special": special, "single_word": False,
            "lstrip": False, "rstrip": rstrip, "normalized": False}  # fmt: skip


def folder_tokenizer_json(folder: Path) -> dict[str, Any]:
    """tokenizer.json of a folder that has only tokenizer.model."""
    file = folder / "tokenizer.model"
    config = folder / "tokenizer_config.json"
    code = folder / "tokenization_chatglm.py"
    texts = tuple(read_text(p) if p.exists() else "" for p in (config, code))
    return _folder_tokenizer_json(file, file.stat().st_mtime_ns, *texts)


@functools.lru_cache(maxsize=2)
def _folder_tokenizer_json(file: Path, _modified_ns: int, config: str, code: str) -> dict[str, Any]:
    """`config` and `code`: the texts of tokenizer_config.json and tokenization_chatglm.py, or ""."""
    model = SentencePiece.read(file)
    if model.space_prefix and any(p.token_type == USER_DEFINED for p in model.pieces):
        raise FormatError(
            f"{file}: user-defined pieces beside a space prefix have no tokenizer.json equivalent"
        )
    size = len(model.pieces)
    try:
        settings = json.loads(config or "{}")
        added = {
            int(i): added_token(int(i), str(token["content"]), bool(token.get("special")))
            for i, token in settings.get("added_tokens_decoder", {}).items()
        }
        if not all(0 <= i < size + MAX_ADDED_TOKENS for i in added):
            raise ValueError(f"added_tokens_decoder has ids beyond {size + MAX_ADDED_TOKENS}")
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        config_file = file.parent / "tokenizer_config.json"
        raise InputError(f"{config_file} is not of a tokenizer: {error!r}") from None
    if settings.get("tokenizer_class") == "ChatGLMTokenizer":
        # Versions 2 and 3 have the same class name; only version 3 mentions roles.
        roles = CHATGLM_ROLE_TOKENS if "<|assistant|>" in config + code else ()
        for i, text in enumerate((*CHATGLM_TOKENS, *roles), start=size):
            added.setdefault(i, added_token(i, text, special=True))
    return model.tokenizer_json(added.values())


def _model(data: bytes) -> SentencePiece:
    """Decode a ModelProto; ValueError and its kind for a broken one."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    budget = iter(range(MAX_FIELDS))
    for field, value in _fields(data, budget):
        if field == 1:
            piece = dict(_fields(value, budget))
            (score,) = struct.unpack("<f", piece.get(2, b"\0\0\0\0"))
            pieces.append(Piece(piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
        elif field == 2:
            trainer = dict(_fields(value, budget))
        elif field == 3:
            normalizer = dict(_fields(value, budget))
    model_type = trainer.get(3, UNIGRAM)
    if not pieces or model_type not in (UNIGRAM, BPE):
        raise ValueError("no pieces" if not pieces else "neither unigram nor BPE")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise ValueError("spaces after words, or not written as U+2581, are not known here")
    return SentencePiece(
        pieces=tuple(pieces),
        unigram=model_type == UNIGRAM,
        charsmap=normalizer.get(2, b""),
        space_prefix=bool(normalizer.get(3, 1)),
        strip_spaces=bool(normalizer.get(4, 1)),
    )


def _fields(data: bytes, budget: Iterator[int]) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields: an int, or bytes of a string or a float.

    `budget`: an item for each field that the file may have.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 7 * MAX_VARINT_BYTES, 7):
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number has more than 64 bits")

    while at < len(data):
        if next(budget, None) is None:
            raise ValueError("it has more parts than any vocabulary")
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        lengths = {1: 8, 5: 4}
        length = varint() if key & 7 == 2 else lengths[key & 7]
        if at + length > len(data):
            raise ValueError("it is cut off")
        yield key >> 3, data[at : at + length]
        at += length
