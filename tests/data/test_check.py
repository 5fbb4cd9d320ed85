"""Every planted fault is found and placed; a clean corpus has none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.suites import load_suite, suite_tests
from edgeft.data.checking import DataReport, Finding, check
from edgeft.data.options import CheckOptions
from edgeft.data.row_faults import ROW_KINDS, demojibaked
from edgeft.data.set_faults import SET_KINDS
from edgeft.data.similar import is_available
from edgeft.errors import InputError
from helpers.planted import PLANTS, Plant, clean_rows, json_rows, jsonl, labelled_rows, pairs

pytestmark = pytest.mark.unit

SEES_NEAR = pytest.mark.skipif(not is_available(), reason="datasketch is not installed")
NOT_OF_A_PLAIN_FILE = {"too-long", "refused-by-template", "no-stop", "test-leak", "near-test-leak"}
"""kinds that need a base or an embedded suite: tested apart"""


def report_of(path: Path, content: str | bytes, **options: Any) -> DataReport:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return check(CheckOptions(data=(path,), **options))


def findings_of(report: DataReport, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


@pytest.mark.parametrize("plant", [pytest.param(p, id=p.name) for p in PLANTS])
def test_a_planted_fault_is_found(plant: Plant, tmp_path: Path) -> None:
    if plant.kind.startswith("near-") and not is_available():
        pytest.skip("datasketch is not installed")
    against = tmp_path / "against.jsonl"
    if plant.against:
        against.write_text(plant.against)
    file = tmp_path / f"data{plant.suffix}"
    report = report_of(file, plant.content, against=(against,) if plant.against else ())
    found = [f for f in findings_of(report, plant.kind) if plant.message in f.message]
    assert len(found) == 1, [(f.kind, f.message) for f in report.findings]
    if plant.lines is not None:
        assert found[0].places == tuple(f"{file}:{line}" for line in plant.lines)
        assert found[0].rows == len(plant.lines)


def test_at_least_forty_kinds_are_planted_and_none_is_forgotten() -> None:
    planted = {plant.kind for plant in PLANTS}
    from edgeft.data.checking import KINDS

    assert len(planted) >= 40
    assert planted == set(KINDS) - NOT_OF_A_PLAIN_FILE
    assert len(KINDS) >= len(ROW_KINDS) + len(SET_KINDS)


@pytest.mark.parametrize("rows", [clean_rows(), labelled_rows(), json_rows(), pairs],
                         ids=["texts", "labels", "json", "pairs"])  # fmt: skip
def test_a_clean_corpus_has_no_finding(rows: list[Any], tmp_path: Path) -> None:
    report = report_of(tmp_path / "clean.jsonl", jsonl(rows), ignore=("unused-keys",))
    assert [(f.kind, f.evidence) for f in report.findings if f.severity != "note"] == []
    assert report.exit_code == 0 and report.rows == len(rows)


def test_a_share_of_faults_becomes_an_error(tmp_path: Path) -> None:
    rows = clean_rows(100)
    for count, severity in ((4, "warning"), (5, "error")):
        for row in rows[:count]:
            row["messages"][1]["content"] = "lost \ufffd bytes of a text."
        (finding,) = findings_of(
            report_of(tmp_path / "d.jsonl", jsonl(rows)), "replacement-character"
        )
        assert (finding.severity, finding.rows) == (severity, count)


def test_the_test_rows_of_an_embedded_suite_are_a_mistake_to_train_on(tmp_path: Path) -> None:
    test = load_suite("smart_home").test.read_text(encoding="utf-8").splitlines()
    train = load_suite("smart_home").train.read_text(encoding="utf-8")
    report = report_of(tmp_path / "d.jsonl", train + test[7] + "\n", test_sets=suite_tests())
    (finding,) = findings_of(report, "test-leak")
    assert finding.places == (f"{tmp_path}/d.jsonl:1001",) and finding.evidence == (
        "as test.jsonl:8",
    )
    assert report.exit_code == 3
    report = report_of(tmp_path / "d.jsonl", train, test_sets=suite_tests())
    assert report.exit_code == 0 and not findings_of(report, "test-leak")


@SEES_NEAR
def test_near_duplicates_are_those_of_the_exact_jaccard_similarity(tmp_path: Path) -> None:
    """The oracle counts runs of three words; MinHash may miss pairs near the threshold only."""
    rows = [" ".join(f"w{(i * 7 + j) % 1000}" for j in range(100)) for i in range(30)]
    variants = [row.split() for row in rows]
    for i, words in enumerate(variants):
        for j in range(i):  # ever more words differ
            words[(j * 37) % 100] = f"x{i}{j}"
    texts = [text for i in range(30) for text in (rows[i], " ".join(variants[i]))]
    content = jsonl([{"prompt": text, "answer": "fine"} for text in texts])
    report = report_of(tmp_path / "d.jsonl", content)
    found = {
        int(place.rpartition(":")[2]) for place in findings_of(report, "near-duplicates")[0].places
    }

    def runs(text: str) -> set[str]:
        words = f"{text} fine".split()
        return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}

    for i in range(1, 11):
        one, other = runs(texts[2 * i]), runs(texts[2 * i + 1])
        jaccard = len(one & other) / len(one | other)
        if jaccard > 0.9 or jaccard < 0.7:
            assert (2 * i + 2 in found) == (jaccard > 0.8), (i, jaccard)


def test_columns_are_mapped_and_what_is_left_out_is_named(tmp_path: Path) -> None:
    rows = [{"question": r["messages"][0]["content"], "reply": r["messages"][1]["content"],
             "output": "wrong"} for r in clean_rows()]  # fmt: skip
    options = {"columns": ("prompt=question", "answer=reply")}
    report = report_of(tmp_path / "d.jsonl", jsonl(rows), **options)
    assert report.columns == {"answer, prompt": 120}
    (finding,) = findings_of(report, "unused-keys")
    assert "output (120)" in finding.message
    for wrong in ("prompt", "prompt=", "quest=question"):
        with pytest.raises(InputError):
            report_of(tmp_path / "d.jsonl", jsonl(rows), columns=(wrong,))
    report = report_of(tmp_path / "d.jsonl", jsonl(rows), columns=("prompt=query",))
    assert report.bad == 120 and "no column 'query'" in report.findings[0].message


def test_files_to_compare_with_need_not_have_the_mapped_columns(tmp_path: Path) -> None:
    rows = [{"question": r["messages"][0]["content"], "reply": "fine"} for r in clean_rows()]
    other = tmp_path / "other.jsonl"
    options = {"columns": ("prompt=question", "answer=reply"), "against": (other,)}
    for content in (jsonl(clean_rows()[4:5]), jsonl(rows[4:5])):
        other.write_text(content)
        (leak,) = findings_of(report_of(tmp_path / "d.jsonl", jsonl(rows), **options), "leak")
        assert leak.places == (f"{tmp_path}/d.jsonl:5",)
    other.write_text(jsonl([{"ask": "a"}]))
    with pytest.raises(InputError, match="nothing to compare with"):
        report_of(tmp_path / "d.jsonl", jsonl(rows), **options)


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    rows = clean_rows()
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text(jsonl(rows[:60]))
    (tmp_path / "sub" / "b.json").write_text(json.dumps(rows[60:] + rows[:1]))
    (tmp_path / "a.jsonl.manifest.json").write_text("{}")
    report = check(CheckOptions(data=(tmp_path,)))
    assert report.rows == 121 and len(report.files) == 2
    (finding,) = findings_of(report, "exact-duplicates")
    assert finding.places == (f"{tmp_path}/sub/b.json:61",) and finding.evidence == (
        "as a.jsonl:1",
    )


def test_secrets_and_personal_data_are_not_repeated_in_the_report(tmp_path: Path) -> None:
    for plant in PLANTS:
        if plant.kind in ("secret", "personal-data"):
            report = report_of(tmp_path / "d.jsonl", plant.content)
            text = json.dumps([dataclasses.asdict(f) for f in findings_of(report, plant.kind)])
            for value in ("Ab3Ab3Ab3", "hunter22", "jane.roe", "7946", "4111", "3704", "9999"):
                assert value not in text


def test_demojibaked_reads_what_was_read_wrong() -> None:
    for text in ("Café d’or", "naïve – “quoted”", "Grüße", "плохо", "日本語"):
        wrong = "".join(
            bytes([b]).decode("cp1252") if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(b)
            for b in text.encode()
        )
        assert demojibaked(wrong) == text
        assert demojibaked(text) == text
