"""`--reward`: names of ready rewards and functions of Python files -> functions that rate answers.

    rewards = load_rewards(("json", "length:200", "rewards.py:polite"), tokenize)
    rewards[0](prompts=…, completions=['{"a": 1}'], answer=["…"])        # [1.0]

A function takes what trl gives reward functions, as keywords: `prompts` and `completions` (texts), and of each
row `answer`, its reference or "". It returns a number for each completion, or None for one that it does not rate.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.errors import InputError, did_you_mean, require

Reward = Callable[..., list[float | None]]
PYTHON = ".py:"
"""between the path of a file and the name of a function in it"""


def _is_json(completion: str, answer: str) -> float:
    """1 for valid JSON."""
    return float(_parsed(completion) is not None)


def _is_exact(completion: str, answer: str) -> float:
    """1 for the reference answer, white space around it aside."""
    return float(completion.strip() == answer.strip())


def _fields(completion: str, answer: str) -> float:
    """Share of the fields of both JSON objects that agree; 0 for what is no object."""
    ours, theirs = _parsed(completion), _parsed(answer)
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return 0.0
    names = ours.keys() | theirs.keys()
    missing = object()
    same = sum(ours.get(name, missing) == theirs.get(name, missing) for name in names)
    return same / len(names) if names else 1.0


READY: dict[str, Callable[[str, str], float]] = {
    "json": _is_json,
    "exact": _is_exact,
    "fields": _fields,
}
"""name -> (completion, reference) -> reward"""
WITH_VALUE = {"length": "length:200", "schema": "schema:answer.schema.json"}
"""name of a ready reward that takes a value -> an example"""


def load_rewards(names: Sequence[str], tokenize: Callable[[str], list[int]]) -> list[Reward]:
    """The rewards in their order; the answers' reward is their sum. InputError for one that cannot be loaded."""
    if not names:
        ready = ", ".join([*READY, *WITH_VALUE.values()])
        raise InputError("there is no reward", f"--reward {ready}, or FILE.py:function")
    return [_load(name, tokenize) for name in names]


def code_sha256(names: Sequence[str]) -> list[str]:
    """What decides the rewards beside their names: files of functions and schemas, and reward models."""
    files = [Path(file) for name in names if (file := _file(name))]
    return [store.identity(file) if file.exists() else "" for file in files]


def absolute(name: str) -> str:
    """The name with its file's absolute path."""
    file = _file(name)
    return name.replace(file, str(Path(file).expanduser().resolve()), 1) if file else name


def _file(name: str) -> str:
    if PYTHON in name:
        return name.rpartition(":")[0]
    kind, _, value = name.partition(":")
    if kind == "schema":
        return value
    return name if name not in READY and Path(name).expanduser().is_dir() else ""


def _load(name: str, tokenize: Callable[[str], list[int]]) -> Reward:
    if name in READY:
        return _each(name, READY[name])
    if PYTHON in name:
        return _function(name)
    if _file(name) == name:
        return _model(Path(name), tokenize)
    kind, _, value = name.partition(":")
    if kind == "length" and value.isdecimal() and int(value):
        return _each(name, lambda completion, _: _length(len(tokenize(completion)), int(value)))
    if kind == "schema" and value:
        return _each(name, _schema(Path(value)))
    known = [*READY, *WITH_VALUE.values()]
    raise InputError(f"--reward: no reward {name!r}", did_you_mean(name, known))


def _each(name: str, rate: Callable[[str, str], float]) -> Reward:
    """A reward that rates one answer at a time."""

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
        return [rate(*pair) for pair in zip(completions, answer, strict=True)]

    reward.__name__ = name
    return reward


def _length(tokens: int, wanted: int) -> float:
    """1 at the wanted number of tokens, falling to 0 at none and at twice as many."""
    return 1 - min(1.0, abs(tokens - wanted) / wanted)


def _schema(path: Path) -> Callable[[str, str], float]:
    """1 for JSON that fits a JSON schema."""
    jsonschema: Any = require("jsonschema", "align")
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        problem = getattr(error, "message", str(error))
        raise InputError(f"--reward: {path} is no JSON schema: {problem}") from None
    validator = jsonschema.validators.validator_for(schema)(schema)

    def rate(completion: str, _: str) -> float:
        value = _parsed(completion)
        return float(value is not None and validator.is_valid(value))

    return rate


def _model(adapter: Path, tokenize: Callable[[str], list[int]]) -> Reward:
    """The score of a reward model, after the prompt and the answer as the model has read and written them."""
    from edgeft.train.reward_model import RewardModel

    model = RewardModel.open(adapter)

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        starts = [tokenize(prompt) for prompt in prompts]
        if starts[0] != model.tokenize(prompts[0]):
            raise InputError(
                f"--reward {adapter}: its base has another tokenizer",
                "a reward model of the same base",
            )
        pairs = zip(starts, completion_ids, strict=True)
        return [*model.scores([start + ids for start, ids in pairs])]

    reward.__name__ = adapter.name
    return reward


def _function(name: str) -> Reward:
    """A function of a Python file. InputError where it cannot be loaded, fails, or returns something else."""
    file, _, function_name = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--reward: no such file: {path}", "FILE.py:function")
    spec = importlib.util.spec_from_file_location(f"edgeft_reward_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 whatever the user's code raises
        raise InputError(f"--reward: {path} fails: {type(error).__name__}: {error}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"--reward: {path} has no function {function_name!r}")

    def reward(completions: list[str], **row: Any) -> list[float | None]:
        try:
            values = list(function(completions=completions, **row))
        except Exception as error:  # noqa: BLE001 whatever the user's code raises
            problem = f"{type(error).__name__}: {error}"
            raise InputError(
                f"--reward {name} fails: {problem}",
                "def reward(completions, answer, **row): return [… for text in completions]",
            ) from None
        if len(values) != len(completions) or not all(map(_is_reward, values)):
            raise InputError(
                f"--reward {name} must return {len(completions)} numbers, not {str(values)[:80]}"
            )
        return values

    reward.__name__ = function_name
    return reward


def _is_reward(value: Any) -> bool:
    return value is None or (isinstance(value, (bool, int, float)) and math.isfinite(value))


def _parsed(text: str) -> Any:
    """The value of a JSON text; None for another text, and for null."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
