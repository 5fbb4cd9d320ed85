"""The release gate on tiny models: what is right is what the baseline itself would choose."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.errors import InputError
from edgeft.export.pipeline import ExportOptions, export
from edgeft.records import Release
from edgeft.release import GateOptions, run_gate
from edgeft.report import page, tables
from helpers.tiny import make_base

WORDS = [
    "river",
    "boat",
    "house",
    "child",
    "stone",
    "lamp",
    "door",
    "cold",
    "small",
    "old",
    "bird",
    "tree",
]


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    """f32 as baseline, f16 as a candidate of the same model, and a smaller one of another."""
    folder = tmp_path_factory.mktemp("arms")
    own = export(
        ExportOptions(
            out=folder / "own", base=str(tiny_base), quants=("f32", "f16"), compare_live=False
        )
    )
    stranger = make_base(folder / "stranger", seed=7)
    other = export(
        ExportOptions(
            out=folder / "other", base=str(stranger), quants=("q8_0",), compare_live=False
        )
    )
    return {artifact.quant: artifact.path for artifact in (*own, *other)}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory, arms: dict[str, Path]) -> Path:
    """80 questions with two choices; the answer is the one that the baseline finds likelier."""
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"{i} {WORDS[i % 12]} {WORDS[i * 5 % 11]}", "answer": WORDS[i % 12],
            "choices": [WORDS[i % 12], WORDS[(i + 5) % 12]], "tags": [f"kind{i % 2}"],
        }
        for i in range(80)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    eval_options = EvalOptions(str(path), scorer="choice")
    chosen = evaluate.measure(arms["f32"], evaluate.load_items(eval_options), eval_options)
    for row, reply in zip(rows, chosen.replies, strict=True):
        row["answer"] = reply
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def ask(items: Path, **more: Any) -> EvalOptions:
    return EvalOptions(str(items), scorer="choice", **more)


def test_the_same_model_passes_and_another_fails(arms: dict[str, Path], items: Path) -> None:
    same = run_gate(GateOptions((arms["f16"],), arms["f32"]), ask(items))
    assert (same.outcome, same.ship) == ("PASS", "f16.gguf")
    assert [arm.kind for arm in same.arms] == ["baseline", "candidate"]
    assert same.arms[0].accuracy == 1.0
    other = run_gate(GateOptions((arms["q8_0"],), arms["f32"]), ask(items))
    assert (other.outcome, other.ship) == ("FAIL", None)
    arm = other.arms[-1]
    assert arm.verdict is not None and arm.verdict["lost"] > 15
    assert len(arm.losses) == min(20, arm.verdict["lost"])
    assert all(loss["baseline"] == loss["wanted"] != loss["answer"] for loss in arm.losses)
    assert sum(one["n"] for one in arm.slices) == 80
    assert sum(one["lost"] for one in arm.slices) == arm.verdict["lost"]


def test_the_sequence_goes_from_large_to_small_and_ends_at_the_first_that_does_not_pass(
    arms: dict[str, Path], items: Path, tmp_path: Path
) -> None:
    small = tmp_path / "smaller.gguf"
    small.write_bytes(arms["q8_0"].read_bytes())
    both = run_gate(GateOptions((arms["q8_0"], small, arms["f16"]), arms["f32"]), ask(items))
    assert (both.outcome, both.ship) == ("PASS", "f16.gguf")
    assert "q8_0.gguf, the next smaller one, is FAIL" in both.reason
    kinds = {arm.name: arm.verdict and arm.verdict["outcome"] for arm in both.arms}
    assert kinds["f16.gguf"] == "PASS" and kinds["q8_0.gguf"] == "FAIL"
    assert kinds["smaller.gguf"] is None
    assert any("smaller.gguf was not tested" in note for note in both.notes)
    assert [arm.name for arm in both.arms if arm.pareto] == ["f16.gguf", "q8_0.gguf"]


def test_few_items_are_inconclusive_and_say_how_many_would_do(
    arms: dict[str, Path], items: Path
) -> None:
    few = run_gate(GateOptions((arms["f16"],), arms["f32"]), ask(items, limit=30))
    assert few.outcome == "INCONCLUSIVE" and few.ship is None
    assert "59" in few.reason


def test_early_stop_asks_fewer_items(arms: dict[str, Path], items: Path) -> None:
    release = run_gate(GateOptions((arms["q8_0"],), arms["f32"], early_stop=True), ask(items))
    assert release.outcome == "FAIL"
    arm = release.arms[-1]
    assert arm.verdict is not None and arm.verdict["n"] < 80
    assert "decided after" in release.reason
    assert release.task["items"] == arm.verdict["n"]


def test_early_stop_with_nothing_to_lose_is_no_pass(arms: dict[str, Path], items: Path) -> None:
    never = items.with_name("never.jsonl")
    rows = [
        json.loads(line) | {"answer": "no such word"} for line in items.read_text().splitlines()
    ]
    never.write_text("\n".join(json.dumps({k: r[k] for k in ("prompt", "answer")}) for r in rows))
    eval_options = EvalOptions(str(never), scorer="exact", max_tokens=2)
    release = run_gate(GateOptions((arms["f16"],), arms["f32"], early_stop=True), eval_options)
    assert release.outcome == "INCONCLUSIVE" and "check the items" in release.reason


def test_bounds_of_one_look_are_not_told_after_many(arms: dict[str, Path], items: Path) -> None:
    release = run_gate(GateOptions((arms["f16"],), arms["f32"], early_stop=True), ask(items))
    verdict = release.arms[-1].verdict
    assert verdict and verdict["lower"] is None and verdict["upper"] is None
    assert "≥" not in tables.release_text(release) and page.html(release)


def test_equal_names_are_told_apart(arms: dict[str, Path], items: Path, tmp_path: Path) -> None:
    for kind in ("f32", "f16"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "model.gguf").write_bytes(arms[kind].read_bytes())
    one, other = tmp_path / "f16/model.gguf", tmp_path / "f32/model.gguf"
    release = run_gate(GateOptions((one,), other), ask(items))
    assert release.ship == str(one) and {arm.name for arm in release.arms} == {str(one), str(other)}
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(arms["f32"].read_bytes())
    assert (
        "copy.gguf is the baseline, byte for byte"
        in run_gate(GateOptions((copy,), other), ask(items)).notes
    )
    copy.unlink()
    copy.symlink_to(other)
    with pytest.raises(InputError, match="is there twice"):
        run_gate(GateOptions((copy,), other), ask(items))


def test_a_question_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' * 80 + '{"prompt": "c", "answer": "d"}\n')
    assert [e.line for e in evaluate.load_items(EvalOptions(str(path))).examples] == [1, 81]


def test_a_scorer_of_ones_own_is_asked_again(
    arms: dict[str, Path], items: Path, tmp_path: Path
) -> None:
    scorer = tmp_path / "mine.py"
    eval_options = EvalOptions(str(items), scorer=str(scorer), max_tokens=2, limit=5)
    scorer.write_text("def score(reply, reference):\n    return 1.0\n")
    questions = dataclasses.replace(evaluate.load_items(eval_options), allow_truncated=True)
    assert evaluate.measure(arms["f16"], questions, eval_options).values == (1.0,) * 5
    scorer.write_text("def score(reply, reference):\n    return 0.25\n")
    assert evaluate.measure(arms["f16"], questions, eval_options).values == (0.25,) * 5
    scorer.write_text("def score(reply, reference):\n    raise SystemExit(0)\n")
    with pytest.raises(InputError, match="failed: SystemExit"):
        evaluate.measure(arms["f16"], questions, eval_options)


def test_the_floor_and_the_next_tokens(arms: dict[str, Path], items: Path) -> None:
    options = GateOptions(
        (arms["f16"], arms["q8_0"]), arms["f32"], fidelity=True, repeat_baseline=True
    )
    release = run_gate(options, ask(items))
    assert release.floor and release.floor["flips"] == 0 and release.floor["n"] == 80
    assert abs(release.floor["kl"]) < 1e-6
    own, other = (
        next(arm for arm in release.arms if arm.name == f"{name}.gguf") for name in ("f16", "q8_0")
    )
    assert own.fidelity and own.fidelity["answers"]["kl"]["value"] < 1e-4
    assert other.fidelity and other.fidelity["answers"]["kl"]["value"] > 1e-2
    assert Release.from_json(json.loads(json.dumps(release.to_json()))).floor == release.floor


def test_what_is_left_of_the_gain(arms: dict[str, Path], items: Path) -> None:
    """The base answers half, the fine-tune all: all of the gain is left in f16."""
    release = run_gate(
        GateOptions((arms["f16"],), arms["f32"], base=arms["q8_0"], shots=0), ask(items)
    )
    names = [arm.name for arm in release.arms]
    assert names == ["base, instructions only", "f32.gguf", "f16.gguf"]
    kept = release.arms[-1].retention
    assert kept is not None and kept["value"] == 1.0 and kept["low"] < 1.0
    assert kept["gain"] == pytest.approx(1 - (release.arms[0].accuracy or 0))


def test_refusals_are_gated_apart(
    arms: dict[str, Path], items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.csv"
    rows = [f"question {i},{('safe', 'unsafe')[i % 2]}" for i in range(140)]
    prompts.write_text("\n".join(["prompt,label", *rows]))
    never = run_gate(GateOptions((arms["f16"],), arms["f32"], refusals=prompts), ask(items))
    assert never.safety is not None
    assert never.safety["arms"]["f16.gguf"]["unsafe"] == 70
    assert "nothing to lose" in never.safety["arms"]["f16.gguf"]["reason"]
    assert never.outcome == "PASS"
    # A baseline that refuses all, and a candidate that refuses nothing any more.
    real = evaluate.measure

    def measure(path: Path, own: evaluate.Items, *rest: Any) -> Any:
        score = real(path, own, *rest)
        if own.scorer == "refusal" and path == arms["f32"]:
            values = tuple(float(e.answer == "unsafe") for e in own.examples)
            return type(score)(**vars(score) | {"values": values})
        return score

    monkeypatch.setattr(evaluate, "measure", measure)
    lost = run_gate(GateOptions((arms["f16"],), arms["f32"], refusals=prompts), ask(items))
    assert lost.outcome == "FAIL" and lost.ship is None
    assert "refusing what is unsafe" in lost.reason


@pytest.fixture(scope="module")
def strange(items: Path, arms: dict[str, Path]) -> Path:
    """The questions with the answers that the other model chooses: what that one knows."""
    path = items.with_name("strange.jsonl")
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    asked = evaluate.load_items(ask(items))
    chosen = evaluate.measure(arms["q8_0"], asked, ask(items))
    answers = [row | {"answer": reply} for row, reply in zip(rows, chosen.replies, strict=True)]
    path.write_text("\n".join(map(json.dumps, answers)))
    return path


def general(arms: dict[str, Path], items: Path, **more: Any) -> GateOptions:
    """The other model is the base of the fine-tune."""
    return GateOptions(
        (arms["f16"],), arms["f32"], base=arms["q8_0"], shots=0, general=str(items),
        general_scorer="choice", **more,
    )  # fmt: skip


def test_what_was_forgotten_is_reported_beside_the_gain(
    arms: dict[str, Path], items: Path, strange: Path
) -> None:
    release = run_gate(general(arms, strange), ask(items))
    assert (release.outcome, release.ship) == ("PASS", "f16.gguf"), "without a bound it is no gate"
    assert release.forgetting and list(release.forgetting["arms"]) == [
        "base",
        "f32.gguf",
        "f16.gguf",
    ]
    base, fine_tune, candidate = release.forgetting["arms"].values()
    assert fine_tune == candidate | {"gain": fine_tune["gain"]}, "f32 and f16 choose the same"
    assert base["accuracy"] == 1.0 and fine_tune["accuracy"] == candidate["accuracy"] < 0.8
    assert candidate["difference"] == candidate["accuracy"] - 1 == -candidate["lost"] / 80
    assert candidate["lower"] < candidate["difference"] < candidate["upper"] < 0
    assert candidate["gain"] == pytest.approx(1 - (release.arms[0].accuracy or 0))
    assert candidate["outcome"] is None
    assert sum(one["lost"] for one in candidate["slices"]) == candidate["lost"]
    assert all(one["base"] is not None for one in release.arms[-1].slices)
    assert "General items against the base (80 of strange):" in tables.release_text(release)


def test_a_bound_on_what_is_forgotten_is_part_of_the_verdict(
    arms: dict[str, Path], items: Path, strange: Path
) -> None:
    lost = run_gate(general(arms, strange, max_forgotten=0.1), ask(items))
    assert (lost.outcome, lost.ship) == ("FAIL", None)
    assert lost.arms[-1].verdict and lost.arms[-1].verdict["outcome"] == "PASS"
    assert lost.reason.startswith("general items: 80 items") and "10 points or more" in lost.reason
    kept = run_gate(general(arms, items, max_forgotten=0.1), ask(items))
    assert (kept.outcome, kept.ship) == ("PASS", "f16.gguf")
    assert kept.forgetting and kept.forgetting["arms"]["f16.gguf"]["outcome"] == "PASS"
    early = run_gate(general(arms, items, max_forgotten=0.1, early_stop=True), ask(items))
    assert early.forgetting and early.forgetting["items"] == 80
    again = Release.from_json(json.loads(json.dumps(kept.to_json())))
    assert page.html(again) == page.html(kept)


def test_general_items_need_the_base(
    edgeft: Callable[..., Any], arms: dict[str, Path], items: Path
) -> None:
    two = (arms["f16"], arms["f32"], "--items", items, "--scorer", "choice")
    ran = edgeft("ab", *two, "--general")
    assert ran.code == 2 and "--general needs --base" in ran.err
    ran = edgeft("ab", *two, "--max-forgotten", "0.1")
    assert ran.code == 2 and "--max-forgotten needs --general" in ran.err
    ran = edgeft("ab", "--general", *two)
    assert ran.code == 2 and "--general last" in ran.err
    ran = edgeft("data", "mix", items, "--output", items.with_name("mixed.jsonl"), "--no-tag")
    ran = edgeft("ab", "--general", items.with_name("mixed.jsonl"), *two)
    assert ran.code == 2 and "--general needs --base" in ran.err
    ran = edgeft("ab", *two, "--base", arms["q8_0"], "--general", "nowhere.jsonl")
    assert ran.code == 1 and "no such suite or file: nowhere.jsonl" in ran.err
    with pytest.raises(InputError, match="--base"):
        run_gate(dataclasses.replace(general(arms, items), base=None), ask(items))


def test_the_command_has_the_three_exit_codes(
    edgeft: Callable[..., Any], arms: dict[str, Path], items: Path
) -> None:
    rest = ("--items", items, "--scorer", "choice")
    same = edgeft("ab", arms["f16"], arms["f32"], *rest)
    assert same.code == 0 and same.out.startswith("PASS: ship f16.gguf")
    other = edgeft("ab", arms["q8_0"], arms["f32"], *rest, "--json")
    assert other.code == 3 and json.loads(other.out)["outcome"] == "FAIL"
    assert edgeft("ab", arms["f16"], arms["f32"], *rest, "--limit", 30).code == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{f16}", "{f16}"), "is there twice"),
        (("{f16}", "{f32}", "--scorer", "jsn"), "did you mean 'json'"),
        (("{f16}", "{f32}", "--scorer", "none.py"), "no such scorer"),
        (("{f16}", "{f32}", "--refusals", "none.csv"), "no such file"),
        (("{f16}", "nowhere.gguf"), "no such artifact"),
    ],
)
def test_bad_input_is_one_line(
    edgeft: Callable[..., Any],
    arms: dict[str, Path],
    items: Path,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    given = [argument.format(**arms) for argument in arguments]
    ran = edgeft("ab", *given, "--items", items)
    assert ran.code == 1 and says in ran.err and ran.err.count("\n") == 1


def test_choices_must_be_there_and_hold_the_answer(
    edgeft: Callable[..., Any], arms: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"prompt": "a", "answer": "b"}))
    ran = edgeft("ab", arms["f16"], arms["f32"], "--items", path, "--scorer", "choice")
    assert ran.code == 1 and "item 1 has no choices" in ran.err
    path.write_text(json.dumps({"prompt": "a", "answer": "b", "choices": ["c", "d"]}))
    ran = edgeft("ab", arms["f16"], arms["f32"], "--items", path)
    assert ran.code == 1 and "the answer is none of the choices" in ran.err
