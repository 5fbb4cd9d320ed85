"""Real clients, installed from the package indexes, against a served model."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT
from helpers.serving import exported, running

MATRIX = ROOT / "tests" / "server" / "clients" / "matrix.py"


@pytest.fixture(scope="module")
def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("matrix", MATRIX)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.unit
def test_the_table_says_what_works_fails_and_is_not_there(matrix: Any) -> None:
    one = {"client": "openai", "version": "1", "error": ""}
    found = [one | {"feature": "chat"}, one | {"feature": "tools", "error": "Error: no"}]
    *_, row, empty, note = matrix.table(found).split("\n")
    assert row == "| openai | 1 | yes | – | – | fails | – | – |"
    assert (empty, note) == ("", "- openai, tools: `Error: no`")


@pytest.mark.unit
def test_the_page_holds_the_table_of_every_client(matrix: Any) -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    shown = page.partition(matrix.BEGIN)[2].partition(matrix.END)[0]
    for package in (*matrix.PACKAGES, "openai (npm)", "ai (npm)"):
        assert f"| {package.partition('[')[0]} |" in shown


@pytest.mark.slow
def test_every_client_works_with_every_feature(matrix: Any, tmp_path: Path) -> None:
    """With a real model: the random one may give an empty answer, which no client takes for an answer."""
    from edgeft.base.resolve import resolve_base

    try:
        environment = matrix.install(tmp_path / "clients")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no package index: {error}")
    (artifact,) = exported(resolve_base("smollm2-135m"), tmp_path, "q4_0")
    with running(artifact, slots=2, context=4096) as served:
        found = matrix.outcomes(environment, served.url, "q4_0")
    assert len(found) > 40 and [one for one in found if one["error"]] == []
