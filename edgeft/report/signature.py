"""A result and a private key -> a signature file beside it, and whether a public key's owner made one.

    signature.sign(Path("out/q4_k_m.gguf"), Path("signer.pem"))     # out/q4_k_m.gguf.sig
    signature.problem(target, manifest, Path("signer.pub"))         # "" where it is signed as it is

The file is that of OpenSSF Model Signing 1.0: a DSSE envelope with an in-toto statement of the names and
hashes of all files, in a sigstore bundle. `model_signing verify key` reads it, too. The statement names
the manifest and every file that it lists, so lineage and options are signed with the weights. Keys are
elliptic curves P-256, P-384 or P-521; nothing needs a network.

https://github.com/sigstore/model-transparency/blob/v1.1.1/docs/model_signing_format.md,
https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from edgeft import files, store
from edgeft.errors import InputError, StaleError, require
from edgeft.records import Manifest

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
PASSWORD_VARIABLE = "EDGEFT_KEY_PASSWORD"
MAX_KEY_BYTES, MAX_SIGNATURE_BYTES = 100_000, 64_000_000
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
_KEY_HINT = "openssl ecparam -name prime256v1 -genkey -noout -out signer.pem"


def signature_path(target: Path) -> Path:
    """`NAME.gguf.sig` beside a file, `model.sig` in a folder, where publishers have it."""
    return target / "model.sig" if target.is_dir() else target.with_name(target.name + ".sig")


def sign(target: Path, private_key: Path, overwrite: bool = False) -> Path:
    """Write the signature; the one that this key made of the same files is kept.

    InputError for a result without a manifest or with damaged files, and for a file that is no key.
    StaleError for another signature, without `overwrite`. MissingExtra without cryptography.
    """
    manifest = store.read_manifest(target)
    if manifest is None:
        raise InputError(f"{target} has no manifest", "what edgeft made can be signed")
    key = _private_key(private_key)
    files.forget_hashes()
    if damage := store.damaged(target, manifest):
        raise InputError(f"not signed: {damage[0]}", "edgeft verify says more")
    path, hashes = signature_path(target), _hashes(target, manifest)
    if path.exists():
        known = _problem(path, hashes, key.public_key())
        if not known:
            return path
        if not overwrite:
            raise StaleError(f"{path} is there: {known}", "--overwrite replaces it")
    payload = json.dumps(_statement(target.name, hashes)).encode()
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {
            "publicKey": {"hint": _fingerprint(key.public_key())}, "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD,
            "signatures": [{
                "sig": base64.b64encode(key.sign(_encoded(payload), _algorithm(key))).decode(),
                "keyid": "",
            }],
        },
    }  # fmt: skip
    files.write_text(path, json.dumps(bundle) + "\n")
    return path


def problem(target: Path, manifest: Manifest, public_key: Path) -> str:
    """Why the owner of the key did not sign this manifest and its hashes; "" where they did.

    The hashes of the files themselves are `store.damaged`'s work. InputError for a file that is no key.
    """
    return _problem(signature_path(target), _hashes(target, manifest), _public_key(public_key))


def _problem(path: Path, hashes: dict[str, str], key: Any) -> str:
    exceptions = require("cryptography.exceptions", "sign")
    try:
        bundle = json.loads(files.read_text(path, MAX_SIGNATURE_BYTES))
        envelope = bundle["dsseEnvelope"]
        (signed,) = envelope["signatures"]
        payload, signature = (
            base64.b64decode(text, validate=True) for text in (envelope["payload"], signed["sig"])
        )
        if (bundle["mediaType"], envelope["payloadType"]) != (BUNDLE, PAYLOAD):
            return "it is no signature of a model"
        hint = bundle["verificationMaterial"]["publicKey"].get("hint")
    except (FileNotFoundError, NotADirectoryError):
        return "it is not signed"
    except InputError as error:
        return error.message
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"it is no signature: {error!r}"
    if hint and hint != _fingerprint(key):
        return "it was made with another key"
    try:
        key.verify(signature, _encoded(payload), _algorithm(key))
    except exceptions.InvalidSignature:
        return "the signature is not valid"
    return _difference(payload, hashes)


def _difference(payload: bytes, hashes: dict[str, str]) -> str:
    """Which of the files a signed statement does not name, or names with another hash."""
    try:
        signed = json.loads(payload)
        kind = (signed["_type"], signed["predicateType"])
        theirs = {row["name"]: (row["algorithm"], row["digest"])
                  for row in signed["predicate"]["resources"]}  # fmt: skip
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        return f"it is no statement about a model: {error!r}"
    if kind != (STATEMENT, PREDICATE):
        return "it is a statement of another kind"
    for name, digest in sorted(hashes.items()):
        if theirs.get(name) != ("sha256", digest):
            return (
                f"{name} is not the one that was signed"
                if name in theirs
                else f"{name} is not signed"
            )
    return ""


def _hashes(target: Path, manifest: Manifest) -> dict[str, str]:
    """Name -> sha256 of the manifest and of the files that it lists."""
    record = store.manifest_path(target)
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
    return {**hashes, record.name: files.sha256(record)}


def _statement(name: str, hashes: dict[str, str]) -> dict[str, Any]:
    """The in-toto statement about files."""
    digests = sorted(hashes.items())
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in digests))
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests
            ],
        },
    }


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload)} ".encode() + payload


def _algorithm(key: Any) -> Any:
    hashes = require("cryptography.hazmat.primitives.hashes", "sign")
    ec = require("cryptography.hazmat.primitives.asymmetric.ec", "sign")
    return ec.ECDSA(getattr(hashes, _HASHES[key.curve.name])())


def _fingerprint(key: Any) -> str:
    """sha256 of the public key's PEM, as model_signing has it."""
    serialization = require("cryptography.hazmat.primitives.serialization", "sign")
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _private_key(path: Path) -> Any:
    serialization = require("cryptography.hazmat.primitives.serialization", "sign")
    password = os.environ.get(PASSWORD_VARIABLE)
    return _key(path, "private", lambda data: serialization.load_pem_private_key(
        data, password.encode() if password else None))  # fmt: skip


def _public_key(path: Path) -> Any:
    serialization = require("cryptography.hazmat.primitives.serialization", "sign")
    return _key(path, "public", serialization.load_pem_public_key)


def _key(path: Path, kind: str, load: Any) -> Any:
    """InputError for anything but a key of a curve that the format has."""
    exceptions = require("cryptography.exceptions", "sign")
    try:
        key = load(files.read_bytes(path, MAX_KEY_BYTES, plain=False))
        if key.curve.name in _HASHES:
            return key
        reason = f"its curve is {key.curve.name}"
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no such file: {path}", "check --key") from None
    except AttributeError:
        reason = "it is of no elliptic curve"
    except TypeError:
        reason = f"it has a password: set {PASSWORD_VARIABLE}, or it has none: unset it"
    except (ValueError, exceptions.UnsupportedAlgorithm) as error:
        reason = str(error).partition("\n")[0][:200]
    raise InputError(f"{path} is no {kind} key of P-256, P-384 or P-521: {reason}", _KEY_HINT)
