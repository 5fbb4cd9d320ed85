"""Fields that are not supported are named."""

from __future__ import annotations

from typing import Any

import pytest

from edgeft.server.schemas import unsupported_field

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"tools": [{}]}, None),
        ({"modalities": ["text"]}, None),
        ({"modalities": ["audio"]}, "modalities"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"guided_json": None}, None),
        ({"enable_thinking": False}, "enable_thinking"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 2}, None),
        ({"best_of": 1}, None),
    ],
)
def test_the_first_unsupported_field(body: dict[str, Any], field: str | None) -> None:
    assert unsupported_field(body) == field
