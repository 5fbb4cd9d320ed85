"""Lengths in tokens, and what the chat template of a base makes of rows, as training sees them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgeft.data import tokens
from edgeft.data.checking import DataReport, check
from edgeft.data.encoding import encode
from edgeft.data.options import CheckOptions
from edgeft.data.rows import load_examples
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from helpers.planted import clean_rows, jsonl


def report_of(path: Path, rows: list[object], base: Path, cutoff: int = 512) -> DataReport:
    path.write_text(jsonl(rows))  # type: ignore[arg-type]
    return check(CheckOptions((path,), base=base, cutoff_length=cutoff, near=0))


def test_lengths_are_those_of_the_encoded_examples(tiny_base: Path, tmp_path: Path) -> None:
    report = report_of(tmp_path / "d.jsonl", clean_rows(60), tiny_base)
    chat, tokenize = ChatTemplate.from_folder(tiny_base), encoder(tiny_base)
    examples = load_examples(tmp_path / "d.jsonl")
    encoded = [encode(example, chat, tokenize) for example in examples]
    lengths = sorted(len(item.ids) for item in encoded)
    assert report.tokens is not None
    assert (report.tokens.longest, report.tokens.total) == (lengths[-1], sum(lengths))
    assert report.tokens.median == lengths[29] and report.tokens.p95 == lengths[56]
    learned = sum(label != -100 for item in encoded for label in item.labels)
    assert report.tokens.learned == pytest.approx(learned / sum(lengths))
    assert report.rendered.endswith("<|im_end|>⟧") and "⟦" in report.rendered
    assert not any(f.kind in ("no-stop", "refused-by-template") for f in report.findings)


def test_rows_that_are_not_rendered_are_estimated_from_above(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = report_of(tmp_path / "d.jsonl", clean_rows(60), tiny_base).tokens
    monkeypatch.setattr(tokens, "RENDERED_ROWS", 10)
    monkeypatch.setattr(tokens, "RENDERED_PER_ORDER", 5)
    estimated = report_of(tmp_path / "d.jsonl", clean_rows(60), tiny_base).tokens
    assert exact is not None and estimated is not None and estimated.rendered == 10
    assert exact.total <= estimated.total <= 1.05 * exact.total


def test_rows_longer_than_the_cutoff_are_placed(tiny_base: Path, tmp_path: Path) -> None:
    rows = clean_rows(60)
    rows[6]["messages"][1]["content"] *= 8
    tokens_of = report_of(tmp_path / "d.jsonl", rows, tiny_base).tokens
    assert tokens_of is not None
    report = report_of(tmp_path / "d.jsonl", rows, tiny_base, tokens_of.longest - 1)
    (finding,) = (f for f in report.findings if f.kind == "too-long")
    assert finding.rows == 1 and finding.places[0].endswith(":7")
    assert finding.evidence == (f"{tokens_of.longest} tokens",) and report.exit_code == 0
    assert report_of(tmp_path / "d.jsonl", rows, tiny_base, 40).exit_code == 3  # all are longer


def with_template(base: Path, folder: Path, template: str) -> Path:
    shutil.copytree(base, folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"chat_template": template}))
    return folder


def test_a_template_that_writes_no_stop_or_refuses_rows_is_an_error(
    tiny_base: Path, tmp_path: Path
) -> None:
    without = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    without += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    base = with_template(tiny_base, tmp_path / "no-stop", without)
    report = report_of(tmp_path / "d.jsonl", clean_rows(60), base)
    (finding,) = (f for f in report.findings if f.kind == "no-stop")
    assert finding.rows == 60 and report.exit_code == 3
    refusing = (
        "{% if 'river' in messages[0]['content'] %}{{ raise_exception('no rivers') }}{% endif %}"
    )
    chatml = ChatTemplate.from_folder(tiny_base).source
    base = with_template(tiny_base, tmp_path / "refusing", refusing + chatml)
    rows = clean_rows(60)
    lines = [i for i, row in enumerate(rows, start=1) if "river" in row["messages"][0]["content"]]
    report = report_of(tmp_path / "d.jsonl", rows, base)
    (finding,) = (f for f in report.findings if f.kind == "refused-by-template")
    assert finding.rows == len(lines) > 0 and "no rivers" in finding.evidence[0]
    assert finding.places[0].endswith(f":{lines[0]}") and report.exit_code == 3
