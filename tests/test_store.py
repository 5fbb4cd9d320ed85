"""What is on the disk after a result was written, or after writing failed at any point."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft import files, machine, store
from edgeft.errors import InputError, ResourceError, StaleError
from edgeft.records import Manifest

pytestmark = pytest.mark.unit

NAMES = ("model.gguf", "model")
OPTIONS: dict[str, Any] = {"rank": 8, "targets": ["q", "v"], "note": None}
PARENTS = {"base": "ab" * 32}


def make(target: Path, text: str, options: dict[str, Any] = OPTIONS, **more: Any) -> None:
    with store.writing(target, kind="artifact", options=options, parents=PARENTS, **more) as draft:
        fill(draft, text)


def fill(draft: store.Draft, text: str) -> None:
    draft.facts["letters"] = len(text)
    if draft.path.is_dir():
        (draft.path / "sub").mkdir()
        (draft.path / "config.json").write_text(text)
        (draft.path / "sub" / "more.bin").write_text(text * 2)
    else:
        draft.path.write_text(text)


def content(target: Path) -> str | None:
    """The one text that `fill` wrote, None where nothing lies at `target`."""
    if not target.exists():
        return None
    if target.is_file():
        return target.read_text()
    text = (target / "config.json").read_text()
    assert (target / "sub" / "more.bin").read_text() == text * 2, "half of each"
    return text


def is_complete(target: Path, options: dict[str, Any] = OPTIONS) -> bool:
    return store.find_complete(target, "artifact", options, PARENTS) is not None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def beside(name: str) -> list[str]:
    return [name] if name == "model" else [name, f"{name}.manifest.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_clean_exit_leaves_the_target_and_its_manifest(tmp_path: Path, name: str) -> None:
    target = tmp_path / "new" / "folder" / name
    make(target, "abc")
    manifest = store.read_manifest(target)
    assert manifest is not None and content(target) == "abc"
    parts = {name: "abc"} if target.is_file() else {"config.json": "abc", "sub/more.bin": "abcabc"}
    assert {part: (record.sha256, record.size) for part, record in manifest.files.items()} == {
        part: (hashlib.sha256(text.encode()).hexdigest(), len(text)) for part, text in parts.items()
    }
    assert manifest.kind == "artifact" and manifest.options == OPTIONS
    assert manifest.parents == PARENTS and manifest.facts == {"letters": 3}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest.created)
    assert names(target.parent) == beside(name)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", NAMES)
def test_an_exception_in_the_block_leaves_nothing(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    target = tmp_path / name
    with pytest.raises(error), store.writing(target, kind="base", options={}, parents={}) as draft:
        fill(draft, "half")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_leaves_the_old_artifact(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    make(target, "old")
    with (
        pytest.raises(KeyboardInterrupt),
        store.writing(target, kind="artifact", options={}, parents={}, overwrite=True) as draft,
    ):
        fill(draft, "half")
        raise KeyboardInterrupt
    assert content(target) == "old" and is_complete(target) and names(tmp_path) == beside(name)


def test_overwrite_spares_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "notes.txt").write_text("mine")
    with (
        pytest.raises(StaleError, match="was not made by this command"),
        store.writing(tmp_path / "project", kind="adapter", options={}, parents={},
                      overwrite=True),
    ):  # fmt: skip
        pass
    assert (tmp_path / "project" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", NAMES)
def test_complete_only_for_the_same_run(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    assert not is_complete(target)
    make(target, "abc")
    manifest = store.find_complete(
        target, "artifact", OPTIONS | {"targets": ("q", "v")}, dict(PARENTS)
    )
    assert manifest is not None and manifest.facts == {"letters": 3}
    assert store.find_complete(target, "artifact", OPTIONS | {"rank": 16}, PARENTS) is None
    assert store.find_complete(target, "artifact", {}, PARENTS) is None
    assert store.find_complete(target, "artifact", OPTIONS, {"base": "cd" * 32}) is None
    assert store.find_complete(target, "artifact", OPTIONS, PARENTS | {"data": "ef"}) is None
    assert store.find_complete(target, "adapter", OPTIONS, PARENTS) is None


@pytest.mark.parametrize("name", NAMES)
def test_incomplete_when_a_file_is_missing_or_of_another_size(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    make(target, "abc")
    part = target if target.is_file() else target / "sub" / "more.bin"
    whole = part.read_text()
    part.write_text(whole[:-1])
    assert not is_complete(target)
    part.unlink()
    assert not is_complete(target)
    part.write_text(whole)
    assert is_complete(target)
    store.manifest_path(target).unlink()
    assert not is_complete(target)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a manifest"),
        ("[]", "is not a manifest"),
        ("{}", "is not a manifest: 'files'"),
        ('{"files": []}', "is not a manifest"),
        ('{"files": {"a": 1}}', "is not a manifest"),
        ('{"files": {}}', "is not a manifest"),
        ('{"kind": "base", "options": {}, "files": {}, "schema": 99}', "by a newer edgeft"),
    ],
)
def test_a_broken_manifest_is_an_input_error(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        store.read_manifest(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_an_occupied_target_is_refused_and_overwrite_replaces_it(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    make(target, "old")
    with pytest.raises(StaleError, match=re.escape(f"{target} already holds")) as caught:
        make(target, "new", {"rank": 16})
    assert "--overwrite" in caught.value.hint
    with pytest.raises(StaleError, match="written by another run meanwhile"):
        make(target, "old")
    assert content(target) == "old" and is_complete(target)
    make(target, "new", {"rank": 16}, overwrite=True)
    assert (
        content(target) == "new" and is_complete(target, {"rank": 16}) and not is_complete(target)
    )
    assert names(tmp_path) == beside(name)


def test_a_file_where_a_folder_goes_is_occupied_and_an_empty_folder_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StaleError):
        make(tmp_path / "file", "abc")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", "abc")
    assert content(tmp_path / "empty") == "abc" and (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def living() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", NAMES)
def test_partials_of_the_dead_are_swept_and_those_of_the_living_kept(
    tmp_path: Path, name: str, living: int, dead: int
) -> None:
    for pid in (living, dead):
        folder = tmp_path / f".{name}.partial-{pid}"
        folder.mkdir()
        (folder / "weights").write_text("half")
    (tmp_path / f".other.partial-{dead}").write_text("of another target")
    (tmp_path / f".{name}.partial-x").write_text("not ours")
    make(tmp_path / name, "abc")
    kept = [f".{name}.partial-{living}", f".{name}.partial-x", f".other.partial-{dead}"]
    assert names(tmp_path) == sorted([*kept, *beside(name)])


@pytest.mark.parametrize("name", NAMES)
def test_a_partial_of_a_dead_run_with_our_own_pid_is_swept(tmp_path: Path, name: str) -> None:
    """In a container every run may be process 1."""
    partial = tmp_path / f".{name}.partial-{os.getpid()}"
    partial.mkdir()
    (partial / "config.json").write_text("half")
    make(tmp_path / name, "abc")
    assert content(tmp_path / name) == "abc" and names(tmp_path) == beside(name)


class FailNth:
    """An `os` function that says "disk full" at its Nth call."""

    def __init__(self, real: Any, nth: int) -> None:
        self.real, self.left = real, nth

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real(*args)


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("old", ["", "old"])
@pytest.mark.parametrize("exchanges", [True, False])
def test_whatever_call_fails_the_target_is_old_or_new(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    name: str,
    old: str,
    exchanges: bool,
) -> None:
    """`exchanges`: whether the file system can exchange two names."""
    new_options = {"rank": 16}
    if not exchanges:
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    for nth in itertools.count(1):
        target = tmp_path / str(nth) / name
        target.parent.mkdir()
        if old:
            make(target, old)
        failing = FailNth(getattr(os, function), nth)
        with monkeypatch.context() as patch:
            patch.setattr(os, function, failing)
            try:
                make(target, "new", new_options, overwrite=True)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        where = f"{function} number {nth}"
        assert content(target) in (old or None, "new"), f"{where} lost the old artifact"
        assert not is_complete(target) or content(target) == old, where
        assert not is_complete(target, new_options) or content(target) == "new", where
        left = [name for name in names(target.parent) if "partial" in name]
        assert left == [], f"{where} leaves {left}"
        if failing.left > 0:
            break
        make(target, "again", overwrite=True)
        assert content(target) == "again" and is_complete(target), where
    assert nth > 1 + (function == "fsync"), "nothing ever failed"
    assert content(target) == "new" and is_complete(target, new_options)


KILLED = """
import os, sys
from pathlib import Path
from edgeft import store
target, nth = Path(sys.argv[1]), int(sys.argv[2])
real, calls = os.replace, 0
def replace(a, b):
    global calls
    calls += 1
    if calls == nth:
        os.kill(os.getpid(), 9)
    real(a, b)
