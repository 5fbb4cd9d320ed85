"""The threads of a training: what is measured, when, and who may change them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Family


@pytest.fixture
def threads() -> Iterator[int]:
    """Torch computes with two threads, whatever the machine has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


class Clock:
    """Seconds that a step or a pass took, by what the test says."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.started = seconds, 0.0, False

    def __call__(self) -> float:
        import torch

        if self.started:
            self.now += self.seconds[torch.get_num_threads()]
        self.started = not self.started
        return self.now


def steps(callback: Any, model: Any, first: int, count: int) -> None:
    for step in range(first, first + count):
        state = SimpleNamespace(global_step=step)
        callback.on_step_begin(None, state, None, model=model)
        callback.on_step_end(None, state, None, model=model)


def test_auto_takes_the_fastest_number_and_goes_back(
    make: Family, threads: int, capsys: Any
) -> None:
    import torch

    from edgeft.train.threads import ThreadsCallback

    model, clock = copy.deepcopy(make("llama")[2]).train(), Clock({1: 1.0, 2: 5.0})
    callback = ThreadsCallback(changes=True, clock=clock)
    state = torch.get_rng_state()
    callback.on_train_begin(None, SimpleNamespace(global_step=0), None, model=model)
    assert torch.get_num_threads() == 1 and model.training
    assert torch.equal(torch.get_rng_state(), state), "a measurement draws no random number"
    assert "one thread from here: 5.0 x as fast as 2" in capsys.readouterr().err
    steps(callback, model, 1, 50)
    assert torch.get_num_threads() == 1
    clock.seconds = {1: 4.0, 2: 2.0}  # the other program has ended, and this thread is slow
    steps(callback, model, 51, 8)
    assert torch.get_num_threads() == 2
    assert "2 threads from here: 2.0 x as fast as 1" in capsys.readouterr().err


def test_a_fixed_number_is_kept_and_a_busy_machine_is_named(
    make: Family, threads: int, capsys: Any
) -> None:
    import torch

    from edgeft.train.threads import ThreadsCallback

    model, clock = copy.deepcopy(make("llama")[2]), Clock({1: 1.0, 2: 0.6})
    callback = ThreadsCallback(changes=False, clock=clock)
    callback.on_train_begin(None, SimpleNamespace(global_step=0), None, model=model)
    steps(callback, model, 1, 10)
    assert not capsys.readouterr().err
    clock.seconds = {1: 1.0, 2: 6.0}
    steps(callback, model, 11, 30)
    told = capsys.readouterr().err
    assert told.count("one thread would be 6.0 x as fast as 2 now (--threads auto)") == 1
    assert torch.get_num_threads() == 2


def test_small_differences_change_nothing(make: Family, threads: int, capsys: Any) -> None:
    import torch

    from edgeft.train.threads import ThreadsCallback

    callback = ThreadsCallback(changes=True, clock=Clock({1: 0.9, 2: 1.0}))
    callback.on_train_begin(None, SimpleNamespace(global_step=0), None, model=make("llama")[2])
    assert torch.get_num_threads() == 2 and not capsys.readouterr().err
