"""What lies in a workspace; uploads, renames, deletes and their undo; hostile names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from edgeft import store
from edgeft.errors import InputError, ResourceError, StaleError
from edgeft.studio.lineage import graph, lineage_svg
from edgeft.studio.nouns import find_nouns
from edgeft.studio.workspace import Upload, Workspace, clean_name
from edgeft.train.checkpoints import REQUEST_FILE

pytestmark = pytest.mark.unit


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work")


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def make_adapter(root: Path, data: Path) -> Path:
    parents = {"base": "b" * 64, "data": store.identity(data)}
    options = {"base": "smollm2-135m", "data": "chats.jsonl"}
    with store.writing(root / "adapter", kind="adapter", options=options, parents=parents) as draft:
        write(draft.path / "adapter_config.json", "{}")
        draft.facts["loss"] = [[1, 2.0]]
    return root / "adapter"


def test_every_noun_is_found_with_its_parents(workspace: Workspace) -> None:
    root = workspace.root
    data = write(root / "chats.jsonl", '{"prompt": "a", "completion": "b"}\n')
    adapter = make_adapter(root, data)
    parents = {"adapter": store.identity(adapter)}
    with store.writing(
        root / "out/q8_0.gguf", kind="artifact", options={}, parents=parents
    ) as draft:
        write(draft.path)
    gguf = store.identity(root / "out/q8_0.gguf")
    arms = [{"name": "q8_0.gguf", "identity": gguf, "path": "out/q8_0.gguf"}]
    write(root / "report/report.json", json.dumps({"outcome": "PASS", "arms": arms}))
    write(root / "run.work" / REQUEST_FILE, json.dumps({"options": {"output": "run"}}))
    write(root / "model/config.json", "{}")
    write(root / "model/model.safetensors")
    write(root / ".studio/data.jsonl")
    write(root / "notes.txt")
    write(root / "readme.md")
    nouns = {noun.path: noun for noun in find_nouns(root)}
    assert {path: noun.kind for path, noun in nouns.items()} == {
        "adapter": "adapter", "chats.jsonl": "data", "model": "base", "notes.txt": "data",
        "out/q8_0.gguf": "artifact", "report/report.json": "report", "run.work": "unfinished",
    }  # fmt: skip
    assert nouns["adapter"].parents["data"] == nouns["chats.jsonl"].identity
    assert nouns["adapter"].names == {"base": "smollm2-135m", "data": "chats.jsonl"}
    assert nouns["out/q8_0.gguf"].parents["adapter"] == nouns["adapter"].identity
    assert nouns["report/report.json"].parents == {"q8_0.gguf": nouns["out/q8_0.gguf"].identity}


def test_the_graph_goes_from_data_to_the_report(workspace: Workspace) -> None:
    root = workspace.root
    raw = write(root / "raw.jsonl", '{"prompt": "a", "completion": "b"}\n')
    write(root / "model/config.json", "{}")
    write(root / "model/model.safetensors")
    parents = {"data": store.identity(raw)}
    with store.writing(root / "splits", kind="dataset", options={}, parents=parents) as draft:
        write(draft.path / "train.jsonl", raw.read_text() * 2)
    parents = {"base": "b" * 64, "data": store.identity(root / "splits/train.jsonl")}
    options = {"base": str(root / "model")}
    with store.writing(root / "adapter", kind="adapter", options=options, parents=parents) as draft:
        write(draft.path / "adapter_config.json", "{}")
    parents = {"adapter": store.identity(root / "adapter"), "base": "b" * 64, "imatrix": "c" * 64}
    with store.writing(root / "q8_0.gguf", kind="artifact", options={}, parents=parents) as draft:
        write(draft.path)
    nouns = find_nouns(root)
    nodes, arrows = graph(nouns)
    assert {(parent.name, child.name) for parent, child in arrows} == {
        ("raw.jsonl", "train.jsonl"), ("train.jsonl", "adapter"), ("model", "adapter"),
        ("adapter", "q8_0.gguf"), ("model", "q8_0.gguf"), ("imatrix", "q8_0.gguf"),
    }  # fmt: skip
    assert [node.name for node in nodes if not node.path] == ["imatrix"]
    svg = lineage_svg(nouns, "What <came> from what", "outside")
    places = {
        name: float(x) for x, name in re.findall(r'<text x="(\d+)" y="\d+">([^<]+)</text>', svg)
    }
    assert places["raw.jsonl"] < places["train.jsonl"] == places["model"] < places["adapter"]
    assert places["imatrix"] == places["adapter"] < places["q8_0.gguf"]
    assert "What &lt;came&gt;" in svg and 'href="/file/splits/train.jsonl"' in svg
    assert lineage_svg([], "", "") == ""


def test_what_cannot_be_read_is_left_out(workspace: Workspace) -> None:
    write(workspace.root / "bad/manifest.json", "{")
    write(workspace.root / "odd/report.json", "[]")
    (workspace.root / os.fsdecode(b"\xff.jsonl")).write_text("")
    (workspace.root / "loop").symlink_to(workspace.root)
    (workspace.root / "gone.jsonl").symlink_to("nowhere")
    os.mkfifo(workspace.root / "pipe.jsonl")  # whoever opens it waits for ever
    assert find_nouns(workspace.root) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd.jsonl", "passwd.jsonl"),
        ("C:\\temp\\chats.csv", "chats.csv"),
        ("..jsonl", "jsonl"),
        (".hidden.jsonl", "hidden.jsonl"),
        ("--output.jsonl", "output.jsonl"),
        ("a\0b\n<script>.json", "abscript.json"),
        ("$(rm -rf ~).txt", "(rm -rf ~).txt"),
        ("数据 集.jsonl", "数据 集.jsonl"),
        ("x" * 500 + ".jsonl.gz", "x" * 111 + ".jsonl.gz"),
        ("", None),
        ("\ud83d.jsonl", "jsonl"),
        ("///", None),
    ],
)
def test_names_are_cleaned(name: str, kept: str | None) -> None:
    if kept is None:
        with pytest.raises(InputError, match="no file name"):
            clean_name(name)
    else:
        assert clean_name(name) == kept


def test_an_upload_is_whole_or_absent(workspace: Workspace) -> None:
    with Upload(workspace, "../chats.jsonl", 100) as upload:
        upload.write(b"one")
    assert upload.target == workspace.root / "data/chats.jsonl"
    with (
        Upload(workspace, "chats.jsonl", 100) as second,
        Upload(workspace, "chats.jsonl", 9) as third,
    ):
        second.write(b"two")
        third.write(b"three")
    names = {path.name: path.read_text() for path in (workspace.root / "data").iterdir()}
    assert names == {"chats.jsonl": "one", "chats-2.jsonl": "three", "chats-3.jsonl": "two"}
    with (
        pytest.raises(ResourceError, match="more than 9 B"),
        Upload(workspace, "big.csv", 9) as upload,
    ):
        upload.write(b"0123456789")
    with pytest.raises(InputError, match="no data file"):
        Upload(workspace, "program.exe", 9)
    assert sorted(os.listdir(workspace.root / "data")) == sorted(names)
    with pytest.raises(ResourceError, match="of disk are free"):
        workspace.check_room(10**18)


def test_a_delete_can_be_undone(workspace: Workspace) -> None:
    file = write(workspace.root / "out/q8_0.gguf", "weights")
    manifest = write(workspace.root / "out/q8_0.gguf.manifest.json", "{}")
    entry = workspace.delete("out/q8_0.gguf")
    assert not file.exists() and not manifest.exists()
    assert workspace.trash()[0]["paths"] == ["out/q8_0.gguf", "out/q8_0.gguf.manifest.json"]
    write(file, "another")
    with pytest.raises(StaleError, match="is there again"):
        workspace.restore(entry)
    file.unlink()
    assert workspace.restore(entry) == "out/q8_0.gguf"
    assert file.read_text() == "weights" and manifest.is_file() and workspace.trash() == []
    with pytest.raises(InputError, match="not in the trash"):
        workspace.restore(entry)


def test_a_rename_takes_the_manifest_along(workspace: Workspace) -> None:
    for name in ("a.gguf", "a.gguf.cdx.json", "a.gguf.manifest.json", "a.Modelfile", "taken.gguf"):
        write(workspace.root / name)
    assert workspace.rename("a.gguf", "../b") == "b.gguf"
    assert {path.name for path in workspace.root.iterdir()} == {
        ".studio", "b.Modelfile", "b.gguf", "b.gguf.cdx.json", "b.gguf.manifest.json", "taken.gguf",
    }  # fmt: skip
    with pytest.raises(StaleError, match="is there already"):
        workspace.rename("b.gguf", "taken.gguf")
    assert "data" not in {noun.kind for noun in find_nouns(workspace.root)}, "a bill of materials"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        ".studio/key",
        "a/../../x",
        "none",
        "a\0b",
        "link/passwd",
    ],
)
def test_no_path_leads_outside(workspace: Workspace, text: str) -> None:
    write(workspace.root / "a/b")
    write(workspace.root.parent / "x")
    (workspace.root / "link").symlink_to("/etc")
    for action in (workspace.inside, workspace.delete, lambda t: workspace.rename(t, "new")):
        with pytest.raises(InputError, match="in this workspace"):
            action(text)
    with pytest.raises(InputError, match="not in the trash"):
        workspace.restore(text)


def test_one_studio_has_a_workspace(workspace: Workspace) -> None:
    with workspace.opened("http://127.0.0.1:8500"):
        again = Workspace(workspace.root)
        with pytest.raises(StaleError, match="at http://127.0.0.1:8500"), again.opened(""):
            pass
    with workspace.opened(""):
        pass
    key = workspace.key()
    assert Workspace(workspace.root).key() == key and len(key) >= 24
    assert (workspace.studio / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="no folder to work in"):
        Workspace(write(workspace.root / "file"))


def test_names_that_are_free(workspace: Workspace) -> None:
    write(workspace.root / "adapter/x")
    write(workspace.root / "adapter-2.work/x")
    write(workspace.root / "mix.jsonl")
    assert workspace.free_name("adapter") == "adapter-3"
    assert workspace.free_name("mix.jsonl") == "mix-2.jsonl"
