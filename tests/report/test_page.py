"""The report: its three files hold what the release says, and nothing of what models say is trusted."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.benchmarks.fidelity.compare import Estimate, Fidelity
from edgeft.benchmarks.fidelity.llama_perplexity import TokenScores
from edgeft.benchmarks.statistics.noninferiority import Paired, judge
from edgeft.benchmarks.statistics.retention import Retention
from edgeft.errors import InputError
from edgeft.records import Arm, Example, LatencyPoint, Memory, Message, Release, Score, Speed
from edgeft.release.forgetting import (
    Forgetting,
    ForgettingScores,
    forgetting_json,
    judge_forgetting,
)
from edgeft.release.wording import retention_json, verdict_json
from edgeft.report import page, plots, storage, tables
from helpers.releases import HOSTILE, bare, sample

VOID = {"meta", "link", "br", "img", "input", "hr"}
ALL = ("margin", "models", "figures", "latency", "fidelity", "slices", "refusals", "forgetting", "losses",
       "lineage", "reproduce", "machine", "notes")  # fmt: skip


class Reader(HTMLParser):
    """Elements in order, and whether each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]


@pytest.fixture(scope="module")
def full() -> Reader:
    return Reader(page.html(sample()))


def test_the_three_files(tmp_path: Path) -> None:
    release = sample()
    made = storage.write(release, tmp_path / "new" / "report")
    assert made == tmp_path / "new/report/report.html"
    assert {path.name for path in made.parent.iterdir()} == {
        "report.html", "report.json", "report.md"
    }  # fmt: skip
    again = storage.read(made.parent / "report.json")
    assert json.loads(json.dumps(again.to_json())) == json.loads(json.dumps(release.to_json()))
    assert page.html(again) == made.read_text(encoding="utf-8") == page.html(release)


def test_what_was_measured_outlives_a_page_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(release: Release) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(page, "html", broken)
    with pytest.raises(RuntimeError):
        storage.write(sample(), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["ship"] == "q4_k_m.gguf"
    assert not (tmp_path / "report.html").exists()


def test_the_page_is_well_formed_and_its_ids_are_unique(full: Reader) -> None:
    assert full.open == []
    ids = full.ids()
    assert len(ids) == len(set(ids)) > 20
    for _, attributes in full.tags:
        for key in ("aria-labelledby", "href"):
            for name in (attributes.get(key) or "").split():
                if key != "href" or name.startswith("#"):
                    assert name.lstrip("#") in ids


def test_the_decision_comes_first(full: Reader) -> None:
    names = [tag for tag, _ in full.tags]
    assert names[names.index("body") + 1] == "header"
    words = " ".join(full.text.split())
    assert words.index("Ship q4_k_m.gguf") < words.index("400 items, 5 lost and 4 won")
    assert words.index("5 lost and 4 won") < words.index("What was asked")
    assert "at most 3 points of accuracy" in words
    assert [i for i in full.ids() if i in ALL] == list(ALL)


@pytest.mark.parametrize(
    "says",
    [
        "96.2 %", "105.5 MB", "39 % of 270.9 MB", "2.57 times as fast", "99.7 %", "not tested",
        "94.2 % to 97.9 %", "−0.2 points", "−1.8 points at worst", "≥ 90 % proven", "INCONCLUSIVE",
        "own answers, 10,240 tokens", "0.0333 ± 0.0028", "same first choice", "0 of 400 answers differ",
        "94.0 % 188 of 200", "82 general items of general", "−11.0 points −19.0 points to −3.0 points",
        "At most 10.0 % may be lost", "+94.0 points", "new_phrasing", "5 of 12", "imatrix = yes", "ad" * 32, "62 %",
        "p50 18.2 · p95 20.2 · p99 21.0 ms", "256 + 128", "2.60 s · 2.81 s · 3.12 s",
        "edgeft merge-export --adapter demo/adapter", "Intel(R) Xeon(R)",
        "q2_k.gguf was not tested: the sequence ended before it", "2026-11-27 17:40:00 UTC",
    ],
)  # fmt: skip
def test_the_page_says(full: Reader, says: str) -> None:
    assert says in " ".join(full.text.split())


def test_what_models_say_stays_text(full: Reader) -> None:
    assert HOSTILE in full.text.replace("\n", "")
    assert not {"script", "iframe", "object", "img", "form"} & {tag for tag, _ in full.tags}
    for _, attributes in full.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "src"]
        assert (attributes.get("href") or "#").startswith(("#", "data:,", "report."))


