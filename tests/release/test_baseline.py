"""`edgeft baseline` on tiny models: who is asked what, how often, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality.fewshot import FewShot
from edgeft.benchmarks.suites import load_suite
from edgeft.errors import InputError, TooLong
from edgeft.release import BaselineOptions, run_baseline
from edgeft.release.baseline import base_artifact, baseline_items, baseline_text


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in rows))
    return path


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Path]:
    rows = {
        "chats": [("red cup", "cup"), ("old door", "door"), ("big lamp", "lamp"), ("see it", "it")],
        "validation": [(f"{n} lamp", "lamp") for n in "abcdef"] + [("see it", "it")],
        "test": [("old door", "door")],
    }
    return {name: write(tmp_path / f"{name}.jsonl", rows[name]) for name in rows}


@pytest.mark.unit
def test_a_suite_gives_its_validation_split_and_examples_to_show() -> None:
    suite = load_suite("smart_home")
    name, items, notes = baseline_items(BaselineOptions(("x",)), EvalOptions("smart_home"))
    assert (name, items.scorer, len(items.examples), len(items.fewshot_pool), notes) == (
        "smart_home", "json", 100, 1000, []
    )  # fmt: skip
    assert items.instructions == suite.instructions and items.max_tokens == suite.max_tokens


@pytest.mark.unit
def test_no_row_that_is_asked_or_held_out_is_shown(task: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Name the thing.\n")
    options = BaselineOptions(
        ("x",), validation_data=task["validation"], instructions=tmp_path / "prompt.txt"
    )
    asked = EvalOptions(str(task["test"]), few_shot_data=task["chats"], scorer="contains")
    name, items, notes = baseline_items(options, asked)
    assert (name, items.scorer, items.instructions) == ("validation", "contains", "Name the thing.")
    assert len(items.examples) == 7
    assert [example.answer for example in items.fewshot_pool] == ["cup", "lamp"]
    assert notes == ["2 rows to show are also rows to ask, and are not shown"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("items", "says"),
    [(None, "no rows to ask"), ("general", "no validation split"), ("nowhere", "no such suite")],
)
def test_rows_must_be_named(items: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        baseline_items(BaselineOptions(("x",)), EvalOptions(items))


def test_every_base_is_asked_in_every_way(
    tiny_base: Path, task: dict[str, Path], edgeft: Callable[..., Any]
) -> None:
    artifact = base_artifact(str(tiny_base))
    assert artifact.suffix == ".gguf" and base_artifact(str(artifact)) == artifact
    options = BaselineOptions(
        (str(tiny_base), str(artifact)), validation_data=task["validation"], shots=(0, 2, 8)
    )
    asked = EvalOptions(few_shot_data=task["chats"], max_tokens=2)
    result = run_baseline(options, asked)
    ways = [FewShot(0), FewShot(2), FewShot(2, "similar")]
    assert [a.few_shot for a in result.attempts] == [*ways, *ways]
    first, second = result.attempts[:3], result.attempts[3:]
    assert [a.values for a in first] == [a.values for a in second], "both are the same model"
    assert result.bases == {"base": str(tiny_base), "f16.gguf": str(artifact)}
    plain, fixed, similar = (attempt.prompt_tokens for attempt in first)
    assert plain < fixed and plain < similar
    assert (result.advice.word, result.task["items"], result.target) == ("fine-tune", 7, 0.9)
    assert any("8 examples were not tried: there are 3 rows" in note for note in result.notes)
    text = baseline_text(result)
    assert text.startswith("fine-tune: ") and text.count("2 similar") == 2
    ran = edgeft("baseline", "--base", artifact, "--validation-data", task["validation"],
                 "--few-shot-data", task["chats"], "--shots", "0,2", "--pick", "similar",
                 "--max-tokens", 2, "--json")  # fmt: skip
    made = json.loads(ran.out)
    assert ran.code == 0 and made["advice"]["word"] == "fine-tune"
    ran = edgeft("baseline", "--base", artifact, "--validation-data", task["validation"],
                 "--few-shot-data", task["chats"], "--shots", "2", "--pick", "embeddings",
                 "--max-tokens", 2, "--json")  # fmt: skip
    by_states = json.loads(ran.out)["attempts"]
    assert [a["few_shot"] for a in by_states] == [{"shots": 2, "pick": "embeddings"}]
    assert [a["accuracy"] for a in made["attempts"]] == [first[0].accuracy, first[2].accuracy]
    assert made["attempts"][0]["gap"] == pytest.approx(0.9 - first[0].accuracy)


def test_bad_input_is_one_line(edgeft: Callable[..., Any], task: dict[str, Path]) -> None:
    asked = ("--validation-data", task["validation"])
    ran = edgeft("baseline", "--base", "nowhere.gguf", *asked, "--shots", 0)
    assert ran.code == 1 and "no such file: nowhere.gguf" in ran.err and ran.err.count("\n") == 1
    ran = edgeft("baseline", "--base", "nowhere.gguf", *asked, "--shots", 4)
    assert ran.code == 1 and "only 0 examples to show" in ran.err
    ran = edgeft("baseline", "--base", "x", *asked, "--shots", "four")
    assert ran.code == 2 and "no list of numbers" in ran.err


def test_bases_and_instructions_are_checked_before_any_answer(
    edgeft: Callable[..., Any], task: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("not a model")
    asked = ("baseline", "--base", tiny_base, "--validation-data", task["validation"], "--shots", 0)
    (tmp_path / "empty.txt").write_text(" \n")
    for more, says in (
        (("--base", broken), "broken.gguf"),
        (("--base", "smolm2-135m"), "did you mean 'smollm2-135m'"),
        (("--instructions", "Name the thing."), "no such file: Name the thing. (--instructions: a"),
        (("--instructions", tmp_path / "empty.txt"), "empty.txt is empty"),
        (("--scorer", "json"), "item 1: the reference answer 'lamp' is not JSON"),
    ):
        ran = edgeft(*asked, *more)
        assert ran.code == 1 and says in ran.err and ran.err.count("\n") == 1, ran.err
        assert "asking" not in ran.err and not ran.out


def test_prompts_that_do_not_fit_are_a_note(
    tiny_base: Path, task: dict[str, Path], tmp_path: Path
) -> None:
    long = write(tmp_path / "long.jsonl", [("the old door " * 3000, "door")])
    options = BaselineOptions((str(tiny_base),), validation_data=task["validation"], shots=(0, 1))
    result = run_baseline(options, EvalOptions(few_shot_data=long, max_tokens=2))
    assert [attempt.few_shot for attempt in result.attempts] == [FewShot(0)]
    first, second = result.notes
    assert first.startswith("base, 1-shot was not tried: the prompt has ") and "similar" in second
    with pytest.raises(TooLong):
        run_baseline(
            BaselineOptions((str(tiny_base),), validation_data=task["validation"], shots=(1,)),
            EvalOptions(few_shot_data=long, max_tokens=2),
        )
