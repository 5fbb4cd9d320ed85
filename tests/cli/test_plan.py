"""`edgeft plan`: tables and JSON from a folder and from a config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

LLAMA_2: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "vocab_size": 32000}


@pytest.mark.unit
def test_a_config_alone_is_planned(edgeft: Any, tmp_path: Path) -> None:
    """Llama 2 7B: 6.74 billion weights; a cache of half a MB for each token."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA_2))
    done = edgeft("plan", "--base", str(config), "--memory", "64G", "--context", "1000", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["base"]["weights"] == 6_738_415_616
    types = {"f16": 524_288_000, "q8_0-f16": 401_408_000, "q8_0": 278_528_000, "q4_0": 147_456_000}
    assert facts["cache"] == {"tokens": 1000, "bytes": types["f16"], "types": types}
    row = next(row for row in facts["methods"] if row["method"] == "qlora")
    # r = 16 beside q, k, v, o (4096 x 4096) and gate, up, down (4096 x 11008) of 32 layers
    assert row["trained"] == 32 * 16 * (4 * 8192 + 3 * 15104)
    assert row["memory"]["optimizer"] == 8 * row["trained"]
    assert row["memory"]["base"] == 4 * 6_738_415_616 == row["rule_of_thumb"]
    sizes = {need["quant"]: need["size"] for need in facts["export"]}
    assert sizes["f16"] == 2 * 6_738_415_616


@pytest.mark.unit
def test_the_verdict_names_what_fits(edgeft: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2))
    done = edgeft("plan", "--base", str(tmp_path), "--method", "qlora", "--memory", "0.012T")
    assert "qlora" in done.out and "fits with" in done.out and "--keep-4bit" in done.out
    assert "does not fit" in edgeft("plan", "--base", str(tmp_path), "--memory", "3G").out


@pytest.mark.unit
def test_ship_holds_the_layers_twice(edgeft: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2))
    args = ("plan", "--base", str(tmp_path), "--method", "qlora,dora", "--memory", "64G")
    plain, shipped = (
        json.loads(edgeft(*args, *more, "--json").out) for more in ((), ("--ship", "q4_0"))
    )
    layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    qlora, dora = (
        [facts["methods"][i]["memory"]["base"] for facts in (plain, shipped)] for i in (0, 1)
    )
    assert qlora[1] - qlora[0] == 4 * layers
    assert dora[1] == dora[0]  # DoRA cannot be trained for a type
    assert [row["ship"] for row in shipped["methods"]] == ["q4_0", None]
    assert (
        "planned without --ship, which they do not have: dora"
        in edgeft(*args, "--ship", "q4_0").out
    )


@pytest.mark.unit
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--memory", "lots"], "'lots' is no size; such as 200M or 1.5G"),
        (["--memory", "0.4"], "'0.4' is no size; such as 200M or 1.5G"),
        (["--quant", "q4_9"], "plan knows no size of 'q4_9' (did you mean 'q4_"),
        (["--ship", "q4"], "--ship q4 is no type that rounds each weight to the nearest value"),
        (["--ship", "iq3_s"], "--ship iq3_s: its values are too slow to compute in every step"),
        (["--method", "qlor"], "no training method 'qlor' (did you mean 'qlora'"),
    ],
)
def test_bad_input_is_one_line(edgeft: Any, tmp_path: Path, args: list[str], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2))
    done = edgeft("plan", "--base", str(tmp_path), *args)
    assert done.code in (1, 2) and message in done.err and "Traceback" not in done.err


def test_data_gives_lengths_and_time(edgeft: Any, tiny_base: Path, tiny_chats: Path) -> None:
    done = edgeft("plan", "--base", str(tiny_base), "--data", str(tiny_chats), "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert 20 < facts["batch"]["length"] < 100
    assert facts["methods"][0]["fits"] and facts["methods"][0]["seconds"] >= 0
