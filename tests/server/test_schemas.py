"""Fields that are not supported are named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edgeft.server.schemas import Chat, ChatMessage, unsupported_field

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"tools": [{}]}, None),
        ({"modalities": ["text"]}, None),
        ({"modalities": ["audio"]}, "modalities"),
        ({"grammar": 'root ::= "a"'}, None),
        ({"suffix": ""}, None),
        ({"mirostat": 0, "typical_p": 1.0, "dry_multiplier": 0.0, "n_keep": -1}, None),
        ({"mirostat": 2}, "mirostat"),
        ({"min_tokens": 4}, "min_tokens"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"samplers": ["top_k"]}, "samplers"),
        ({"enable_thinking": False}, "enable_thinking"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 2}, None),
        ({"best_of": 1}, None),
    ],
)
def test_the_first_unsupported_field(body: dict[str, Any], field: str | None) -> None:
    assert unsupported_field(body) == field


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused_by_their_kind(kind: str) -> None:
    content = [{"type": "text", "text": "hi"}, {"type": kind, kind: {}}]
    with pytest.raises(ValidationError, match=f"'{kind}' is not supported: models here read text"):
        Chat.model_validate({"messages": [{"role": "user", "content": content}]})


def test_a_part_has_a_text_or_a_refusal() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    assert ChatMessage.model_validate({"role": "assistant", "content": parts}).text == "ab"
    with pytest.raises(ValidationError, match="needs text"):
        ChatMessage.model_validate({"role": "user", "content": [{"type": "text", "txt": "a"}]})
