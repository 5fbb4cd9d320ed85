"""A loss of power at any moment of a stage: what lies under a final name is the old file or the new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.faults import STAGES, Place
from helpers.power import Call, Disk, crash_states

Placed = Callable[[str], Place]


def call(name: str, path: str = "", other: str = "", data: bytes = b"", offset: int = 0) -> Call:
    return Call(name, path, other, offset, data, offset)


RENAMED_UNFLUSHED = [
    call("create", "/f/.a"), call("write", "/f/.a", data=b"new"), call("rename", "/f/.a", "/f/a"),
]  # fmt: skip
FLUSHED = [*RENAMED_UNFLUSHED[:2], call("fsync", "/f/.a"), RENAMED_UNFLUSHED[2]]


def contents(calls: list[Call]) -> set[bytes | None]:
    return {state.get("a") for _, state in crash_states(calls, {"a": b"old"}, Path("/f"))}


def test_a_rename_before_the_flush_can_leave_an_empty_or_half_a_file() -> None:
    assert contents(RENAMED_UNFLUSHED) == {b"old", b"", b"n"}
    assert contents(FLUSHED) == {b"old", b"new"}


def test_names_reach_the_disk_in_any_order_until_their_folder_is_flushed() -> None:
    calls = [
        call("create", "/f/a"),
        call("create", "/f/b"),
        call("fsync", "/f"),
        call("unlink", "/f/a"),
    ]
    states = [set(state) for _, state in crash_states(calls, {}, Path("/f"))]
    assert {"b"} in states and {"a", "b"} in states and set() in states and {"a"} in states
    certain = [
        set(state) for where, state in crash_states(calls, {}, Path("/f")) if "call 3" in where
    ]
    assert certain in ([], [{"a", "b"}])


def test_a_folder_moves_with_its_files_and_exchanges_with_another() -> None:
    disk = Disk({"/f/t/x": b"new", "/f/o/x": b"old"})
    disk.apply(call("exchange", "/f/t", "/f/o"))
    assert disk.files["/f/o/x"].flushed == b"new" and disk.files["/f/t/x"].flushed == b"old"
    disk.apply(call("rename", "/f/o", "/f/p"))
    assert set(disk.files) == {"/f/p/x", "/f/t/x"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("gguf over", "hf over", "clean") else pytest.mark.slow)
     for name in STAGES],
)  # fmt: skip
def test_no_loss_of_power_leaves_a_bad_file_under_its_final_name(place: Placed, name: str) -> None:
    states, problems = place(name).power_losses()
    assert states > 10 and problems == []