os.replace = replace
with store.writing(target, kind="artifact", options={"rank": 16}, parents={"base": "ab" * 32},
                   overwrite=True) as draft:
    draft.path.write_text("new")
"""


@pytest.mark.parametrize("old", ["", "old"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_kill_between_file_and_manifest_loses_neither(tmp_path: Path, old: str, nth: int) -> None:
    target = tmp_path / "model.gguf"
    if old:
        make(target, old)
    killed = subprocess.run([sys.executable, "-c", KILLED, target, str(nth)], check=False)
    assert killed.returncode == (0 if nth == 3 and not old else -9)
    if content(target) == "new":
        store.sweep(tmp_path)  # as an export into this folder does
        assert is_complete(target, {"rank": 16}), "the next run completes it"
        assert names(tmp_path) == beside("model.gguf")
    else:
        assert content(target) == (old or None)
        assert is_complete(target) == bool(old)
        make(target, "again", overwrite=True)
        assert names(tmp_path) == beside("model.gguf")


@pytest.mark.parametrize("name", ["model.gguf", "model"])
def test_nothing_is_left_beside_a_complete_result(tmp_path: Path, name: str, dead: int) -> None:
    """A run was killed while it removed the old result, whose name it had exchanged with the new one's."""
    target = tmp_path / name
    make(target, "new")
    left = target.with_name(f".{name}.partial-{dead}")
    if name == "model":
        left.mkdir()
        (left / "weights.bin").write_text("old")
    else:
        store.manifest_path(left.with_name(name)).with_name(
            f".{name}.manifest.json.partial-{dead}-old"
        ).write_text("{}")
    assert is_complete(target) and names(tmp_path) == beside(name)


