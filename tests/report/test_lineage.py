"""Hashes of a result and of what it was made from: intact, changed in any byte, and moved away."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import files, store
from edgeft.data.mixing import mix
from edgeft.data.options import MixOptions
from edgeft.data.sources import training_identity
from edgeft.errors import InputError
from edgeft.report.lineage import verify

pytestmark = pytest.mark.unit


@pytest.fixture
def lineage(tmp_path: Path) -> Path:
    """chats.jsonl and base/ -> adapter/ -> out/q4_0.gguf, by the store alone."""
    rows = tmp_path / "chats.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    base = tmp_path / "models" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(bytes(range(64)))
    adapter = tmp_path / "adapter"
    parents = {"base": store.identity(base), "data": store.identity(rows)}
    options = {"base": str(base), "data": str(rows)}
    with store.writing(adapter, kind="adapter", options=options, parents=parents) as draft:
        (draft.path / "adapter_config.json").write_text("{}")
        (draft.path / "adapter_model.safetensors").write_bytes(bytes(range(100)))
    artifact = tmp_path / "out" / "q4_0.gguf"
    parents = {"base": store.identity(base), "adapter": store.identity(adapter)}
    with store.writing(artifact, kind="artifact", options={}, parents=parents) as draft:
        draft.path.write_bytes(random.Random(0).randbytes(500))
    return artifact


def states(target: Path, *look_in: Path) -> list[tuple[str, int, str]]:
    return [(check.role, check.depth, check.state) for check in verify(target, look_in)]


def test_everything_is_found_where_it_was(lineage: Path) -> None:
    # The artifact does not record the base's place; the adapter does.
    assert states(lineage) == [
        ("artifact", 0, "ok"), ("base", 1, "ok"), ("adapter", 1, "ok"), ("base", 2, "ok"),
        ("data", 2, "ok"),
    ]  # fmt: skip


def flip_bit(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))


def test_any_flipped_bit_is_found(lineage: Path) -> None:
    adapter = lineage.parent.parent / "adapter"
    places = [(lineage, lineage)]
    places += [
        (adapter, adapter / f"adapter_{name}") for name in ("config.json", "model.safetensors")
    ]
    for result, path in places:
        manifest = store.read_manifest(result)
        assert manifest is not None
        for at, bit in itertools.product(range(path.stat().st_size), range(8)):
            flip_bit(path, at, 1 << bit)
            files.forget_hashes()
            assert store.damaged(result, manifest) == [
                f"{path} has other bytes than when it was written"
            ]
            flip_bit(path, at, 1 << bit)
    assert "damaged" not in {state for *_, state in states(lineage)}


def test_what_has_changed_is_said(lineage: Path) -> None:
    adapter = lineage.parent.parent / "adapter"
    (adapter / "adapter_config.json").unlink()
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (check,) = [check for check in verify(lineage) if check.state == "damaged"]
    assert check.role == "adapter" and check.problems == (
        f"{adapter}/adapter_config.json is missing",
        f"{adapter}/adapter_model.safetensors has 0 bytes, not 100",
        f"{adapter}/chat_template.jinja was added",
    )


@pytest.mark.parametrize("name", ["chats.jsonl", "models/base/model.safetensors"])
def test_a_parent_that_was_changed_at_its_place_is_damaged(
    lineage: Path, name: str, edgeft: Callable[..., Any]
) -> None:
    file = lineage.parent.parent / name
    file.write_bytes(file.read_bytes()[::-1])
    place = file if file.suffix == ".jsonl" else file.parent
    role = "data" if file.suffix == ".jsonl" else "base"
    (check,) = [check for check in verify(lineage) if check.state == "damaged"]
    assert (check.role, check.depth, check.path) == (role, 2, place)
    assert check.problems == (f"{place} has other bytes than when it was read",)
    assert edgeft("verify", lineage).code == 3
    place.rename(lineage.parent.parent / "gone")
    assert (role, 2, "not found") in states(lineage) and edgeft("verify", lineage).code == 0


def test_a_parent_with_a_broken_manifest_is_damaged(
    lineage: Path, edgeft: Callable[..., Any]
) -> None:
    manifest = lineage.parent.parent / "adapter" / "manifest.json"
    manifest.write_text("{")
    (check,) = [check for check in verify(lineage) if check.state == "damaged"]
    assert check.role == "adapter" and f"{manifest} is not a manifest" in check.problems[0]
    done = edgeft("verify", lineage)
    assert done.code == 3 and "delete it" not in done.out + done.err


def test_a_result_with_a_broken_manifest_is_damaged(
    lineage: Path, edgeft: Callable[..., Any]
) -> None:
    store.manifest_path(lineage).write_text("{")
    done = edgeft("verify", lineage)
    assert done.code == 3 and f"{lineage}.manifest.json is not a manifest" in done.out
    assert "delete it" not in done.out + done.err


def test_bytes_that_changed_under_the_same_size_and_time_are_found(lineage: Path) -> None:
    assert "damaged" not in {state for *_, state in states(lineage)}
    stat = lineage.stat()
    flip_bit(lineage, 7, 1)
    os.utime(lineage, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert states(lineage)[0] == ("artifact", 0, "damaged")


def test_two_files_of_the_same_bytes_are_not_each_others_parents(tmp_path: Path) -> None:
    text = '{"prompt": "a", "answer": "b"}\n'
    raw = tmp_path / "raw.txt"
    raw.write_text(text)
    for name in ("a.jsonl", "b.jsonl"):
        parents = {"data": store.identity(raw)}
        with store.writing(
            tmp_path / name, kind="dataset", options={"data": []}, parents=parents
        ) as draft:
            draft.path.write_text(text)
    raw.unlink()
    expected = [("dataset", 0, "ok"), ("data", 1, "ok"), ("data", 2, "not found")]
    assert states(tmp_path / "a.jsonl") == expected
    # Cleaned into its own place: what was read is gone.
    with store.writing(
        tmp_path / "c.jsonl", kind="dataset", options={"data": [str(tmp_path / "c.jsonl")]},
        parents={"data": "0" * 64},
    ) as draft:  # fmt: skip
        draft.path.write_text("{}\n")
    assert states(tmp_path / "c.jsonl") == [("dataset", 0, "ok"), ("data", 1, "not found")]


def test_parents_are_found_from_inside_the_results_folder(
    lineage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lineage.parent)
    found = {check.role: check.path for check in verify(Path("q4_0.gguf"))}
    assert (found["artifact"], found["adapter"]) == (Path("q4_0.gguf"), Path("../adapter"))
    monkeypatch.chdir("../adapter")
    assert states(Path()) == [("adapter", 0, "ok"), ("base", 1, "ok"), ("data", 1, "ok")]


def train(folder: Path, options: dict[str, Any], parents: dict[str, str]) -> Path:
    with store.writing(
        folder / "adapter", kind="adapter", options=options, parents=parents
    ) as draft:
        (draft.path / "adapter_config.json").write_text("{}")
    return folder / "adapter"


def test_a_folder_of_documents_is_read_as_the_training_read_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("a.txt", "b.txt"):
        (texts / name).write_text(name)
    parents = {"data": training_identity(texts, "train", layout="documents", notes=False)}
    adapter = train(tmp_path, {"data": str(texts), "objective": "pretrain"}, parents)
    assert states(adapter)[1:] == [("data", 1, "ok")]
    assert states(adapter, texts)[1:] == [("data", 1, "ok")]
    (texts / "b.txt").write_text("c")
    assert states(adapter)[1:] == [("data", 1, "damaged")]
    assert capfd.readouterr().err == "", "no notes on what is read"


def test_the_files_of_a_mix_are_found(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    rows = ["one.jsonl", "raw/two.jsonl", "raw/validation.jsonl", "general.jsonl"]
    for name in rows:
        (tmp_path / name).write_text(json.dumps({"prompt": name, "answer": "b"}) + "\n")
    options = MixOptions(
        data=(f"{tmp_path}/one.jsonl=3", f"{tmp_path}/raw"), output=tmp_path / "far" / "mix.jsonl",
        replay=(tmp_path / "general.jsonl",), replay_share=0.1, rows=20,
    )  # fmt: skip
    mix(options)
    roles = ("data 1", "data 2", "replay")
    found = [(role, 1, "ok") for role in roles]
    assert states(options.output)[1:] == found
    (tmp_path / "one.jsonl").write_text("{}\n")
    (tmp_path / "raw" / "two.jsonl").write_text("{}\n")
    damaged = [("data 1", 1, "damaged"), ("data 2", 1, "damaged")]
    assert states(options.output)[1:3] == damaged
    (tmp_path / "raw").rename(tmp_path / "moved")
    assert states(options.output)[2] == ("data 2", 1, "not found")


def test_files_that_a_manifest_only_names_lie_beside_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = {"imatrix": "sums.dat", "calibration": "wiki.raw", "validation": "held.jsonl"}
    parents = {}
    for role, name in options.items():
        (elsewhere / name).write_text(role)
        parents[role] = store.identity(elsewhere / name)
    with store.writing(
        beside / "a.gguf", kind="artifact", options=options, parents=parents
    ) as draft:
        draft.path.write_text("GGUF")
    monkeypatch.chdir(elsewhere)
    assert {state for *_, state in states(beside / "a.gguf")[1:]} == {"not found"}
    for name in options.values():
        (elsewhere / name).rename(beside / name)
    assert {state for *_, state in states(beside / "a.gguf")} == {"ok"}


def test_only_what_may_be_the_parent_is_read(
    lineage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lineage.parent.parent
    shutil.move(root / "chats.jsonl", root / "elsewhere.jsonl")
    (root / "photos").mkdir()
    for name in ("photos/rows.jsonl", "film.bin", "out/other.gguf", "candidate.jsonl"):
        (root / name).write_text(name)
    read = set()

    def hashed(path: Path, *_: int) -> str:
        read.add(path.name)
        return ""

    monkeypatch.setattr(files, "_sha256", hashed)
    monkeypatch.setattr(files, "forget_hashes", lambda: None)
    verify(lineage)
    assert "candidate.jsonl" in read
    assert not {"rows.jsonl", "film.bin", "other.gguf"} & read


@pytest.mark.parametrize("recorded", ["owner/name@0123abc:main", "chats/rows", "~nobody-at-all/x"])
def test_a_recorded_place_that_is_no_path_is_not_found(
    tmp_path: Path, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeft.data.hub._listing", lambda _: pytest.fail("asks the hub"))
    options = {"base": recorded, "data": recorded}
    adapter = train(tmp_path, options, {"base": "0" * 64, "data": "1" * 64})
    assert states(adapter)[1:] == [("base", 1, "not found"), ("data", 1, "not found")]


def test_a_parent_that_was_moved_is_looked_for(
    lineage: Path, edgeft: Callable[..., Any], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "deep" / "adapter"
    shutil.move(lineage.parent.parent / "adapter", moved)
    assert ("adapter", 1, "not found") in states(lineage)
    assert edgeft("verify", lineage).code == 0
    assert edgeft("verify", lineage, "--complete").code == 4
    base = tmp_path / "models" / "base"
    done = edgeft("verify", lineage, "--look-in", moved, "--look-in", base, "--complete")
    assert done.code == 0 and f"  ok         adapter: {moved}" in done.out
    (moved / "adapter_model.safetensors").write_bytes(bytes(100))
    done = edgeft("verify", lineage, "--look-in", moved, "--json")
    (checks,) = json.loads(done.out)["results"].values()
    assert done.code == 3 and [check["state"] for check in checks].count("damaged") == 1


def test_what_has_no_manifest_is_one_line(tmp_path: Path, edgeft: Callable[..., Any]) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="has no manifest"):
        verify(tmp_path / "other.gguf")
    done = edgeft("verify", tmp_path / "other.gguf")
    assert done.code == 1 and done.err.count("\n") == 1
    done = edgeft("verify", tmp_path / "none.gguf")
    assert done.code == 1 and "no such file" in done.err and done.err.count("\n") == 1
    done = edgeft("verify", tmp_path / "other.gguf", "--look-in", tmp_path / "nowhere")
    assert done.code == 1 and "nowhere" in done.err


def test_help_shows_the_examples_line_by_line(edgeft: Callable[..., Any]) -> None:
    lines = edgeft("verify", "--help").out.splitlines()
    assert "  edgeft verify out/q4_k_m.gguf" in lines
