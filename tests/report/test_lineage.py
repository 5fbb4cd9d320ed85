"""Hashes of a result and of what it was made from: intact, changed in any byte, and moved away."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.errors import InputError
from edgeft.report.lineage import verify

pytestmark = pytest.mark.unit
FLIPS = 10_000


@pytest.fixture
def lineage(tmp_path: Path) -> Path:
    """chats.jsonl and base/ -> adapter/ -> out/q4_0.gguf, by the store alone."""
    rows = tmp_path / "chats.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    base = tmp_path / "models" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(bytes(range(64)))
    adapter = tmp_path / "adapter"
    parents = {"base": store.identity(base), "data": store.identity(rows)}
    options = {"base": str(base), "data": str(rows)}
    with store.writing(adapter, kind="adapter", options=options, parents=parents) as draft:
        (draft.path / "adapter_config.json").write_text("{}")
        (draft.path / "adapter_model.safetensors").write_bytes(bytes(range(100)))
    artifact = tmp_path / "out" / "q4_0.gguf"
    parents = {"base": store.identity(base), "adapter": store.identity(adapter)}
    with store.writing(artifact, kind="artifact", options={}, parents=parents) as draft:
        draft.path.write_bytes(random.Random(0).randbytes(500))
    return artifact


def states(target: Path, *look_in: Path) -> list[tuple[str, int, str]]:
    return [(check.role, check.depth, check.state) for check in verify(target, look_in)]


def test_everything_is_found_where_it_was(lineage: Path) -> None:
    base = lineage.parent.parent / "models" / "base"
    assert states(lineage, base) == [
        ("artifact", 0, "ok"), ("base", 1, "ok"), ("adapter", 1, "ok"), ("base", 2, "ok"),
        ("data", 2, "ok"),
    ]  # fmt: skip
    # The artifact does not record the base's place; the adapter does.
    assert [state for *_, state in states(lineage)] == ["ok", "not found", "ok", "ok", "ok"]


def flip_bit(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))


def test_any_flipped_byte_is_found(lineage: Path) -> None:
    adapter, draw = lineage.parent.parent / "adapter", random.Random(1)
    places = [(lineage, lineage)]
    places += [
        (adapter, adapter / f"adapter_{name}") for name in ("config.json", "model.safetensors")
    ]
    manifests = {result: store.read_manifest(result) for result, _ in places}
    for _ in range(FLIPS):
        result, path = draw.choice(places)
        flip = (draw.randrange(path.stat().st_size), 1 << draw.randrange(8))
        flip_bit(path, *flip)
        manifest = manifests[result]
        assert manifest is not None
        assert store.damaged(result, manifest) == [
            f"{path} has other bytes than when it was written"
        ]
        flip_bit(path, *flip)
    assert "damaged" not in {state for *_, state in states(lineage)}


def test_what_has_changed_is_said(lineage: Path) -> None:
    adapter = lineage.parent.parent / "adapter"
    (adapter / "adapter_config.json").unlink()
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (check,) = [check for check in verify(lineage) if check.state == "damaged"]
    assert check.role == "adapter" and check.problems == (
        f"{adapter}/adapter_config.json is missing",
        f"{adapter}/adapter_model.safetensors has 0 bytes, not 100",
        f"{adapter}/chat_template.jinja was added",
    )


def test_a_parent_that_was_replaced_is_not_found(lineage: Path) -> None:
    rows = lineage.parent.parent / "chats.jsonl"
    rows.write_text('{"prompt": "a", "answer": "c"}\n')
    assert ("data", 2, "not found") in states(lineage)


def test_a_parent_that_was_moved_is_looked_for(
    lineage: Path, edgeft: Callable[..., Any], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "deep" / "adapter"
    shutil.move(lineage.parent.parent / "adapter", moved)
    assert ("adapter", 1, "not found") in states(lineage)
    assert edgeft("verify", lineage).code == 0
    assert edgeft("verify", lineage, "--complete").code == 4
    base = tmp_path / "models" / "base"
    done = edgeft("verify", lineage, "--look-in", moved, "--look-in", base, "--complete")
    assert done.code == 0 and f"  ok         adapter: {moved}" in done.out
    (moved / "adapter_model.safetensors").write_bytes(bytes(100))
    done = edgeft("verify", lineage, "--look-in", moved, "--json")
    (checks,) = json.loads(done.out)["results"].values()
    assert done.code == 3 and [check["state"] for check in checks].count("damaged") == 1


def test_what_has_no_manifest_is_one_line(tmp_path: Path, edgeft: Callable[..., Any]) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="has no manifest"):
        verify(tmp_path / "other.gguf")
    done = edgeft("verify", tmp_path / "other.gguf")
    assert done.code == 1 and done.err.count("\n") == 1