CLAIM = """
import sys, time
from pathlib import Path
from edgeft import files
with files.claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes `tmp_path/model`."""
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM, tmp_path / "model"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_two_runs_do_not_write_one_target(tmp_path: Path, other_run: subprocess.Popen[str]) -> None:
    (tmp_path / "link").symlink_to("model")
    with pytest.raises(StaleError, match="another run is writing") as caught:
        make(tmp_path / "model", "abc")
    assert "wait until it ends" in caught.value.hint
    with pytest.raises(StaleError), files.claimed(tmp_path / "link", seconds=0.1):
        pass
    make(tmp_path / "other", "abc")
    other_run.kill()
    other_run.wait()
    assert names(tmp_path) == [".model.lock", "link", "other"]
    make(tmp_path / "model", "abc")
    assert names(tmp_path) == ["link", "model", "other"]


def test_what_several_runs_need_is_made_once(tmp_path: Path) -> None:
    """The second one waits, and then has nothing to do."""
    target, drafts = tmp_path / "base", []
    started = threading.Event()

    def run() -> None:
        with store.writing_shared(target, kind="base", options={}, parents={}) as draft:
            drafts.append(draft)
            if draft:
                started.set()
                time.sleep(0.1)
                fill(draft, "abc")

    threads = [threading.Thread(target=run) for _ in range(3)]
    threads[0].start()
    assert started.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bool(draft) for draft in drafts] == [True, False, False] and content(target) == "abc"
    assert names(tmp_path) == ["base"]


