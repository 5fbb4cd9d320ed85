"""Signatures of results: whatever byte changes, `verify --key` says so."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.errors import InputError, StaleError
from edgeft.report import lineage, signature

pytest.importorskip("cryptography")
pytestmark = pytest.mark.unit


def make_key(
    path: Path, curve: str = "SECP256R1", password: bytes | None = None
) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    secret = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, secret)
    public = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    files = path.with_suffix(".pem"), path.with_suffix(".pub")
    for file, data in zip(files, (private, public), strict=True):
        file.write_bytes(data)
    return files


def make_result(target: Path) -> Path:
    with store.writing(target, kind="artifact", options={"a": 1}, parents={}) as draft:
        if draft.path.is_dir():
            (draft.path / "config.json").write_text('{"a": 1}')
            (draft.path / "model.safetensors").write_bytes(bytes(range(200)))
        else:
            draft.path.write_bytes(bytes(range(200)))
    return target


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_key(tmp_path_factory.mktemp("key") / "signer")


def states(target: Path, public: Path) -> set[str]:
    """An error counts as found: a manifest whose schema is 9 is one of a newer edgeft."""
    try:
        return {check.state for check in lineage.verify(target, public_key=public)}
    except InputError:
        return {"damaged"}


@pytest.mark.parametrize("name", ["q.gguf", "hf"])
@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_flipped_byte_is_found(
    key: tuple[Path, Path], tmp_path: Path, name: str, count: int
) -> None:
    target = make_result(tmp_path / name)
    made = signature.sign(target, key[0])
    assert states(target, key[1]) == {"ok"}
    files = sorted(p for p in tmp_path.rglob("*") if p.is_file() and p != made)
    whole = {file: file.read_bytes() for file in files}
    draw = random.Random(1)
    for _ in range(count):
        file = draw.choice(files)
        data = bytearray(whole[file])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        assert "damaged" in states(target, key[1]), (file, bytes(data))
        file.write_bytes(whole[file])
    assert states(target, key[1]) == {"ok"}


def test_a_damaged_signature_passes_for_no_other_result(
    key: tuple[Path, Path], tmp_path: Path
) -> None:
    """Some bytes of it mean nothing, such as a space between two entries."""
    target = make_result(tmp_path / "q.gguf")
    made = signature.sign(target, key[0])
    whole, draw = made.read_bytes(), random.Random(2)
    found = 0
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        made.write_bytes(data)
        found += states(target, key[1]) == {"ok", "damaged"}
    assert found > 140
    other = make_result(tmp_path / "other/q.gguf")
    other.write_bytes(b"x" * 200)
    shutil.copy(made, signature.signature_path(other))
    assert "damaged" in states(other, key[1])


def test_a_result_with_the_manifest_of_another_is_not_signed(
    key: tuple[Path, Path], tmp_path: Path
) -> None:
    target = make_result(tmp_path / "q.gguf")
    made = signature.sign(target, key[0])
    kept = made.read_bytes()
    with store.writing(
        target, kind="artifact", options={"a": 2}, parents={}, overwrite=True
    ) as draft:
        draft.path.write_bytes(b"another model")
    made.write_bytes(kept)
    result, signed = lineage.verify(target, public_key=key[1])
    assert result.state == "ok"
    assert signed.state == "damaged" and "q.gguf is not the one that was signed" in signed.problems


def test_who_has_another_key_did_not_sign(key: tuple[Path, Path], tmp_path: Path) -> None:
    target = make_result(tmp_path / "q.gguf")
    _, signed = lineage.verify(target, public_key=key[1])
    assert signed.problems == ("it is not signed",) and signed.state == "damaged"
    made = signature.sign(target, key[0])
    other = make_key(tmp_path / "other", "SECP384R1")
    _, signed = lineage.verify(target, public_key=other[1])
    assert signed.problems == ("it was made with another key",)
    bundle = json.loads(made.read_text())
    bundle["verificationMaterial"]["publicKey"] = {}
    made.write_text(json.dumps(bundle))
    _, signed = lineage.verify(target, public_key=other[1])
    assert signed.problems == ("the signature is not valid",)
    assert states(target, key[1]) == {"ok"}


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "[" * 5000, '{"dsseEnvelope": 3}', '{"dsseEnvelope": {"signatures": []}}'],
)
def test_what_is_no_signature(key: tuple[Path, Path], tmp_path: Path, text: str) -> None:
    target = make_result(tmp_path / "q.gguf")
    signature.signature_path(target).write_text(text)
    assert "it is no signature" in lineage.verify(target, public_key=key[1])[1].problems[0]


def test_what_is_no_key(
    key: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_result(tmp_path / "q.gguf")
    bad = tmp_path / "bad.pem"
    for data, says in ((b"", "no private key"), (b"\x80\x04x", "no private key"),
                       (key[1].read_bytes(), "no private key")):  # fmt: skip
        bad.write_bytes(data)
        with pytest.raises(InputError, match=says):
            signature.sign(target, bad)
    with pytest.raises(InputError, match="no public key"):
        lineage.verify(target, public_key=key[0])
    with pytest.raises(InputError, match="no such file"):
        signature.sign(target, tmp_path / "none.pem")
    with pytest.raises(InputError, match="its curve is secp256k1"):
        signature.sign(target, make_key(tmp_path / "bitcoin", "SECP256K1")[0])
    locked = make_key(tmp_path / "locked", password=b"secret")
    with pytest.raises(InputError, match="it has a password"):
        signature.sign(target, locked[0])
    monkeypatch.setenv(signature.PASSWORD_VARIABLE, "secret")
    signature.sign(target, locked[0])
    assert states(target, locked[1]) == {"ok"}


def test_nothing_is_signed_that_is_damaged_or_signed_by_others(
    key: tuple[Path, Path], tmp_path: Path
) -> None:
    target = make_result(tmp_path / "q.gguf")
    made = signature.sign(target, key[0])
    first = made.read_bytes()
    assert signature.sign(target, key[0]) == made and made.read_bytes() == first
    other = make_key(tmp_path / "other")
    with pytest.raises(StaleError, match="it was made with another key"):
        signature.sign(target, other[0])
    signature.sign(target, other[0], overwrite=True)
    assert states(target, other[1]) == {"ok"}
    target.write_bytes(b"x" * 200)
    with pytest.raises(InputError, match="not signed: .*q.gguf"):
        signature.sign(target, key[0], overwrite=True)
    (tmp_path / "foreign.gguf").write_bytes(b"x")
    with pytest.raises(InputError, match="has no manifest"):
        signature.sign(tmp_path / "foreign.gguf", key[0])


def test_the_commands(edgeft: Callable[..., Any], key: tuple[Path, Path], tmp_path: Path) -> None:
    target = make_result(tmp_path / "q.gguf")
    ran = edgeft("verify", target, "--key", key[1])
    assert ran.code == 3 and "it is not signed" in ran.out
    ran = edgeft("sign", target, "--key", key[0], "--json")
    assert json.loads(ran.out) == {"signatures": {str(target): f"{target}.sig"}}
    ran = edgeft("verify", target, "--key", key[1])
    assert ran.code == 0 and "ok         signature: " in ran.out
    assert edgeft("sign", target, "--key", key[1]).code == 1


def test_a_signature_of_the_reference_implementation(tmp_path: Path) -> None:
    """`model_signing sign key` of model-signing 1.1.1 made tests/report/signed/model.sig."""
    target = shutil.copytree(Path(__file__).with_name("signed"), tmp_path / "signed")
    assert states(target, target / "signer.pub") == {"ok"}
    (target / "config.json").write_text('{"a": 2}')
    assert "damaged" in states(target, target / "signer.pub")
