"""Every row of the tables names a class that implements its protocol."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from edgeft.errors import InputError, MissingExtra
from edgeft.train.protocol import Method, Objective
from edgeft.train.registry import (
    METHODS,
    OBJECTIVES,
    load_method,
    load_objective,
    method_row,
)


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_implements_the_protocol(name: str) -> None:
    method: Any = load_method(name)
    assert Method in method.__mro__
    assert all(vars(method).get(member) for member in members(Method))
    assert METHODS[name].result in ("adapter", "base")
    assert 0 < METHODS[name].trained_share <= 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_implements_the_protocol(name: str) -> None:
    objective: Any = load_objective(name)
    assert Objective in objective.__mro__
    assert all(vars(objective).get(member) for member in members(Objective))


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="no training method 'qlor'.*did you mean 'qlora'"):
        method_row("qlor")
    with pytest.raises(InputError, match="no training objective 'stf'.*known: sft"):
        load_objective("stf")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"peft is not installed.*edgeft\[train\]"):
        load_method("qlora")
