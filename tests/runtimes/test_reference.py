"""The reference runtime: transformers in float32."""

from __future__ import annotations

from pathlib import Path

from edgeft.records import Limits, Message
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime


def test_the_reference_encodes_and_answers_like_the_gguf(
    gguf_model: GGUFRuntime, tiny_base: Path
) -> None:
    ids = gguf_model.encode(gguf_model.chat.render([Message("user", "lamp")]))
    limits = Limits(max_tokens=20, ignore_eos=True)
    with open_runtime(tiny_base) as reference:
        text = "<|im_start|>a lamp<|im_end|>"
        assert reference.encode(text) == gguf_model.encode(text)
        expected = [token.id for token in reference.stream(ids, limits)]
    assert [token.id for token in gguf_model.stream(ids, limits)] == expected