@pytest.mark.parametrize("field", ["name", "identity", "path", "kind"])
def test_names_are_hostile_too(field: str) -> None:
    release = sample()
    arms = tuple(dataclasses.replace(arm, **{field: f'"><b>{getattr(arm, field)}{HOSTILE}'})
                 for arm in release.arms)  # fmt: skip
    texts = {key: HOSTILE for key in ("outcome", "ship", "reason", "edgeft", "created")}
    raw = dataclasses.replace(
        release, arms=arms, notes=(HOSTILE,), commands=(HOSTILE,), machine={HOSTILE: HOSTILE},
        task={"name": HOSTILE, "identity": HOSTILE}, safety={"name": HOSTILE, "arms": {
            HOSTILE: {"unsafe": 1, "refused": 1, "reason": HOSTILE, "outcome": HOSTILE}}},
        **texts,
    )  # fmt: skip
    read = Reader(page.html(raw))
    assert read.open == [] and not {"script", "img", "b"} & {tag for tag, _ in read.tags}


def test_a_pass_on_the_items_does_not_hide_lost_refusals() -> None:
    release = sample()
    assert release.safety
    release.safety["arms"]["q4_k_m.gguf"]["outcome"] = "FAIL"
    text = " ".join(Reader(page.html(release)).text.split())
    assert "q4_k_m.gguf ship PASS refusals: FAIL" in text
    assert "refusals: " not in Reader(page.html(sample())).text


def test_the_policy_allows_nothing_but_the_own_style(full: Reader) -> None:
    policy = next(a["content"] for t, a in full.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "script-src" not in policy and "unsafe-eval" not in policy
    assert "http" not in re.sub(r"http-equiv", "", page.html(sample()))


def test_what_was_not_measured_is_left_out() -> None:
    read = Reader(page.html(bare()))
    found = [i for i in read.ids() if i in ALL]
    assert found == ["margin", "models", "figures", "lineage", "machine"]
    words = " ".join(read.text.split())
    assert "Ship none of the candidates" in words and "46 / 2" in words
    assert not {"Latency", "Losses", "Fidelity", "Refusals", "Notes", "peak memory", "gain left",
                "None"} & set(re.split(r" (?=[A-Z])|(?<=[a-z]) (?=[a-z])", words))  # fmt: skip
    for word in ("Latency", "Losses", "Fidelity", "Refusals", "peak memory", "gain left", "None"):
        assert word not in words
    assert [t for t, _ in read.tags].count("svg") == 2


@pytest.mark.parametrize("part", [f.name for f in dataclasses.fields(Arm) if f.name not in
                                  ("name", "kind", "path", "size", "identity", "pareto")])  # fmt: skip
def test_every_part_of_an_arm_may_be_absent(part: str) -> None:
    release = sample()
    empty: Any = () if part in ("slices", "losses", "lineage") else None
    arms = tuple(dataclasses.replace(arm, **{part: empty}) for arm in release.arms)
    assert Reader(page.html(dataclasses.replace(release, arms=arms))).open == []


@pytest.mark.parametrize("part", ["speed", "memory", "verdict", "retention", "fidelity"])
def test_every_key_of_a_part_may_be_absent(part: str) -> None:
    release = sample()
    for key in getattr(release.arms[4], part):
        arms = []
        for arm in release.arms:
            rest = {k: v for k, v in (getattr(arm, part) or {}).items() if k != key}
            arms.append(dataclasses.replace(arm, **{part: rest or None}))
        assert Reader(page.html(dataclasses.replace(release, arms=tuple(arms)))).open == []


def test_a_release_without_arms_is_still_a_page() -> None:
    empty = Release("INCONCLUSIVE", None, "", {}, (), {})
    assert "Not decided yet" in Reader(page.html(empty)).text
    assert tables.arms_table(()) in page.markdown(empty)


def test_the_note(tmp_path: Path) -> None:
    text = page.markdown(sample())
    first, table, reason, *rest = text.split("\n\n")
    assert first == "**PASS: ship `q4_k_m.gguf`**"
    assert len(table.splitlines()) == 2 + len(sample().arms)
    assert "with 95 % confidence" in reason
    assert "```sh\nedgeft merge-export" in text and "Intel(R) Xeon(R)" in rest[-1]
    assert f"`{sample().arms[5].identity}`" in text


def test_a_cell_cannot_leave_its_table() -> None:
    assert tables.table(["a"], [["b|c\nd"]]).splitlines()[2] == r"| b\|c d |"


def test_numbers_that_json_cannot_say(tmp_path: Path) -> None:
    release = sample()
    arm = dataclasses.replace(
        release.arms[5], accuracy=float("nan"), memory={"peak": float("inf")},
        losses=({"prompt": "\ud800", "wanted": "\x00", "baseline": "", "answer": "\udfff"},),
    )  # fmt: skip
    storage.write(dataclasses.replace(release, arms=(*release.arms[:5], arm)), tmp_path)
    again = storage.read(tmp_path / "report.json").arms[5]
    assert again.accuracy is None and again.memory == {"peak": None}
    assert again.losses[0]["prompt"] == "?"


@pytest.mark.parametrize(
    ("before", "after", "left", "right"),
    [
        ('{"a":16}', '{"a":60}', ["16"], ["60"]),
        ("on", "", ["on"], []),
        ("same words", "same words", [], []),
        ("one two", "one  two", [" "], ["  "]),
        ("turn it off", "turn off", ["it "], []),
    ],
)
def test_differing_words(before: str, after: str, left: list[str], right: list[str]) -> None:
    one, other = page.difference(before, after)
    assert "".join(text for _, text in one) == before
    assert "".join(text for _, text in other) == after
    assert [text for differs, text in one if differs] == left
    assert [text for differs, text in other if differs] == right


def test_a_reply_that_repeats_itself_takes_no_time() -> None:
    started = time.process_time()
    one, other = page.difference("{ " * 800, "} { " * 400)
    assert time.process_time() - started < 2
    assert "".join(text for _, text in one + other) == "{ " * 800 + "} { " * 400


@pytest.mark.parametrize(
    ("value", "says"),
    [(0.9625, "96.2 %"), (1, "100 %"), (0, "0 %"), (0.99999, "99.999 %"), (None, ""), ("x", "")],
)
def test_percent(value: Any, says: str) -> None:
    assert page.percent(value) == says


@pytest.mark.parametrize(
    ("value", "says"),
    [(0, "0"), (0.001234, "0.00123"), (61.23, "61.2"), (1234.5, "1,234"), (2.3e-6, "2.3e-6"),
     (0.08, "0.0800"), (float("nan"), ""), (None, "")],
)  # fmt: skip
def test_rounded(value: Any, says: str) -> None:
    assert page.rounded(value) == says


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 300, [0, 100, 200, 300]), (-9.5, 1, [-5, 0]), (5, 5, [5]), (0.2, 0.9, None)],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float] | None) -> None:
    found = plots.ticks(low, high)
    assert all(low <= value <= high + 1e-9 for value in found) and 1 <= len(found) <= 6
    assert expected is None or found == pytest.approx(expected)


