"""Refusals of a GGUF's vocabulary; what comes back is held in tests/converters/gguf."""

from __future__ import annotations

import pytest

from edgeft.errors import FormatError
from edgeft.tokenizer.gguf_vocabulary import from_gguf

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("tokenizer.ggml.pre", "kimi-k2", "does not know the pre-tokenizer 'kimi-k2'"),
        ("tokenizer.ggml.model", "rwkv", "does not read rwkv vocabularies"),
    ],
)
def test_an_unknown_vocabulary_or_pre_tokenizer_is_refused(key: str, value: str, says: str) -> None:
    known = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], key: value}
    with pytest.raises(FormatError, match=says):
        from_gguf(known.get)
