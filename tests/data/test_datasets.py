"""clean, split and mix: what they keep, where they put it, and the manifest that they leave."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.data.cleaning import DROPS, FIXES, chosen_rules, clean
from edgeft.data.items import read_items
from edgeft.data.mixing import Source, chosen_rows, mix, row_counts
from edgeft.data.options import CleanOptions, MixOptions, SplitOptions
from edgeft.data.partition import Placement, split_files
from edgeft.data.rows import load_examples
from edgeft.data.similar import is_available
from edgeft.errors import DataError, InputError, MissingExtra, StaleError
from helpers.planted import PLANTS, clean_rows, jsonl

pytestmark = pytest.mark.unit


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def file_of(path: Path, rows: list[Any]) -> Path:
    path.write_text(jsonl(rows), encoding="utf-8")
    return path


# ---- clean


@pytest.mark.parametrize("plant", [
    pytest.param(p, id=p.name) for p in PLANTS
    if p.kind in DROPS and p.lines is not None and p.suffix == ".jsonl" and not p.kind.startswith("near")
])  # fmt: skip
def test_a_rule_leaves_out_the_rows_that_the_check_names(plant: Any, tmp_path: Path) -> None:
    data, output = tmp_path / "data.jsonl", tmp_path / "clean.jsonl"
    data.write_text(plant.content)
    against = (file_of(tmp_path / "a.jsonl", [json.loads(x) for x in plant.against.splitlines()]),)
    result = clean(
        CleanOptions((data,), output, rules=(plant.kind,), against=against if plant.against else ())
    )
    assert result.counts == {plant.kind: len(plant.lines)}
    every = plant.content.splitlines()
    kept = [line for i, line in enumerate(every, start=1) if i not in plant.lines]
    assert lines_of(output) == [json.loads(line) for line in kept]
    assert result.kept == len(kept) == result.rows - len(plant.lines)


@pytest.mark.skipif(not is_available(), reason="datasketch is not installed")
def test_near_duplicates_are_left_out(tmp_path: Path) -> None:
    (plant,) = (p for p in PLANTS if p.kind == "near-duplicates")
    (tmp_path / "data.jsonl").write_text(str(plant.content))
    result = clean(
        CleanOptions((tmp_path / "data.jsonl",), tmp_path / "c.jsonl", rules=("near-duplicates",))
    )
    assert result.counts == {"near-duplicates": 2} and result.kept == 120


def test_fixes_mend_every_text_and_keep_the_shape_of_the_row(tmp_path: Path) -> None:
    row = {
        "instruction": "  Where\u200b is the Caf\u00c3\u00a9?\r\n",
        "input": "",
        "output": "Here.\x00",
        "id": 7,
    }
    rows = [row, {"instruction": "a", "input": "", "output": "b", "id": " 8 "}]
    result = clean(CleanOptions((file_of(tmp_path / "d.jsonl", rows),), tmp_path / "c.jsonl"))
    assert lines_of(tmp_path / "c.jsonl") == [
        {"instruction": "Where is the Café?", "input": "", "output": "Here.", "id": 7},
        {"instruction": "a", "input": "", "output": "b", "id": "8"},
    ]
    assert result.counts == {"fix-mojibake": 1, "strip-controls": 1, "unix-lines": 1, "strip-space": 2,
                             "bad-rows": 0, "exact-duplicates": 0}  # fmt: skip


def test_masks_leave_no_value_behind(tmp_path: Path) -> None:
    text = (
        "Write to jane.roe@mail-service.org, key sk-" + "Ab3" * 10 + ", card 4111 1111 1111 1111."
    )
    data = file_of(tmp_path / "d.jsonl", [{"prompt": text, "answer": "Done."}])
    clean(CleanOptions((data,), tmp_path / "c.jsonl", rules=("mask-secrets", "mask-personal-data")))
    (row,) = lines_of(tmp_path / "c.jsonl")
    assert row["prompt"] == "Write to [email address], key [secret], card [card number]."


def test_rules_that_do_not_exist_or_cannot_work_are_refused(tmp_path: Path) -> None:
    assert chosen_rules(("default",), True)[-1] == "leak"
    for names in (("exact-duplicate",), ("leak",)):
        with pytest.raises(InputError):
            chosen_rules(names, False)
    if not is_available():
        with pytest.raises(MissingExtra, match="datasketch"):
            chosen_rules(("near-duplicates",), False)
    assert not set(FIXES) & set(DROPS)
    data = file_of(tmp_path / "d.jsonl", [{"prompt": "a", "answer": "nan"}])
    with pytest.raises(InputError, match="leave none"):
        clean(CleanOptions((data,), tmp_path / "c.jsonl", rules=("placeholder-text",)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl"]


# ---- split


def splits_of(folder: Path) -> dict[str, str]:
    """Question -> split."""
    return {
        example.messages[0].content: path.stem
        for path in folder.glob("*.jsonl")
        for example in load_examples(path)
    }


def test_added_rows_move_no_others(tmp_path: Path) -> None:
    rows = clean_rows(600)
    for stratify in ("", "tags"):
        rows = [row | {"tags": [f"t{i % 3}"]} for i, row in enumerate(rows)]
        first = file_of(tmp_path / "a.jsonl", rows[:400])
        more = file_of(tmp_path / "b.jsonl", rows)
        options: dict[str, Any] = {"test": 0.2, "stratify": stratify}
        split_files(SplitOptions((first,), tmp_path / f"a{stratify}", **options))
        split_files(SplitOptions((more,), tmp_path / f"b{stratify}", **options))
        before, after = splits_of(tmp_path / f"a{stratify}"), splits_of(tmp_path / f"b{stratify}")
        assert len(before) == 400 and len(after) == 600
        assert all(after[question] == split for question, split in before.items())
    # Without strata not even the order of the rows counts.
    split_files(
        SplitOptions((file_of(tmp_path / "c.jsonl", rows[::-1]),), tmp_path / "c", test=0.2)
    )
    assert splits_of(tmp_path / "c") == splits_of(tmp_path / "b")


def test_no_group_is_in_two_splits(tmp_path: Path) -> None:
    rows = [row | {"user": f"u{i % 40}"} for i, row in enumerate(clean_rows(400))]
    for stratify in ("", "user"):
        out = tmp_path / f"out{stratify}"
        data = file_of(tmp_path / "d.jsonl", rows)
        split_files(
            SplitOptions((data,), out, validation=0.3, test=0.3, group="user", stratify=stratify)
        )
        users = {path.stem: {row["user"] for row in lines_of(path)} for path in out.glob("*.jsonl")}
        assert sum(map(len, users.values())) == 40 == len(set.union(*users.values()))
    doubled = [row for row in rows[:100] for _ in range(2)]  # one question twice: one split
    split_files(
        SplitOptions((file_of(tmp_path / "e.jsonl", doubled),), tmp_path / "e", validation=0.5)
    )
    assert len(splits_of(tmp_path / "e")) == 100
    counts = [len(lines_of(path)) for path in (tmp_path / "e").glob("*.jsonl")]
    assert sum(counts) == 200 and all(count % 2 == 0 for count in counts)


def test_every_stratum_has_its_shares(tmp_path: Path) -> None:
    sizes = {"a": 300, "b": 100, "c": 20}
    labels = [label for label, size in sizes.items() for _ in range(size)]
    rows = [{"prompt": f"text {i}", "answer": label} for i, label in enumerate(labels)]
    options = SplitOptions(
        (file_of(tmp_path / "d.jsonl", rows),), tmp_path / "out", 0.1, 0.2, stratify="answer"
    )
    result = split_files(options)
    for label, size in sizes.items():
        for split, share in (("validation", 0.1), ("test", 0.2), ("train", 0.7)):
            assert abs(result.strata[label][split] - share * size) <= 2
    assert sum(result.splits.values()) == 420


def test_another_seed_gives_another_split_of_the_same_size() -> None:
    names = [f"g{i}" for i in range(4000)]
    splits = [
        [Placement({"test": 0.25}, seed).split_of(name) for name in names] for seed in (0, 0, 1)
    ]
    assert splits[0] == splits[1] != splits[2]
    for split in splits:
        assert abs(split.count("test") - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5
    both = sum(a == b == "test" for a, b in zip(splits[0], splits[2], strict=True))
    assert abs(both - 250) < 4 * 250**0.5  # independent of each other


def test_a_split_that_would_be_empty_writes_nothing(tmp_path: Path) -> None:
    data = file_of(tmp_path / "d.jsonl", clean_rows(30))
    for options in ({"validation": 0.0}, {"validation": 0.6, "test": 0.4}, {"validation": 1e-6},
                    {"group": "user"}, {"stratify": "label"}):  # fmt: skip
        with pytest.raises(InputError):
            split_files(SplitOptions((data,), tmp_path / "out", **options))  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()


def test_bad_rows_stop_or_are_skipped(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(jsonl(clean_rows(40)) + "{broken\n")
    with pytest.raises(DataError, match="d.jsonl:41"):
        split_files(SplitOptions((data,), tmp_path / "out", validation=0.5))
    with pytest.raises(DataError, match="d.jsonl:41"):
        mix(MixOptions((str(data),), tmp_path / "mix.jsonl"))
    result = split_files(SplitOptions((data,), tmp_path / "out", validation=0.5, bad_rows="skip"))
    assert sum(result.splits.values()) == 40


# ---- mix


def files_of(folder: Path, **sizes: int) -> dict[str, Path]:
    return {
        name: file_of(
            folder / f"{name}.jsonl",
            [{"prompt": f"{name} {i}", "answer": "x"} for i in range(size)],
        )
        for name, size in sizes.items()
    }


def test_weights_are_shares_of_the_rows(tmp_path: Path) -> None:
    files = files_of(tmp_path, a=900, b=500, general=300)
    result = mix(MixOptions((f"{files['a']}=3", str(files["b"])), tmp_path / "mix.jsonl",
                            replay=(files["general"],), replay_share=0.1))  # fmt: skip
    a, b, general = result.rows.values()
    assert (a, b) == (900, 300) and abs(general / (a + b + general) - 0.1) < 0.001
    rows = lines_of(tmp_path / "mix.jsonl")
    counts = collections.Counter(row["tags"][0] for row in rows)
    assert counts == {"a": 900, "b": 300, "general": general}
    assert len({row["prompt"] for row in rows}) == len(rows)  # no row twice
    for start in range(0, 1300, 100):  # evenly interleaved
        part = collections.Counter(row["tags"][0] for row in rows[start : start + 100])
        assert abs(part["b"] - 22.5) <= 2 and abs(part["general"] - 10) <= 2


def test_temperature_counts_small_files_more(tmp_path: Path) -> None:
    files = files_of(tmp_path, a=800, b=200)
    shares = {}
    for temperature in (1.0, 2.0, 1e9):
        out = tmp_path / f"mix{temperature:.0f}.jsonl"
        result = mix(
            MixOptions((str(files["a"]), str(files["b"])), out, temperature=temperature, rows=300)
        )
        shares[temperature] = result.rows[str(files["b"])]
    assert shares == {1.0: 60, 2.0: 100, 1e9: 150}  # 1/5, sqrt(1/4) to 1, 1/2


def test_rows_beyond_a_file_are_repeated_evenly(tmp_path: Path) -> None:
    files = files_of(tmp_path, a=40, b=100)
    mix(MixOptions((str(files["a"]), str(files["b"])), tmp_path / "mix.jsonl", rows=200))
    counts = collections.Counter(row["prompt"] for row in lines_of(tmp_path / "mix.jsonl"))
    assert {counts[f"a {i}"] for i in range(40)} == {2, 3} and sum(counts.values()) == 200
    assert {counts[f"b {i}"] for i in range(100)} == {1}


def test_a_sample_takes_each_row_equally_often(tmp_path: Path) -> None:
    file = files_of(tmp_path, a=50)["a"]
    source = Source(file, (file,), 50, 1.0)
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(200):
        counts.update(row["prompt"] for row in chosen_rows(source, 10, seed, "stop"))
    assert sum(counts.values()) == 2000  # 40 of each row, standard deviation 5.7
    assert all(15 < counts[f"a {i}"] < 65 for i in range(50))


def test_row_counts_add_up() -> None:
    path = Path("a")
    sources = [Source(path, (path,), 1000, share) for share in (1 / 3, 1 / 3, 1 / 3)]
    assert sum(row_counts(sources, 100)) == 100 and row_counts(sources, None) == [1000, 1000, 1000]
    with pytest.raises(InputError, match="no row among"):
        row_counts([Source(path, (path,), 9, 0.99), Source(path, (path,), 9, 0.01)], 10)


def test_contradictory_shares_are_refused(tmp_path: Path) -> None:
    files = files_of(tmp_path, a=40, b=40)
    a, b, out = str(files["a"]), str(files["b"]), tmp_path / "mix.jsonl"
    for words, options in (
        ((f"{a}=0", b), {}), ((f"{a}=x", b), {}), ((a, a), {}), ((f"{a}=2", b), {"temperature": 2.0}),
        ((a,), {"replay": (files["b"],), "replay_share": 1.0}), ((str(tmp_path / "none.jsonl"),), {}),
    ):  # fmt: skip
        with pytest.raises(InputError):
            mix(MixOptions(words, out, **options))  # type: ignore[arg-type]
    assert not out.exists()


# ---- the noun


def test_a_dataset_has_a_manifest_with_its_parents_and_is_made_once(tmp_path: Path) -> None:
    data = file_of(tmp_path / "d.jsonl", clean_rows(50))
    out = tmp_path / "clean.jsonl"
    options = CleanOptions((data,), out)
    first = clean(options)
    manifest = store.read_manifest(out)
    assert manifest is not None and manifest.kind == "dataset"
    assert manifest.parents == {"data": store.identity(data)}
    assert manifest.files["clean.jsonl"].sha256 == store.identity(out)
    stamp = out.stat().st_mtime_ns
    assert clean(options) == first and out.stat().st_mtime_ns == stamp
    with pytest.raises(StaleError):
        clean(CleanOptions((data,), out, rules=("strip-space",)))
    clean(CleanOptions((data,), out, rules=("strip-space",)), overwrite=True)
    foreign = file_of(tmp_path / "mine.jsonl", [])
    with pytest.raises(StaleError):
        clean(CleanOptions((data,), foreign))
    split_files(SplitOptions((out,), tmp_path / "s", validation=0.5))
    split_manifest = store.read_manifest(tmp_path / "s")
    assert split_manifest is not None and split_manifest.parents == {"data": store.identity(out)}
    assert set(split_manifest.files) == {"train.jsonl", "validation.jsonl"}
    assert sum(1 for _ in read_items([tmp_path / "s"])) == 50  # a folder: without its manifest