def test_points_lie_where_their_numbers_say() -> None:
    """Larger is further right, better is higher, whiskers end at the bounds."""
    points = [plots.Point("a", 1e8, -2.0, "pass", -3.0, -1.0), plots.Point("b", 2e8, 0.0, "fail")]
    svg = plots.scatter("n", "t", points, str, str, "x", "y", line=0.0, band=(-3.0, 0.0))
    circle = re.search(r'<circle class="pass" cx="([\d.]+)" cy="([\d.]+)"', svg)
    cross = re.search(r'<path class="fail" d="M([\d.]+) ([\d.]+)', svg)
    band = re.search(r'class="band" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', svg)
    whisker = re.search(r'class="whisker" d="M[\d.]+ ([\d.]+)h6M[\d.]+ [\d.]+V([\d.]+)', svg)
    assert circle and cross and band and whisker
    assert float(circle[1]) < float(cross[1]) and float(circle[2]) > float(cross[2])
    top, height = float(band[1]), float(band[2])
    assert float(cross[2]) + 4 == pytest.approx(top, abs=0.11)
    assert float(whisker[2]) == pytest.approx(top + height, abs=0.11)
    assert float(whisker[1]) == pytest.approx(top + height / 3, abs=0.11)


def test_labels_do_not_cover_each_other() -> None:
    points = [plots.Point(f"name_{i}", 1e8 + i * 4e6, i * 0.1, "pass") for i in range(6)]
    svg = plots.scatter("n", "t", points, str, str, "x", "y")
    boxes = [(float(x), float(y), len(text) * plots.LETTER_WIDTH) for x, y, text in
             re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)">([^<]+)<', svg)]  # fmt: skip
    assert len(boxes) == 6
    for i, (x, y, width) in enumerate(boxes):
        for other, at, _ in boxes[i + 1 :]:
            assert abs(y - at) >= 8 or abs(x - other) >= width - 1


def documented() -> dict[str, set[str]]:
    text = (Path(tables.__file__).parent / "SCHEMA.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {part.split()[0]: set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE))
            for part in parts}  # fmt: skip


def test_tasks_that_the_scorer_names_have_a_table() -> None:
    release = sample()
    assert tables.task_lines(release) == []
    several = dataclasses.replace(
        release, task=release.task | {"scorer": "exact,set=json,off=json"}
    )
    lines = "\n".join(tables.task_lines(several)).split("\n")
    assert lines[3].startswith("| task") and "base | baseline | q8_0.gguf" in lines[3]
    assert [line.split()[1] for line in lines if line.startswith("| ")][1:] == ["set", "off"]
    assert "Accuracy per task:" in tables.release_text(several)


