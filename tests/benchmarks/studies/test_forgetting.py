"""The study of forgetting: the mix of rows, the replay of the base's own answers, the table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import click
import pytest

from edgeft.benchmarks.studies import forgetting
from edgeft.benchmarks.suites import load_suite
from edgeft.cli import group
from edgeft.data.rows import load_examples
from edgeft.records import Example, Limits, Manifest, Message, Reply
from helpers.releases import sample


@pytest.mark.unit
def test_the_mix_holds_every_row_of_the_task_and_the_share_of_replay() -> None:
    task, replay = [f"task {i}" for i in range(80)], [f"replay {i}" for i in range(50)]
    rows = forgetting.mixed(task, replay, 0.2, seed=0)
    assert set(task) <= set(rows) and len(rows) == len(set(rows)) == 100
    assert rows == forgetting.mixed(task, replay, 0.2, seed=0) != sorted(rows)
    with pytest.raises(ValueError, match="80 replay rows are needed"):
        forgetting.mixed(task, replay, 0.5, seed=0)


@pytest.mark.unit
def test_prompts_of_the_general_suite_are_no_replay(tmp_path: Path) -> None:
    asked = load_suite("general").test.read_text(encoding="utf-8").splitlines()[:3]
    other = json.dumps({"prompt": "Say hello.", "answer": "Hello."})
    (tmp_path / "prompts.jsonl").write_text("\n".join([*asked, other]))
    (kept,) = forgetting.prompts_of(tmp_path / "prompts.jsonl", 10, seed=0)
    assert kept.prompt[-1].content == "Say hello."


class Answering:
    """A runtime that answers every second prompt to its end."""

    chat = SimpleNamespace(render=lambda messages: "/".join(m.content for m in messages))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def replies(self, prompts: list[list[int]], limits: Limits) -> list[Reply]:
        texts = [f"answer to {bytes(ids).decode()}" for ids in prompts]
        return [Reply(text, (), i % 2 == 0) for i, text in enumerate(texts)]


@pytest.mark.unit
def test_replay_rows_are_the_bases_own_answers_that_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "open_runtime", lambda *_, **__: Answering())
    prompts = [
        Example((Message("system", "s"), Message("user", f"q{i}"), Message("assistant", "x")))
        for i in range(4)
    ]
    rows = forgetting.replay_rows(tmp_path, prompts, threads=1)
    (tmp_path / "replay.jsonl").write_text("\n".join(rows))
    examples = load_examples(tmp_path / "replay.jsonl")
    assert [[m.content for m in e.messages] for e in examples] == [
        ["q0", "answer to q0"], ["q2", "answer to q2"]
    ]  # fmt: skip


@pytest.mark.unit
def test_the_table_is_of_the_f16_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[object, ...]] = []

    def edgeft(*words: object) -> str:
        asked.append(words)
        return json.dumps(sample().to_json())

    monkeypatch.setattr(forgetting, "edgeft", edgeft)
    one = forgetting.compare(tmp_path / "base.gguf", tmp_path, "smart_home")
    assert one["task"] == 386 / 400 and one["accuracy"] == 0.402
    parse(asked)
    full = one | {
        "gain": 0.9,
        "lost": 3,
        "won": 1,
        "difference": -0.02,
        "lower": -0.1,
        "upper": 0.0,
    }
    assert "| +90.0 points |" in forgetting.table({"lora, alone": full})


@pytest.mark.unit
@pytest.mark.parametrize(("kind", "named"), [("adapter", "--adapter"), ("base", "--base")])
def test_a_method_trains_and_exports_what_it_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, named: str
) -> None:
    asked: list[tuple[object, ...]] = []
    manifests = iter([None, Manifest(kind, {}, {})])
    monkeypatch.setattr(forgetting, "edgeft", lambda *words: asked.append(words))
    monkeypatch.setattr(forgetting.store, "read_manifest", lambda _: next(manifests))
    options = argparse.Namespace(base="smollm2-135m", steps=8, batch_size=4, seed=0)
    folder = forgetting.fine_tune(
        options, "lora", tmp_path / "alone.jsonl", load_suite("smart_home")
    )
    assert folder == tmp_path / "lora-alone"
    assert [words[0] for words in asked] == ["train", "merge-export"] and named in asked[1]
    parse(asked)


def parse(asked: list[tuple[object, ...]]) -> None:
    """ClickException for a command that edgeft would not take."""
    for name, *words in asked:
        command = group.get_command(click.Context(group), str(name))
        assert command is not None
        command.make_context(str(name), [str(word) for word in words])
