"""A GGUF's vocabulary -> tokenizer.json: the inverse of `edgeft.converters.gguf.vocabulary`.

header = gguf_reader.read(Path("model.gguf"))
tokenizer = from_gguf(header.meta.get)      # a dict; tokenizers.Tokenizer.from_str reads it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from edgeft import models
from edgeft.errors import FormatError
from edgeft.tokenizer.sentencepiece import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SentencePiece,
    added_token,
)

Meta = Callable[[str], Any]
"""a metadata key -> its value, None where the file has no such key"""


def from_gguf(meta: Meta) -> dict[str, Any]:
    """The tokenizer.json that tokenizes text as llama.cpp does with this file.

    FormatError for a kind of vocabulary or a pre-tokenizer that has no known equivalent.
    """
    model_type, pieces = meta("tokenizer.ggml.model"), _pieces(meta)
    if model_type == "gpt2":
        return _byte_level(meta, pieces)
    if model_type == "llama":
        prefix = meta("tokenizer.ggml.add_space_prefix")
        model = SentencePiece(pieces, space_prefix=prefix is None or bool(prefix))
        return model.tokenizer_json(_added(meta, pieces))
    if model_type == "gemma4":
        tokenizer = SentencePiece(pieces, space_prefix=False).tokenizer_json(_added(meta, pieces))
        tokenizer["model"]["merges"] = _merges(meta)
        return tokenizer
    raise FormatError(
        f"GGUF import does not read {model_type} vocabularies",
        "use the Hugging Face folder of this model",
    )


def _byte_level(meta: Meta, pieces: Sequence[Piece]) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE, with the pre-tokenizer that the file names."""
    name = meta("tokenizer.ggml.pre") or "default"
    pre = models.pretokenizer_named(name)
    if pre is None:
        raise FormatError(
            f"GGUF import does not know the pre-tokenizer {name!r}",
            "use the Hugging Face folder of this model",
        )
    return {
        "version": "1.0",
        "added_tokens": _added(meta, pieces),
        "pre_tokenizer": models.pretokenizer_json(pre),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "vocab": {p.text: i for i, p in enumerate(pieces)},
                  "merges": _merges(meta), "ignore_merges": pre.ignore_merges},
    }  # fmt: skip


def _merges(meta: Meta) -> list[list[str]]:
    """Pairs of tokens that merge, from the best rank to the worst."""
    return [merge.split(" ", 1) for merge in meta("tokenizer.ggml.merges")]


def _pieces(meta: Meta) -> tuple[Piece, ...]:
    tokens = meta("tokenizer.ggml.tokens")
    scores = meta("tokenizer.ggml.scores") or [0.0] * len(tokens)
    token_types = meta("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    return tuple(map(Piece, tokens, scores, token_types))


def _added(meta: Meta, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Entries of `added_tokens`, which llama.cpp looks for in a text first.

    For a model named Phi-3 it strips the space behind most of them.
    """
    phi3 = re.search("phi-?3", meta("general.name") or "", re.IGNORECASE)
    unstripped = ("<unk>", "<s>", "<|endoftext|>")
    return [
        added_token(
            i, piece.text, special=piece.token_type != USER_DEFINED,
            rstrip=bool(phi3) and piece.text not in unstripped,
        )
        for i, piece in enumerate(pieces)
        if piece.token_type in (UNKNOWN, CONTROL, USER_DEFINED)
    ]  # fmt: skip