def _forgotten() -> Forgetting:
    example = Example((Message("user", "q"), Message("assistant", "a")), ("tag",))
    one = Score("x", "", "exact", ("a",), (1.0,), (True,), 0.0)
    return judge_forgetting(ForgettingScores((example,), one, one, one), 0.5, 0.1)


def test_the_schema_is_documented() -> None:
    known = documented()
    for name, kind in (("release", Release), ("arm", Arm)):
        assert known[name] == {f.name for f in dataclasses.fields(kind)}
    for name, kind in (("speed", Speed), ("memory", Memory), ("cell", LatencyPoint)):
        fields = {f.name for f in dataclasses.fields(kind)}
        assert fields <= known[name], f"SCHEMA.md lacks {sorted(fields - known[name])} of {name}"
    scores = TokenScores(*np.full((4, 2), 0.5))
    estimates = [Estimate(0, 0)] * 3
    fidelity = Fidelity(2, 2, *estimates, 0, 1, {}, scores)
    assert set(fidelity.to_json()) == known["fidelity"]
    verdict = judge(Paired(400, 390, 2, 1, 7))
    assert set(verdict_json(verdict, "")) == known["verdict"]
    forgotten = forgetting_json(_forgotten())
    assert set(forgotten) == known["forgotten"] and set(forgotten["slices"][0]) == known["slice"]
    assert set(retention_json(Retention(0.5, 0.01, 0.9, True))) == known["retention"]


def test_what_a_release_holds_is_documented() -> None:
    raw, known = sample().to_json(), documented()
    arm = raw["arms"][6]
    parts = {
        "task": raw["task"], "safety": raw["safety"], "floor": raw["floor"],
        "refusals": raw["safety"]["arms"]["q4_k_m.gguf"], "verdict": arm["verdict"],
        "retention": arm["retention"], "speed": arm["speed"], "cell": arm["speed"]["cells"][0],
        "roofline": arm["speed"]["roofline"], "memory": arm["memory"],
        "fidelity": arm["fidelity"]["plain text"], "slice": arm["slices"][0],
        "loss": arm["losses"][0], "ancestor": arm["lineage"][0],
        "forgetting": raw["forgetting"], "forgotten": raw["forgetting"]["arms"]["q4_k_m.gguf"],
    }  # fmt: skip
    assert {name: set(part) for name, part in parts.items()} == {
        name: known[name] for name in parts
    }


def test_the_command_makes_the_page_again(edgeft: Callable[..., Any], tmp_path: Path) -> None:
    made = storage.write(sample(), tmp_path / "one")
    before = made.read_text()
    made.unlink()
    ran = edgeft("report", tmp_path / "one/report.json")
    assert ran.code == 0 and ran.out.strip() == str(made) and made.read_text() == before
    ran = edgeft("report", tmp_path / "one/report.json", "--out", tmp_path / "two", "--json")
    assert json.loads(ran.out)["ship"] == "q4_k_m.gguf"
    assert (tmp_path / "two/report.html").read_text() == before


def test_another_report_is_not_overwritten(edgeft: Callable[..., Any], tmp_path: Path) -> None:
    page_of_bare = storage.write(bare(), tmp_path).read_text()
    (tmp_path / "old.json").write_text(json.dumps(sample().to_json()))
    ran = edgeft("report", tmp_path / "old.json")
    assert ran.code == 2 and "--out" in ran.err
    assert (tmp_path / "report.html").read_text() == page_of_bare


def spoiled(**changes: Any) -> str:
    return json.dumps(sample().to_json() | changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("\x80", "is not UTF-8"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no schema"),
        ('{"schema": "1"}', "has no schema"),
        ('{"schema": 1}', "is no report"),
        (spoiled(schema=99), "newer edgeft"),
        (spoiled(more=1), "is no report"),
        (spoiled(arms=[{"name": "a"}]), "is no report"),
        (spoiled(arms=5), "is no report"),
        (spoiled(safety={"arms": 5}), "is no report"),
        (spoiled(task=None, arms=[sample().to_json()["arms"][6] | {"speed": {"cells": 3}}]),
         "is no report"),
        (spoiled(arms=[sample().to_json()["arms"][6] | {"losses": [{"baseline": 3}]}]),
         "is no report"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    edgeft: Callable[..., Any], tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(text.encode("latin-1", "backslashreplace"))
    ran = edgeft("report", file, "--out", tmp_path)
    assert (ran.code, ran.out) == (1, "") and says in ran.err and ran.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        storage.read(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        storage.read(tmp_path)
