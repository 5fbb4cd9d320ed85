"""Hub ids of data: which files they mean, what is downloaded, what happens without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeft.data import hub
from edgeft.data.hub import HubId, chosen_files, hub_id, pinned
from edgeft.data.rows import read_examples
from edgeft.data.sources import data_files
from edgeft.data.splits import training_examples
from edgeft.errors import InputError
from edgeft.train.examples import read_splits
from edgeft.train.options import TrainOptions
from helpers.fake_hub import COMMIT, FakeHub, fake_hub

pytestmark = pytest.mark.unit


def row(answer: str) -> str:
    return json.dumps({"prompt": "hello", "answer": answer}) + "\n"


CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/part-*.jsonl
  - split: test
    path: [main/held-out.jsonl]
- config_name: other
  data_files: other/*.jsonl
---
# A data set
"""
REPOS = {
    "owner/plain": {
        "train.jsonl": row("one"), "test.jsonl": row("test"), "plain.py": "raise SystemExit",
    },
    "owner/configs": {
        "README.md": CARD,
        "main/part-0.jsonl": row("a"), "main/part-1.jsonl": row("b"),
        "main/held-out.jsonl": row("c"), "other/x.jsonl": row("d"),
    },
    "owner/tests": {"test.jsonl": row("test")},
    "owner/script": {"script.py": "raise SystemExit"},
}  # fmt: skip


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    hub._listing.cache_clear()
    with fake_hub(REPOS, tmp_path / "cache", monkeypatch) as served:
        yield served
    hub._listing.cache_clear()


def answers(name: str) -> list[str]:
    return [example.answer for example in read_examples(Path(name), split="train").examples]


def test_an_id_means_the_training_files_and_nothing_else_is_downloaded(served: FakeHub) -> None:
    assert answers("owner/plain") == ["one"]
    assert served.downloads == ["train.jsonl"]
    assert answers("owner/plain:test") == ["test"]
    assert "plain.py" not in served.downloads


def test_a_config_is_needed_where_there_are_several(served: FakeHub) -> None:
    with pytest.raises(InputError, match="several configs: main, other") as caught:
        answers("owner/configs")
    assert caught.value.hint == "--data owner/configs:main"
    assert answers("owner/configs:main") == ["a", "b"]
    assert answers("owner/configs:main:test") == ["c"]
    assert answers("owner/configs:other") == ["d"]
    with pytest.raises(InputError, match="has no split test"):
        answers("owner/configs:other:test")
    assert len(data_files(Path("owner/configs:main"))) == 3


def test_an_id_is_pinned_to_its_commit_and_then_needs_no_network(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pinned(Path("owner/plain@main:train"))
    assert str(name) == f"owner/plain@{COMMIT}:train"
    assert answers(str(name)) == ["one"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub._listing.cache_clear()
    assert answers(str(name)) == answers("owner/plain") == ["one"]
    with pytest.raises(InputError, match="cannot get owner/configs from the hub: .*") as caught:
        data_files(Path("owner/configs"))
    assert "\n" not in str(caught.value) and "HF_ENDPOINT names a mirror" in caught.value.hint


def test_what_the_hub_does_not_have_is_one_line(served: FakeHub) -> None:
    for name, problem in {
        "owner/nothing": "no such file: owner/nothing, and the hub has no such data set",
        "owner/plain@v9": "owner/plain has no revision v9",
        "owner/plain:no:test": "owner/plain:no:test has no config no",
        "owner/tests": "owner/tests has no split train, but test",
        "owner/script": "owner/script holds no data files",
    }.items():
        with pytest.raises(InputError) as caught:
            data_files(Path(name), "train")
        assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_check_reads_a_hub_id_and_mix_records_its_commit(
    served: FakeHub, edgeft: Callable[..., object], tmp_path: Path
) -> None:
    ran = edgeft("data", "check", "owner/configs:main", "--json", "--near", "0")
    assert json.loads(ran.out)["rows"] == 2  # type: ignore[attr-defined]
    ran = edgeft("data", "mix", "owner/plain", "owner/configs:main=2", "--output", "mix.jsonl")
    assert ran.code == 0, ran.err  # type: ignore[attr-defined]
    options = json.loads(Path("mix.jsonl.manifest.json").read_text())["options"]
    assert options["data"] == [f"owner/plain@{COMMIT}", f"owner/configs@{COMMIT}:main=2"]


def test_training_reads_a_hub_id_and_records_its_commit(
    served: FakeHub, edgeft: Callable[..., object], tiny_base: Path
) -> None:
    ran = edgeft(
        "train-qlora", "--base", tiny_base, "--data", "owner/configs:main", "--output", "a",
        "--validation-data", "owner/configs:main:test", "--preview", "--json",
    )  # fmt: skip
    shown = json.loads(ran.out)  # type: ignore[attr-defined]
    assert [e["place"] for e in shown["examples"]] == ["part-0.jsonl:1", "part-1.jsonl:1"]
    assert (shown["train"], shown["validation"]) == (2, 1)
    options = TrainOptions(tiny_base, Path("owner/configs:main"), Path("a"), validation_size=1)
    recorded, splits = read_splits(options)
    assert recorded.data == Path(f"owner/configs@{COMMIT}:main")
    assert training_examples(recorded.to_json()) == splits.train


def test_a_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/chats", "owner/chats.jsonl", "./owner/name", "/owner/name", "a/b/c", "name"):
        assert hub_id(Path(name).absolute() if name.startswith(".") else Path(name)) is None, name
    assert hub_id(Path("owner/name@v1.0:main:test")) == HubId(
        "owner/name", "v1.0", ("main", "test")
    )


def test_files_of_a_config_are_chosen_by_split() -> None:
    names = ["train_sft-0.parquet", "train_gen-0.parquet", "test_sft-0.parquet"]
    configs = {"default": {f"{n[:-10]}": [f"{n[:-9]}*"] for n in names}}
    with pytest.raises(InputError, match="no split train, but train_sft, train_gen, test_sft") as e:
        chosen_files(HubId("a/b"), names, configs, "train")
    assert e.value.hint == "--data a/b:train_sft"
    for config in (configs, {}):
        assert chosen_files(HubId("a/b", "", ("train_sft",)), names, config, "train") == names[:1]
    converted = ["en/train/0.parquet", "en/test/0.parquet", "fr/train/0.parquet"]
    assert chosen_files(HubId("a/b", "", ("en",)), converted, {}, "train") == converted[:1]
    assert chosen_files(HubId("a/b", "", ("fr", "train")), converted, {}, "test") == converted[2:]
