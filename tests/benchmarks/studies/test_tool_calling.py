"""The study of tool calling: what fits a schema, required calls of a tiny model, the table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.studies import tool_calling
from edgeft.benchmarks.studies.tasks import write_task
from helpers.serving import exported

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"type": "string", "enum": ["a", "b"]}},
    "required": ["n"],
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "arguments", "fits"),
    [
        ("f", '{"n": 1}', True), ("f", '{"n": 1, "s": "a"}', True), ("g", '{"n": 1}', False),
        ("f", "{}", False), ("f", '{"n": true}', False), ("f", '{"n": "1"}', False),
        ("f", '{"n": 1, "s": "c"}', False), ("f", '{"n": 1, "x": 2}', False), ("f", '{"n', False),
    ],
)  # fmt: skip
def test_what_fits_a_schema(name: str, arguments: str, fits: bool) -> None:
    assert tool_calling.call_fits(name, arguments, TOOLS) == fits


def test_required_calls_of_a_tiny_model_and_the_table(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_task(tool_calling.TASK, tmp_path)
    (artifact,) = exported(tiny_base, tmp_path / "base", "f32")

    def edgeft(*words: Any) -> str:
        assert words[0] == "bench" and "tool-call" in words
        return json.dumps({"rows": [{"score": {"values": [1.0, 0.0]}}]})

    monkeypatch.setattr(tool_calling, "edgeft", edgeft)
    monkeypatch.setattr(tool_calling, "REQUIRED_TOKENS", 400)
    options = argparse.Namespace(threads=1, limit=2, out=tmp_path)
    row = tool_calling.measure(artifact, suite, options)
    assert row["all"] == 0.5 and row["required misfits"] == 0 and row["rows"] == 2
    assert row["required fits"] in (0, 0.5, 1)
    assert "50.0%" in tool_calling.table([row])
