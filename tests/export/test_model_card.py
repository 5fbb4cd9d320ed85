"""Model cards and bills of materials: what they say, and whose README.md they never touch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.export.model_card import CARD, Origin, materials_path, write_cards
from edgeft.records import Arm, Artifact, Release
from edgeft.report import storage

pytestmark = pytest.mark.unit

PARENTS = {"base": "b" * 64, "adapter": "a" * 64}


def artifact(target: Path, quant: str = "q8_0") -> Artifact:
    options = {"format": "gguf", "quant": quant}
    with store.writing(target, kind="artifact", options=options, parents=PARENTS) as draft:
        if draft.path.is_dir():
            (draft.path / "config.json").write_text("{}")
            (draft.path / "model.safetensors").write_bytes(b"w")
        else:
            draft.path.write_bytes(quant.encode())
    manifest = store.read_manifest(target)
    assert manifest
    return Artifact(target, "gguf" if target.suffix else "hf", quant, manifest)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    adapter = tmp_path / "adapter"
    parents = {"base": "b" * 64, "data": "d" * 64}
    with store.writing(adapter, kind="adapter", options={}, parents=parents) as draft:
        (draft.path / "adapter_config.json").write_text("{}")
    base = tmp_path / "base"
    base.mkdir()
    (base / CARD).write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Base\n")
    return Origin.of("maker/base-1b", base, "llama", [Weighted(adapter)], PARENTS)


def front_matter(card: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_a_card_names_base_license_files_and_hashes(origin: Origin, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = [artifact(out / "f16.gguf", "f16"), artifact(out / "q8_0.gguf")]
    write_cards(made, origin)
    card = (out / CARD).read_text()
    assert front_matter(card) == {
        "license": "apache-2.0", "base_model": "maker/base-1b", "base_model_relation": "quantized",
        "pipeline_tag": "text-generation", "tags": ["edgeft", "gguf"],
    }  # fmt: skip
    assert card.count("| f16.gguf | f16 | 3 B |") == 1
    for one in made:
        assert one.manifest.files[one.path.name].sha256 in card
    assert f"| adapter: data | `{'d' * 64}` |" in card
    write_cards([artifact(out / "q4_0.gguf", "q4_0")], origin)
    assert all(name in (out / CARD).read_text() for name in ("f16.gguf", "q8_0.gguf", "q4_0.gguf"))


def test_a_folder_has_its_own_card_and_stays_whole(origin: Origin, tmp_path: Path) -> None:
    made = artifact(tmp_path / "out/hf-f16", "f16")
    identity = store.identity(made.path)
    write_cards([made], origin)
    assert front_matter((made.path / CARD).read_text())["base_model_relation"] == "finetune"
    assert (tmp_path / "out/hf-f16.cdx.json").is_file() and not (tmp_path / "out" / CARD).exists()
    assert not store.damaged(made.path, made.manifest)
    assert store.identity(made.path, use_manifest=False) == identity


@pytest.mark.parametrize("text", ["", "# Mine\n", "---\nlicense: mit\n---\n", None])
def test_the_readme_of_a_user_is_never_changed(
    origin: Origin, tmp_path: Path, text: str | None
) -> None:
    made = artifact(tmp_path / "out/q8_0.gguf")
    path = tmp_path / "out" / CARD
    if text is None:  # an edited card
        write_cards([made], origin)
        text = path.read_text().replace("# q8_0.gguf", "# Our model")
    path.write_text(text)
    for _ in range(2):
        write_cards([made], origin)
        assert path.read_text() == text
    assert materials_path(made.path).is_file()


def test_an_unchanged_card_is_not_written_again(origin: Origin, tmp_path: Path) -> None:
    made = artifact(tmp_path / "out/q8_0.gguf")
    write_cards([made], origin)
    paths = (tmp_path / "out" / CARD, materials_path(made.path))
    before = [(path.read_bytes(), path.stat().st_ino) for path in paths]
    write_cards([made], origin)
    assert [(path.read_bytes(), path.stat().st_ino) for path in paths] == before


def test_scores_of_a_report_beside_it_are_shown_of_these_artifacts_alone(
    origin: Origin, tmp_path: Path
) -> None:
    made = artifact(tmp_path / "out/q8_0.gguf")
    arms = (
        Arm("q8_0 |\n# x", "candidate", "q8_0.gguf", 4, made.manifest.files["q8_0.gguf"].sha256,
            accuracy=0.9, interval=(0.8, 0.95), verdict={"outcome": "PASS"}),
        Arm("other", "candidate", "x.gguf", 4, "0" * 64, accuracy=0.1),
    )  # fmt: skip
    release = Release("PASS", "q8_0", "r", {"name": "lamps", "items": 200}, arms, {})
    (tmp_path / "out/report").mkdir()
    text = json.dumps(release.to_json())
    (tmp_path / "out/report" / storage.JSON).write_text(text)
    write_cards([made], origin)
    card = (tmp_path / "out" / CARD).read_text()
    assert "## Measured on lamps, 200 items" in card
    assert "| q8_0 x | 90.0% | 80.0% to 95.0% | PASS |" in card and "10.0%" not in card
    (tmp_path / "out/report" / storage.JSON).write_text(text.replace("0.9", '"x"'))
    write_cards([made], origin)
    assert "Measured" not in (tmp_path / "out" / CARD).read_text()


@pytest.mark.parametrize(
    ("readme", "license_"),
    [("license: mit", ""), ("---\nlicense: 'MIT'\n---\n", "MIT"), ("---\nlicense: a\\nb: c\n---\n", ""),
     ("---\nlicense: [mit]\n---\n", ""), ("---\nlicense: " + "x" * 99 + "\n---\n", ""), ("\udcff", "")],
)  # fmt: skip
def test_only_a_plain_license_is_taken_from_a_strangers_readme(
    tmp_path: Path, readme: str, license_: str
) -> None:
    (tmp_path / CARD).write_bytes(readme.encode("utf-8", "surrogateescape"))
    assert Origin.of("folder", tmp_path, "llama", (), PARENTS).license == license_


def test_the_bill_of_materials_says_what_was_made_from_what(origin: Origin, tmp_path: Path) -> None:
    made = artifact(tmp_path / "out/q8_0.gguf")
    write_cards([made], origin)
    bill = json.loads(materials_path(made.path).read_text())
    digest = made.manifest.files["q8_0.gguf"].sha256
    assert bill["bomFormat"] == "CycloneDX" and bill["specVersion"] == "1.6"
    subject = bill["metadata"]["component"]
    assert subject["type"] == "machine-learning-model"
    assert subject["components"][0]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    by_ref = {component["bom-ref"]: component for component in bill["components"]}
    assert by_ref["base"]["name"] == "maker/base-1b"
    assert by_ref["base"]["licenses"] == [{"license": {"name": "apache-2.0"}}]
    assert by_ref["adapter: data"]["type"] == "data"
    assert bill["dependencies"] == [
        {"ref": "artifact", "dependsOn": ["base", "adapter"]},
        {"ref": "adapter", "dependsOn": ["adapter: base", "adapter: data"]},
    ]
    assert set(by_ref) == set(origin.parents)
