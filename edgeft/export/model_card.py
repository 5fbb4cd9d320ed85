"""Artifacts of a folder -> README.md with front matter for a model hub, and a bill of materials for each.

    write_cards([Artifact(Path("out/q8_0.gguf"), …)], Origin.of(view, options))

A README.md beside .gguf files lists all of them; one in a folder is about that folder. The last line of a
card holds the hash of the lines before it, so a card that somebody edited, and any other README.md, is
never changed. Neither file is in a manifest: both may change while the artifact stays the same.

Fields of the front matter: https://huggingface.co/docs/hub/model-cards. The bill of materials is
CycloneDX 1.6 (`materials.py`), NAME.cdx.json beside the artifact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeft import models, store
from edgeft.adapter.read import Weighted
from edgeft.errors import EdgeftError
from edgeft.export.materials import identity_of, materials, task_of
from edgeft.files import format_bytes, read_json, read_text, text_sha256, write_text
from edgeft.progress import say_once
from edgeft.records import Arm, Artifact, Release
from edgeft.report import storage

CARD = "README.md"
UNQUANTIZED = ("f32", "f16", "bf16")
_MARK = "<!-- edgeft {}: this card is written anew by edgeft as long as nobody edits it -->"
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_LICENSE = re.compile(r"^license: *[\"']?([\w.+-]{1,60})[\"']? *$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True)
class Origin:
    """Where the artifacts of an export come from."""

    base: str
    """hub id, embedded name, or the folder's name"""
    family: str
    license: str
    """of the base, as its README.md or sources.toml names it; "" = not known"""
    parents: dict[str, str]
    """role -> identity, of the adapters' own parents too: adapter: data"""

    @classmethod
    def of(
        cls,
        name: str,
        folder: Path,
        family: str,
        adapters: Sequence[Weighted],
        parents: dict[str, str],
    ) -> Origin:
        """`name`: the base as it was asked for, `folder`: the one that it is in."""
        sources = models.sources()
        is_name = bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()
        shown = name if name in sources or is_name else folder.name
        license_ = sources[name].license if name in sources else _license(folder)
        grown = dict(parents)
        for number, adapter in enumerate(adapters, 1):
            role = "adapter" if number == 1 else f"adapter {number}"
            manifest = store.read_manifest(adapter.path)
            for inner, identity in (manifest.parents if manifest else {}).items():
                grown[f"{role}: {inner}"] = identity
        return cls(shown, family, license_, grown)

    @property
    def is_on_hub(self) -> bool:
        return bool(_HUB_ID.fullmatch(self.base))


def write_cards(artifacts: Sequence[Artifact], origin: Origin) -> None:
    """Write or renew the cards and the bills of materials of an export."""
    for artifact in artifacts:
        text = json.dumps(
            materials(artifact, origin.base, origin.license, origin.parents), indent=1
        )
        _write_changed(materials_path(artifact.path), text + "\n")
    folders = [artifact for artifact in artifacts if artifact.path.is_dir()]
    for artifact in folders:
        _renew(artifact.path / CARD, _card([artifact], origin, artifact.path.parent))
    if files := [artifact for artifact in artifacts if artifact not in folders]:
        out = files[0].path.parent
        _renew(out / CARD, _card([*files, *_others(out, files)], origin, out))


def materials_path(artifact: Path) -> Path:
    """NAME.cdx.json beside a file or a folder: within a folder it would be a file of the model."""
    return artifact.with_name(f"{artifact.name}.cdx.json")


def _others(out: Path, files: Sequence[Artifact]) -> list[Artifact]:
    """The .gguf files of earlier exports into the same folder, from the same parents."""
    known, parents = {artifact.path for artifact in files}, files[0].manifest.parents
    others = []
    for path in sorted(out.glob("*.gguf")):
        try:
            manifest = None if path in known else store.read_manifest(path)
        except EdgeftError:
            continue
        if manifest and manifest.kind == "artifact" and manifest.parents == parents:
            others.append(Artifact(path, "gguf", str(manifest.options.get("quant")), manifest))
    return others


def _renew(path: Path, text: str) -> None:
    """Write a card, unless a README.md is there that is none or that was edited."""
    if path.exists() and not _is_untouched(path):
        say_once(f"{path} is not edgeft's, or was edited: it stays as it is")
        return
    _write_changed(path, text + _MARK.format(text_sha256(text)) + "\n")


def _write_changed(path: Path, text: str) -> None:
    """Write a file that does not have this text already."""
    try:
        is_same = read_text(path) == text
    except (OSError, EdgeftError):
        is_same = False
    if not is_same:
        write_text(path, text)


