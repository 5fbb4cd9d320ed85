"""Ready rewards, and those of a Python file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.errors import InputError
from edgeft.train.rewards import absolute, code_sha256, load_rewards

pytestmark = pytest.mark.unit


def words(text: str) -> list[int]:
    return [0] * len(text.split())


def rate(name: str, *pairs: tuple[str, str]) -> list[float | None]:
    (reward,) = load_rewards([name], words)
    completions, answers = ([pair[i] for pair in pairs] for i in (0, 1))
    return reward(prompts=[""] * len(pairs), completions=completions, answer=answers)


def test_ready_rewards() -> None:
    assert rate("json", ('{"a": 1}', ""), ("[1", ""), ("7", ""), ("", "")) == [1, 0, 1, 0]
    assert rate("exact", (" on\n", "on"), ("on.", "on")) == [1, 0]
    lamp = json.dumps({"lamp": "on", "room": "hall", "level": 3})
    assert rate("fields", (lamp, lamp), ('{"lamp": "on", "room": "den"}', lamp), ("[]", lamp)) == [
        1, pytest.approx(1 / 3), 0,
    ]  # fmt: skip
    assert rate("length:4", ("a b c d", ""), ("a b", ""), ("", ""), ("a " * 12, "")) == [
        1,
        0.5,
        0,
        0,
    ]


def test_an_answer_fits_a_schema(tmp_path: Path) -> None:
    schema = tmp_path / "lamp.schema.json"
    schema.write_text('{"type": "object", "required": ["lamp"]}')
    assert rate(f"schema:{schema}", ('{"lamp": 1}', ""), ("{}", ""), ("lamp", "")) == [1, 0, 0]
    schema.write_text('{"type": "lamp"}')
    with pytest.raises(InputError, match="lamp.schema.json is no JSON schema: 'lamp' is not valid"):
        load_rewards([f"schema:{schema}"], words)


CODE = """
def short(completions, answer, **row):
    return [-len(text) for text in completions]

def unrated(completions, **row):
    return [None for _ in completions]

def fails(completions, **row):
    return [1 / 0]

def two(**row):
    return [1, 2]

def words(completions, **row):
    return list(completions)

number = 3
"""


def test_a_function_of_a_file_rates_answers(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(CODE)
    assert rate(f"{file}:short", ("abc", ""), ("", "")) == [-3, 0]
    assert rate(f"{file}:unrated", ("abc", "")) == [None]
    for name, problem in (
        ("fails", "fails fails: ZeroDivisionError: division by zero"),
        ("two", r"two must return 1 numbers, not \[1, 2\]"),
        ("words", r"words must return 1 numbers, not \['abc'\]"),
    ):
        with pytest.raises(InputError, match=problem):
            rate(f"{file}:{name}", ("abc", ""))
    hashes = code_sha256([f"{file}:short", "json"])
    file.write_text(CODE + "\n")
    assert len(hashes) == 1 and code_sha256([f"{file}:short"]) != hashes


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("jsn", "no reward 'jsn'.*did you mean 'json'"),
        ("length:x", "no reward 'length:x'"),
        ("length:0", "no reward 'length:0'"),
        ("none.py:reward", "no such file: none.py"),
        ("broken.py:reward", "broken.py fails: SyntaxError"),
        ("good.py:other", "good.py has no function 'other'"),
        ("good.py:number", "good.py has no function 'number'"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_named(
    name: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("def reward(:")
    Path("good.py").write_text(CODE)
    with pytest.raises(InputError, match=problem):
        load_rewards([name], words)


def test_names_of_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("rewards.py:short") == f"{tmp_path}/rewards.py:short"
    assert absolute("schema:a.json") == f"schema:{tmp_path}/a.json"
    assert [absolute(name) for name in ("json", "length:3")] == ["json", "length:3"]


def test_no_reward_is_an_error() -> None:
    with pytest.raises(InputError, match="there is no reward.*--reward json, exact"):
        load_rewards([], words)
