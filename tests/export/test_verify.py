"""The checks of a finished artifact, where the pipeline's tests do not reach."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeft.export.verify import ArtifactVerifier
from edgeft.formats import FORMATS
from edgeft.merge.view import open_merged


def test_a_format_that_torch_runs_is_not_loaded_where_nothing_is_compared(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dataclasses.replace(FORMATS["hf"], name="another")
    monkeypatch.setattr(ArtifactVerifier, "_open", lambda *_, **__: pytest.fail("it was loaded"))
    with ArtifactVerifier([], [], threads=1, live=False) as checks:
        facts = checks.verify(row, "f32", tiny_base, open_merged(tiny_base, None))
    assert facts["live"] == "not compared: switched off"
    assert facts["texts"]