def _is_untouched(path: Path) -> bool:
    try:
        text, _, last = read_text(path).rstrip("\n").rpartition("\n")
    except EdgeftError:
        return False
    return last == _MARK.format(text_sha256(text + "\n"))


def _card(artifacts: Sequence[Artifact], origin: Origin, out: Path) -> str:
    """The card up to its last line."""
    title = out.resolve().name if len(artifacts) > 1 else artifacts[0].path.name
    facts = artifacts[0].manifest
    rows = ["| artifact | type | size | sha256 |", "|---|---|--:|---|"]
    rows += [_row(artifact) for artifact in artifacts]
    adapter = " and an adapter" if "adapter" in facts.parents else ""
    about = (
        f"Made by edgeft {facts.edgeft} from the base {origin.base}{adapter}, a {origin.family} model. The stored "
        "weights of each artifact were checked against what they were made from; its manifest has the figures."
    )
    parts = [
        *_front_matter(artifacts, origin), f"# {title}", "", about, "", *rows, "",
        "## Made from", "", "| what | sha256 |", "|---|---|",
        *(f"| {role} | `{identity}` |" for role, identity in origin.parents.items()), "",
        *_measured(artifacts, out),
        "## Check it", "", "```sh", f"edgeft verify {artifacts[0].path.name}", "```", "",
        f"`{materials_path(artifacts[0].path).name}` is the bill of materials (CycloneDX).", "",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _row(artifact: Artifact) -> str:
    files = artifact.manifest.files
    size = format_bytes(sum(record.size for record in files.values()))
    return f"| {artifact.path.name} | {artifact.quant} | {size} | `{identity_of(artifact)}` |"


def _front_matter(artifacts: Sequence[Artifact], origin: Origin) -> Iterable[str]:
    """YAML. Values are JSON texts, which are YAML too, or of letters that need no quotes."""
    quantized = any(artifact.quant not in UNQUANTIZED for artifact in artifacts)
    tags = ["edgeft", *sorted({artifact.format for artifact in artifacts})]
    yield "---"
    if origin.license:
        yield f"license: {origin.license}"
    if origin.is_on_hub:
        yield f"base_model: {json.dumps(origin.base)}"
        yield f"base_model_relation: {'quantized' if quantized else 'finetune'}"
    yield f"pipeline_tag: {task_of(artifacts[0].manifest)}"
    yield f"tags: {json.dumps(tags)}"
    yield from ("---", "")


def _license(base: Path) -> str:
    """The license in the front matter of the base's README.md, "" where none is named."""
    try:
        front = _FRONT_MATTER.match(read_text(base / CARD))
    except (OSError, EdgeftError):
        return ""
    found = _LICENSE.search(front[1]) if front else None
    return found[1] if found else ""


def _measured(artifacts: Sequence[Artifact], out: Path) -> list[str]:
    """The scores of these artifacts in a report of `edgeft ab` or `edgeft search` that lies beside them."""
    identities = set(map(identity_of, artifacts))
    for folder in (out, out / "report", out.parent / "report"):
        try:
            lines = _scores(Release.from_json(read_json(folder / storage.JSON)), identities)
        except (EdgeftError, OSError, LookupError, TypeError, ValueError, AttributeError):
            continue  # there is none, or it is not of edgeft
        if lines:
            return lines
    return []


def _scores(release: Release, identities: set[str]) -> list[str]:
    arms = [arm for arm in release.arms if arm.identity in identities and arm.accuracy is not None]
    if not arms:
        return []
    name, items = _cell(release.task["name"]), _cell(release.task["items"])
    return [
        f"## Measured on {name}, {items} items", "",
        "| artifact | score | 95 % interval | gate |", "|---|--:|--:|---|", *map(_arm_row, arms), "",
    ]  # fmt: skip


def _arm_row(arm: Arm) -> str:
    low, high = arm.interval or (0.0, 0.0)
    interval = f"{low:.1%} to {high:.1%}" if arm.interval else ""
    score = f"{arm.accuracy:.1%}" if arm.accuracy is not None else ""
    outcome = (arm.verdict or {}).get("outcome", "")
    return f"| {_cell(arm.name)} | {score} | {interval} | {_cell(outcome)} |"


def _cell(value: object) -> str:
    """A text of a report, which may be a stranger's, without markup."""
    return " ".join(re.sub(r"[^\w .:/+-]", " ", str(value or ""))[:100].split())
