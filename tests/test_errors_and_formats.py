"""Errors with hints, and the table of formats."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

from edgeft import errors, formats
from edgeft.errors import EdgeftError, FormatError, InputError, MissingExtra, did_you_mean, require
from edgeft.formats import FORMATS, Format, check_quants, format_named, format_of
from helpers.paths import ROOT

pytestmark = pytest.mark.unit


def test_an_error_is_one_line_with_its_hint() -> None:
    assert str(InputError("no such file", "check --data")) == "no such file (check --data)"
    assert str(InputError("no such file")) == "no such file"
    assert EdgeftError.exit_code == 1
    error = errors.DataError(Path("a/b.jsonl"), 7, "not JSON", "a hint")
    assert isinstance(error, InputError) and str(error) == "a/b.jsonl:7: not JSON (a hint)"


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = errors.__doc__ or ""
    for name, member in inspect.getmembers(errors, inspect.isclass):
        if issubclass(member, Exception):
            assert f"{name} " in drawn, f"edgeft/errors.py does not draw {name}"
            assert issubclass(member, EdgeftError)
    family = {"EdgeftError", *re.findall(r"─ (\w+)", drawn)}
    defined = {"EdgeftError"}
    for folder in ("edgeft", "converters", "benchmarks", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            for name, base in re.findall(r"^class (\w+)\((\w+)\):", path.read_text(), re.MULTILINE):
                if base in family:
                    assert name in family, f"edgeft/errors.py does not draw {name} of {path}"
                    defined.add(name)
    assert defined == family


def test_did_you_mean() -> None:
    known = ("q4_k_m", "q8_0", "f16")
    assert did_you_mean("q4km", known) == "did you mean 'q4_k_m'? known: f16, q4_k_m, q8_0"
    assert did_you_mean("Q8_0", known).startswith("did you mean 'q8_0'? ")
    assert did_you_mean("zzzz", known) == "known: f16, q4_k_m, q8_0"
    assert did_you_mean("x", []) == "known: "


def test_require_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert require("json", "train") is json
    for module in ("edgeft_no_such_package", "edgeft_no_such_package.inner"):
        with pytest.raises(MissingExtra) as caught:
            require(module, "train")
        assert str(caught.value) == (
            "edgeft_no_such_package is not installed (pip install 'edgeft[train]')"
        )


def test_require_does_not_swallow_a_defect_inside_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "edgeft_broken_a.py").write_text("import edgeft_not_there\n")
    (tmp_path / "edgeft_broken_b.py").write_text("from json import no_such_name\n")
    (tmp_path / "edgeft_broken_c.py").write_text("raise RuntimeError('inside')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="edgeft_not_there"):
        require("edgeft_broken_a", "train")
    with pytest.raises(ImportError, match="no_such_name"):
        require("edgeft_broken_b", "train")
    with pytest.raises(RuntimeError, match="inside"):
        require("edgeft_broken_c", "train")
    assert not [name for name in sys.modules if name.startswith("edgeft_broken")]


def test_format_named() -> None:
    assert format_named("GGUF") is FORMATS["gguf"]
    with pytest.raises(FormatError) as caught:
        format_named("guff")
    assert (
        str(caught.value)
        == f"unknown format 'guff' (did you mean 'gguf'? known: {', '.join(sorted(FORMATS))})"
    )


def names(rows: list[Format], *quants: str) -> list[str]:
    return [f"{row.name} {quant}" for row, quant in check_quants(rows, quants)]


def test_quants_come_from_the_most_to_the_least_exact() -> None:
    gguf = FORMATS["gguf"]
    found = names([gguf], "q4_0", "Q8_0", "f16", "q8_0")
    assert found == ["gguf f16", "gguf q8_0", "gguf q4_0"]
    assert names([gguf]) == ["gguf q4_k_m"]
    assert names([gguf], *reversed(gguf.quants)) == [f"gguf {quant}" for quant in gguf.quants]


def test_each_format_takes_its_own_quants_and_else_its_default() -> None:
    rows = [FORMATS["gguf"], FORMATS["gptq"], FORMATS["hf"]]
    assert names(rows) == ["gguf q4_k_m", "gptq 4bit", "hf f32"]
    assert names(rows, "3bit", "8bit") == ["gguf q4_k_m", "gptq 8bit", "gptq 3bit", "hf f32"]
    assert names(rows, "4bit", "f16") == ["gguf f16", "gptq 4bit", "hf f16"]


def test_an_unknown_quant_has_a_hint() -> None:
    gguf, gptq, hf = FORMATS["gguf"], FORMATS["gptq"], FORMATS["hf"]
    with pytest.raises(FormatError, match="format gguf has no quantization 'q4_km'") as caught:
        check_quants([gguf], ("q8_0", "Q4_KM"))
    assert caught.value.hint.startswith("did you mean 'q4_k_m'? known: auto, bf16, f16, f32")
    with pytest.raises(FormatError, match="format hf has no quantization 'q8_0'"):
        check_quants([hf], ("q8_0",))
    with pytest.raises(
        FormatError, match="format gptq or hf has no quantization '4bits'"
    ) as caught:
        check_quants([gptq, hf], ("4bits",))
    assert caught.value.hint.startswith("did you mean '4bit'? known: 2bit, 3bit")


def test_format_of(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert format_of(tmp_path / "model.gguf") is FORMATS["gguf"]
    with pytest.raises(InputError, match="is not a model that edgeft can run") as caught:
        format_of(tmp_path)
    assert "a .gguf file, or a folder" in caught.value.hint
    (tmp_path / "config.json").write_text("{}")
    assert format_of(tmp_path) is FORMATS["hf"]
    for text, name in (
        ('{"quantization_config": {"quant_method": "gptq"}}', "gptq"),
        ('{"quantization_config": {"quant_method": "awq"}}', "hf"),
        ('{"quantization_config": "gptq"}', "hf"),
        ("[", "hf"),
        ("[]", "hf"),
    ):
        (tmp_path / "config.json").write_text(text)
        assert format_of(tmp_path) is FORMATS[name]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quantize_config.json").write_text("{}")
    assert format_of(tmp_path) is FORMATS["gptq"]
    with pytest.raises(InputError, match="no such artifact: .*none.gguf") as caught:
        format_of(tmp_path / "none.gguf")
    assert caught.value.hint == "edgeft merge-export makes one"
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(InputError, match="is not a model that edgeft can run"):
        format_of(tmp_path / "folder.gguf")


@pytest.mark.parametrize("name", FORMATS)
def test_the_table_names_what_exists(name: str) -> None:
    row = FORMATS[name]
    plan, convert = (formats.load(entry) for entry in (row.plan, row.converter))
    assert list(inspect.signature(plan).parameters) == ["merged", "quant", "options"]
    merged, _, *others = inspect.signature(convert).parameters  # each names its own kind of plan
    assert merged == "merged" and others == ["out", "options", "landing"]
    runtime = formats.load(row.runtime)
    assert inspect.isclass(runtime)
    assert list(inspect.signature(runtime).parameters)[:2] == ["path", "threads"]
    describe = inspect.signature(formats.load(row.inspect)).parameters
    assert next(iter(describe)) == "path"
    assert set(row.default) <= set(row.quants) and row.default
    assert all(quant == quant.lower() for quant in row.quants)
    assert set(row.solved) <= set(row.quants)