def test_notes_in_a_folder_outlive_its_replacement(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for text in ("one", "two"):
        with store.writing(
            target, kind="adapter", options={}, parents={"data": text}, overwrite=True
        ) as draft:
            (draft.path / "weights.txt").write_text(text)
            if text == "one":
                (draft.path / "log.txt").write_text(text)
        if text == "one":
            (target / "README.md").write_text("mine")
            (target / "additional_chat_templates").mkdir()
            (target / "additional_chat_templates" / "notes.txt").write_text("mine")
            (target / "tokenizer.json").write_text("{}")
    files = {path.name for path in target.iterdir()}
    assert files == {"manifest.json", "weights.txt", "README.md", "additional_chat_templates"}
    assert (target / "additional_chat_templates" / "notes.txt").read_text() == "mine"
    assert (target / "README.md").read_text() == "mine"


def test_a_folder_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    make(target, "old")
    if not files.exchange(target, target):
        pytest.skip("the file system cannot exchange two names")
    with pytest.raises(OSError, match="No such file"):
        files.exchange(tmp_path / "absent", target)
    renamed, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: renamed.append(Path(a)) or replace(a, b))
    make(target, "new", overwrite=True)
    assert content(target) == "new" and target not in renamed


def test_a_claim_may_be_claimed_again_and_leaves_no_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "model"
    with files.claimed(target), files.claimed(target):
        assert names(target.parent) == [".model.lock"]
    assert names(tmp_path) == []


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_write_text_leaves_the_old_text_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "facts.json"
    files.write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, FailNth(getattr(os, function), 1))
        with pytest.raises(OSError, match="No space"):
            files.write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["facts.json"]
    files.write_text(path, "newer ü")
    assert path.read_text(encoding="utf-8") == "newer ü"


def test_preflight_names_the_needed_figure(tmp_path: Path) -> None:
    machine.preflight(tmp_path / "not" / "yet", "training", disk=1, memory=1)
    says = rf"^training needs 5000\.0 TB of disk at {re.escape(str(tmp_path))}, .* is free$"
    with pytest.raises(ResourceError) as caught:
        machine.preflight(tmp_path / "not" / "yet", "training", disk=5 * 10**15)
    assert re.match(says, caught.value.message) and caught.value.hint
    with pytest.raises(ResourceError, match=r"merging needs about 7000\.0 TB of memory, .* is ava"):
        machine.preflight(tmp_path, "merging", memory=7 * 10**15)


def test_available_memory_is_no_more_than_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.available_memory() <= total


def test_files_in_the_page_cache_are_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    without_limit = machine.available_memory()
    for limit, current, available in (
        (10_000_000, 9_000_000, 5_000_000),
        (3_000_000, 9_000_000, 0),
        ("max", 9_000_000, None),
    ):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{current}\n")
        (tmp_path / "memory.stat").write_text(
            "anon 5000000\nfile 4000000\nshmem 0\ninactive_file 1500000\nactive_file 2500000\n"
            "workingset_refault_file 77\n"
        )
        if available is None:
            assert machine.available_memory() == pytest.approx(without_limit, rel=0.5)
        else:
            assert machine.available_memory() == available


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (20_499, "20 kB"), (1_234_567, "1.2 MB"),
     (4_200_000_000, "4.2 GB"), (1.5e12, "1.5 TB"), (2e15, "2000.0 TB")],
)  # fmt: skip
def test_format_bytes(size: float, text: str) -> None:
    assert files.format_bytes(size) == text


