"""The study of the recipes of --ship: which commands make which file, and what its table says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.studies import ship_recipes
from edgeft.benchmarks.studies.recorded_options import check_options
from edgeft.benchmarks.studies.ship_recipes import Cell, File
from edgeft.benchmarks.suites import load_suite

pytestmark = pytest.mark.unit


def run(right: int, kl: float | None = None, ratio: float = 1.0) -> dict[str, Any]:
    """A row of `edgeft bench` on 100 items, of which the first `right` are right."""
    fidelity = {"chats": {"kl": {"value": kl}}, "text": {"perplexity_ratio": ratio}}
    values = [1.0] * right + [0.0] * (100 - right)
    return {"score": {"values": values}, "size": 10**8, "fidelity": fidelity if kl else {}}


def test_gptq_is_made_only_of_types_that_it_writes() -> None:
    files = ship_recipes.files_of(["q4_0", "q3_k_s"], ["plain", "gptq", "ship", "ship+gptq"])
    assert [str(file) for file in files] == [
        "f16 plain", "q4_0 plain", "q4_0 gptq", "q4_0 ship", "q4_0 ship+gptq", "q3_k_s plain",
        "q3_k_s ship",
    ]  # fmt: skip


def test_the_commands_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def edgeft(*words: Any) -> str:
        ran.append(" ".join(map(str, words)))
        named = [word for word in words if str(word).endswith(".gguf")]
        return json.dumps({"rows": [run(90) | {"path": str(path)} for path in named]})

    monkeypatch.setattr(ship_recipes, "edgeft", edgeft)
    options = argparse.Namespace(
        base="b", method="lora", steps=None, more_steps=8, more_rate=2e-4, batch_size=4,
        threads=1, calibration_tokens=9, text=Path("t"), ship_text=Path("s"), chunks=2,
    )  # fmt: skip
    files = ship_recipes.files_of(["q4_0"], ["plain", "ship", "ship+gptq", "ship+text"])
    cell = Cell(load_suite("smart_home"), 2, tmp_path)
    for part in (cell.train, cell.export, cell.measure):
        part(options, files)
        for file in files:
            (tmp_path / file.path).parent.mkdir(exist_ok=True)
    first, control, ship, text = ran[:4]
    assert "--steps 240 --seed 2" in first and "--adapter" not in first
    for word in (f"--adapter {tmp_path}/first", "--steps 8 --seed 1002"):
        assert word in control and word in ship
    assert "--ship q4_0" in ship and "--ship" not in control
    assert "--ship-text" not in ship and "--ship q4_0 --ship-text s" in text
    exports = [command for command in ran if command.startswith("merge-export")]
    assert [f"{tmp_path}/{name}" in command for name, command in zip(
        ("control", "control", "ship-q4_0", "ship-q4_0", "shiptext-q4_0"), exports, strict=True
    )] == [True] * 5  # fmt: skip
    assert [command.split()[-1] for command in exports] == [
        "f16", "q4_0", "q4_0", "gptq-q4_0", "q4_0",
    ]  # fmt: skip
    assert "--baseline " + str(tmp_path / "control-plain/f16.gguf") in ran[-1]
    assert list(cell.results(files)) == list(map(str, files))
    cell.measure(options, files)  # is complete
    assert ran[-1].startswith("bench") and len(ran) == 10


def test_the_table_pairs_each_seed_with_its_own_f16() -> None:
    seeds = [
        {"f16 plain": run(90), "q4_0 plain": run(80, 0.2, 1.5), "q4_0 ship": run(90, 0.1, 1.2)},
        {"f16 plain": run(92), "q4_0 plain": run(84, 0.4, 1.5), "q4_0 ship": run(91, 0.1, 1.2)},
    ]
    half, plain, ship = ship_recipes.rows_of("smart_home", seeds)
    assert half.accuracy == (0.9, 0.92) and half.paired.lost == half.paired.won == 0
    assert (plain.paired.n, plain.paired.lost, plain.paired.won) == (200, 18, 0)
    assert plain.outcomes == ("FAIL", "FAIL") and plain.kl == pytest.approx(0.3)
    assert plain.perplexity_ratio == pytest.approx(1.5)
    assert ship.paired.lost == 1
    lines = ship_recipes.table([half, plain, ship]).splitlines()
    assert "-9.0 points" in lines[3] and "0 of 2" in lines[3] and "80.0 84.0" in lines[3]


def test_a_file_that_a_seed_lacks_has_no_row() -> None:
    seeds = [{"f16 plain": run(90), "q4_0 ship": run(90, 0.1)}, {"f16 plain": run(90)}]
    assert [row.file for row in ship_recipes.rows_of("t", seeds)] == ["f16 plain"]


def test_a_size_is_exported_from_the_control() -> None:
    file = ship_recipes.files_of(["auto-80M"], ["plain", "ship"])[1:]
    assert [(one.adapter, one.export) for one in file] == [
        ("control", ("--quant", "auto", "--max-size", "80M"))
    ]
    assert file[0].path == Path("control-auto-80M/auto.gguf")


def test_the_plot_shows_each_file_and_the_verdict() -> None:
    seed = {"f16 plain": run(90), "q4_0 plain": run(70, 0.2), "q4_0 ship": run(90, 0.1)}
    svg = ship_recipes.frontier(ship_recipes.rows_of("smart_home", [seed]))
    assert svg.startswith("<svg") and "smart_home: accuracy against bytes" in svg
    assert "q4_0 ship: 100.0 MB, 90%" in svg and 'class="fail' in svg


def test_results_of_other_options_are_refused(tmp_path: Path) -> None:
    values = dict.fromkeys(ship_recipes.RECORDED, 1) | {"out": tmp_path}
    for _ in range(2):
        check_options(argparse.Namespace(**values), ship_recipes.RECORDED)
    with pytest.raises(SystemExit, match="has other options"):
        check_options(argparse.Namespace(**values | {"steps": 2}), ship_recipes.RECORDED)


def test_file_names() -> None:
    assert File("q4_0", "ship+gptq").path == Path("ship-q4_0-ship+gptq/gptq-q4_0.gguf")
