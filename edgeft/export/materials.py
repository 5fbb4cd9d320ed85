"""An artifact and its origin -> a machine-learning bill of materials, CycloneDX 1.6 as JSON.

The artifact, its base, its adapters and their data are components with hashes; `dependencies` says what
was made from what. A file has its sha256. A folder has the hash over the names and hashes of its files
(`edgeft.store.identity`) as the property edgeft:identity. The same artifact gives the same document:
there is no date and no random number in it. https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import uuid
from typing import Any

from edgeft import store
from edgeft.records import Artifact, Manifest

REWARD = "reward_model"
"""fact of the manifest of a reward model"""
MODEL_ROLES = ("base", "adapter", "ship_from")


def materials(
    artifact: Artifact, base: str, license_: str, parents: dict[str, str]
) -> dict[str, Any]:
    """`base`: its name; `license_`: of the base, "" = not known; `parents`: role -> identity, with
    "adapter: data" and the like for what an adapter was made from."""
    identity = identity_of(artifact)
    made = artifact.manifest
    subject = {
        "type": "machine-learning-model", "bom-ref": "artifact", "name": artifact.path.name,
        "properties": [
            {"name": "edgeft:identity", "value": identity},
            {"name": "edgeft:format", "value": artifact.format},
            {"name": "edgeft:quant", "value": artifact.quant},
        ],
        "components": [
            {"type": "file", "bom-ref": f"file:{name}", "name": name,
             "hashes": [{"alg": "SHA-256", "content": record.sha256}]}
            for name, record in sorted(made.files.items())
        ],
        "modelCard": {"modelParameters": {"task": task_of(made)}},
    }  # fmt: skip
    components = [_component(role, value, base, license_) for role, value in parents.items()]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, identity).urn,
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "edgeft", "version": made.edgeft}]
            },
            "component": subject,
        },
        "components": components,
        "dependencies": list(_dependencies(parents)),
    }


def task_of(manifest: Manifest) -> str:
    """What an artifact is for, by the Hub's names of tasks."""
    return "text-classification" if manifest.facts.get(REWARD) else "text-generation"


def identity_of(artifact: Artifact) -> str:
    """`store.identity` of an artifact by its manifest: no file is read."""
    files = artifact.manifest.files
    return (
        store.identity(artifact.path)
        if artifact.path.is_dir()
        else files[artifact.path.name].sha256
    )


def _component(role: str, identity: str, base: str, license_: str) -> dict[str, Any]:
    part = role.rpartition(": ")[2]
    is_model = part.partition(" ")[0] in MODEL_ROLES
    component: dict[str, Any] = {
        "type": "machine-learning-model" if is_model else "data",
        "bom-ref": role,
        "name": base if part == "base" else part,
        "properties": [{"name": "edgeft:identity", "value": identity}],
    }
    if part == "base" and license_:
        component["licenses"] = [{"license": {"name": license_}}]
    return component


def _dependencies(parents: dict[str, str]) -> list[dict[str, Any]]:
    """What was made from what."""
    direct = [role for role in parents if ": " not in role]
    rows = [{"ref": "artifact", "dependsOn": direct}]
    for role in direct:
        inner = [other for other in parents if other.startswith(f"{role}: ")]
        if inner:
            rows.append({"ref": role, "dependsOn": inner})
    return rows
