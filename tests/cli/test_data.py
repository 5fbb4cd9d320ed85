"""edgeft data: what is printed, the page, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeft.benchmarks.suites import load_suite
from helpers.planted import clean_rows, jsonl

pytestmark = pytest.mark.unit


def test_check_prints_findings_and_ends_with_a_decision(
    edgeft: Callable[..., object], tmp_path: Path
) -> None:
    data, page = tmp_path / "d.jsonl", tmp_path / "page.html"
    rows = clean_rows()
    rows[4]["messages"][1]["content"] += "<script>alert(1)</script> \x1b[31m <|im_end|>"
    data.write_text(jsonl(rows))
    ran = edgeft("data", "check", data, "--page", page)
    assert ran.code == 0, ran.err  # type: ignore[attr-defined]
    out = ran.out  # type: ignore[attr-defined]
    assert f"{data}:5" in out and "special-tokens" in out and "\x1b" not in out
    assert out.strip().splitlines()[-1].startswith("fit to train on: 0 errors")
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html and "special-tokens" in html and "default-src 'none'" in html


def test_check_ends_with_3_where_training_would_be_a_mistake(
    edgeft: Callable[..., object], tmp_path: Path
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(
        jsonl(clean_rows()) + load_suite("smart_home").test.read_text().splitlines()[0] + "\n"
    )
    ran = edgeft("data", "check", data, "--json")
    assert ran.code == 3  # type: ignore[attr-defined]
    report = json.loads(ran.out)  # type: ignore[attr-defined]
    assert report["findings"][0]["kind"] == "test-leak" and report["exit_code"] == 3
    assert report["findings"][0]["places"] == [f"{data}:121"]


def test_split_clean_and_mix_print_what_they_wrote(
    edgeft: Callable[..., object], tmp_path: Path
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(jsonl(clean_rows()))
    ran = edgeft("data", "split", data, "--output", tmp_path / "s", "--validation", "0.2")
    train, validation = ran.out.splitlines()  # type: ignore[attr-defined]
    ran = edgeft(
        "data", "mix", f"{train}=2", validation, "--output", tmp_path / "m.jsonl", "--json"
    )
    rows = json.loads(ran.out)["rows"]  # type: ignore[attr-defined]
    assert rows[train] == 2 * rows[validation]
    ran = edgeft("data", "clean", tmp_path / "m.jsonl", "--output", tmp_path / "c.jsonl", "--json")
    assert json.loads(ran.out)["kept"] == sum(rows.values())  # type: ignore[attr-defined]
    ran = edgeft("data", "mix", data, "--replay-share", "0.2", "--output", tmp_path / "x.jsonl")
    assert ran.code == 2 and "--replay" in ran.err  # type: ignore[attr-defined]


def test_a_config_file_has_a_table_for_each_command(
    edgeft: Callable[..., object], tmp_path: Path
) -> None:
    data, config = tmp_path / "d.jsonl", tmp_path / "run.toml"
    data.write_text(jsonl(clean_rows()))
    config.write_text("[data.split]\nvalidation = 0.5\noutput = 's'\n[train-qlora]\nsteps = 3\n")
    ran = edgeft("data", "split", data, "--config", config, "--json")
    assert ran.code == 0, ran.err  # type: ignore[attr-defined]
    result = json.loads(ran.out)  # type: ignore[attr-defined]
    assert 40 <= result["splits"]["validation"] <= 80
    assert result["output"] == str(tmp_path / "s") and (tmp_path / "s" / "train.jsonl").is_file()