def test_a_folder_keeps_its_identity_without_its_manifest(tmp_path: Path) -> None:
    parts = ("config.json", "model.safetensors", "chat_template.jinja", "tokenizer.json",
             "additional_chat_templates/rag.jinja")  # fmt: skip
    with store.writing(tmp_path / "model", kind="base", options={}, parents={}) as draft:
        for part in parts:
            (draft.path / part).parent.mkdir(exist_ok=True)
            (draft.path / part).write_text(part)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "model", copy)
    (copy / "manifest.json").unlink()
    assert store.identity(copy) == store.identity(tmp_path / "model")
    manifest = tmp_path / "model" / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["files"] = dict(reversed(raw["files"].items()))
    manifest.write_text(json.dumps(raw))
    assert store.identity(copy) == store.identity(tmp_path / "model"), "the order does not count"
    for part in parts:
        (copy / part).write_text("other")
        assert store.identity(copy) != store.identity(tmp_path / "model"), part
        (copy / part).write_text(part)
    (copy / "tokenizer.json").rename(copy / "tokens.json")
    assert store.identity(copy) != store.identity(tmp_path / "model"), "a name counts"


def test_a_file_keeps_its_identity_without_its_manifest(tmp_path: Path) -> None:
    make(tmp_path / "model.gguf", "abc")
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "model.gguf", tmp_path / "copy" / "other.gguf")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert (
        store.identity(tmp_path / "model.gguf") == digest == files.sha256(tmp_path / "model.gguf")
    )
    assert store.identity(tmp_path / "copy" / "other.gguf") == digest


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_home_is_edgeft_home_or_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/kim")
    for chosen, cache, folder in (
        ("/data/models", "/cache", "/data/models"),
        ("~/models", "/cache", "/home/kim/models"),
        ("", "/cache", "/cache/edgeft"),
        ("", "", "/home/kim/.cache/edgeft"),
    ):
        monkeypatch.setenv("EDGEFT_HOME", chosen)
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert files.home() == Path(folder)


def test_a_manifest_of_0_1_0_has_todays_names() -> None:
    facts = {"merge_base": {"chosen": "w16", "loss": {"w16": 1.0, "nf4": 2.0}},
             "proof": {"merge_base": "nf4"}}  # fmt: skip
    old = Manifest("artifact", {"merge_base": "w16"}, {}, facts=facts)
    read = Manifest.from_json(old.to_json())
    assert read.options == {"base_precision": "stored"}
    assert read.facts["base_precision"] == {"chosen": "stored", "loss": {"nf4": 2.0, "stored": 1.0}}
    assert read.facts["proof"] == {"base_precision": "nf4"}


@pytest.mark.parametrize("name", NAMES)
def test_files_are_held_to_their_manifest(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    make(target, "whole")
    store.check_files(target)
    file = target if target.is_file() else target / "sub" / "more.bin"
    old = file.read_text()
    for text in (old[:-1], old[:-1] + "X"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"has other bytes|bytes, not"):
            store.check_files(target)
    file.unlink()
    with pytest.raises(InputError, match="is missing"):
        store.check_files(target)
    store.manifest_path(target).unlink()
    store.check_files(target)


def test_an_added_template_is_reported(tmp_path: Path) -> None:
    make(tmp_path / "model", "whole")
    before = store.identity(tmp_path / "model", use_manifest=False)
    added = tmp_path / "model" / "additional_chat_templates" / "rag.jinja"
    added.parent.mkdir()
    added.write_text("{{ messages }}")
    assert store.identity(tmp_path / "model", use_manifest=False) != before
    with pytest.raises(InputError, match="additional_chat_templates/rag.jinja was added"):
        store.check_files(tmp_path / "model")


def test_a_folder_with_a_name_that_is_no_utf8_has_an_identity(tmp_path: Path) -> None:
    plain = store.identity(_with(tmp_path / "plain", "a.json"))
    strange = store.identity(_with(tmp_path / "strange", "\udcff.json"))
    assert re.fullmatch("[0-9a-f]{64}", strange) and strange != plain


def _with(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / name).write_text("{}")
    return folder
