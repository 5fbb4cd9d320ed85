"""Bad files of weights: safetensors, and pickles under every name that weights have."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from helpers.bad_models.case import Case, Write, a_file, sparse, with_header

TB = 10**12


def entry(
    begin: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32", **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def deep(count: int, inner: str = "0") -> bytes:
    return ('{"a":' * count + inner + "}" * count).encode()


BROKEN = "broken safetensors header"
HEADERS: dict[str, tuple[Any, int]] = {
    "two tensors overlap": ({"a": entry(), "b": entry(4, 12)}, 12),
    "two tensors at one place": ({"a": entry(), "b": entry()}, 8),
    "a hole between two tensors": ({"a": entry(), "b": entry(16, 24)}, 24),
    "a hole before the first": ({"a": entry(8, 16)}, 16),
    "an end before its begin": ({"a": entry(8, 0)}, 8),
    "a negative begin": ({"a": entry(-8, 0)}, 8),
    "an end of 2^63": ({"a": entry(0, 2**63)}, 8),
    "an end of 2^64": ({"a": entry(0, 2**64)}, 8),
    "offsets of 400 digits": ({"a": entry(0, 10**400)}, 8),
    "offsets as texts": ({"a": entry("0", "8")}, 8),
    "offsets as floats": ({"a": entry(0.0, 8.0)}, 8),
    "offsets of null": ({"a": entry(None, None)}, 8),
    "one offset": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, 8),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "an entry of null": ({"a": None}, 0),
    "an entry of a list": ({"a": [1]}, 0),
    "an entry of a text": ({"a": "F32"}, 0),
    "a shape of 65 dimensions": ({"a": entry(0, 4, [1] * 65)}, 4),
    "a shape of 10,000 dimensions": ({"a": entry(0, 4, [1] * 10_000)}, 4),
    "a product beyond 64 bits": ({"a": entry(0, 8, [2**33, 2**33])}, 8),
    "a product that wraps to its size": ({"a": entry(0, 8, [2**62, 2**62, 2])}, 8),
    "a product that wraps to 0": ({"a": entry(0, 0, [2**32, 2**32])}, 0),
    "an empty tensor of 2^62 rows": ({"a": entry(0, 0, [2**62, 0])}, 0),
    "a negative dimension": ({"a": entry(0, 8, [-2])}, 8),
    "two negative dimensions": ({"a": entry(0, 8, [-1, -2])}, 8),
    "a dimension of a text": ({"a": entry(0, 8, ["2"])}, 8),
    "a dimension of true": ({"a": entry(0, 4, [True])}, 4),
    "a dimension of 1e400": (b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,8]}}', 8),
    "a dimension of NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', 8),
    "a shape that is a number": ({"a": entry(0, 8, 2)}, 8),
    "a shape that nests itself": ({"a": entry(0, 8, [[2]])}, 8),
    "more bytes than the shape has": ({"a": entry(0, 12)}, 12),
    "fewer bytes than the shape has": ({"a": entry(0, 4)}, 4),
    "an unknown dtype": ({"a": entry(dtype="F128")}, 8),
    "a dtype that is a path": ({"a": entry(dtype="../../etc/passwd")}, 8),
    "a dtype that is a list": ({"a": entry(dtype=["F32"])}, 8),
    "a dtype of null": ({"a": entry(dtype=None)}, 8),
    "a name twice": (b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), 8),
    "a dtype twice": (
        b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}',
        8,
    ),
    "metadata of objects": ({"__metadata__": {"a": {}}, "a": entry()}, 8),
    "metadata of a text": ({"__metadata__": "pt", "a": entry()}, 8),
    "5,000 brackets": (b"[" * 5000, 0),
    "5,000 objects in each other": (deep(5000), 0),
    "a list": (b"[1, 2, 3]", 0),
    "a number": (b"3 ", 0),
    "a text": (b'"abc"', 0),
    "half of a text": (b'{"a', 0),
    "bytes that are no UTF-8": (b'{"\xff\xfe": 1}', 0),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), 0),
    "a number of 5,000 digits": (b'{"a":' + b"9" * 5000 + b"}", 0),
    "zeros": (bytes(64), 0),
    "a comment": (b'{"a": 1} // end', 0),
}  # fmt: skip

ENTRIES = 50_000


class Payload:
    """What a pickle may run: a call when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("__import__('pathlib').Path('/tmp/edgeft-owned').touch()",)


def pickled(protocol: int) -> bytes:
    return pickle.dumps({"weight": Payload()}, protocol)


def torch_zip(program: bytes, **members: bytes) -> bytes:
    """What torch.save writes: a zip archive with the pickle and the storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in members.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", data)
    return buffer.getvalue()


def bomb(kind: int) -> bytes:
    """An archive whose pickle unpacks to 20 MB, a thousand times its bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("archive/data.pkl", bytes(20_000_000))
    return buffer.getvalue()


def storage(
    values: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> bytes:
    """A pickle of {"w": a tensor}, as torch writes it."""

    def number(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + data

    def numbers(items: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, items)) + b"t"

    place = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(
        values
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"tQ" + number(offset)
    return b"\x80\x02}X\x01\0\0\0w" + tensor + numbers(shape) + numbers(strides) + b"\x89}tRs."


def endless_pickle() -> bytes:
    """Sets that double: 2^60 items when they are hashed, in some hundred bytes."""
    return b"\x80\x02)" + b"\x862" * 60 + b"."


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    return buffer.getvalue()


PICKLES: dict[str, tuple[bytes, str]] = {
    **{f"a pickle of protocol {i}": (pickled(i), "eval|not a file of torch") for i in range(6)},
    "a pickle in torch's archive": (torch_zip(pickled(2)), "eval"),
    "a pickle of os.system": (torch_zip(b"\x80\x02cos\nsystem\n(X\x02\0\0\0idtR."), "os.system"),
    "a pickle of posix.system": (torch_zip(b"\x80\x02cposix\nsystem\n(X\x02\0\0\0idtR."), "posix"),
    "builtins by their old name": (torch_zip(b"\x80\x02c__builtin__\neval\n(tR."), "__builtin__"),
    "numpy's loader": (torch_zip(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(tR."), "numpy"),
    "torch's own loader": (torch_zip(b"\x80\x02ctorch\nload\n(tR."), "torch.load"),
    "a hook for attributes": (torch_zip(b"\x80\x02cbuiltins\ngetattr\n(tR."), "getattr"),
    "an instance without its class": (torch_zip(b"\x80\x02(ios\nsystem\n."), "INST"),
    "a new object": (torch_zip(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "NEWOBJ"),
    "an extension's code": (torch_zip(b"\x80\x02\x82\x01."), "EXT1|damaged"),
    "a name from the stack": (torch_zip(b"\x80\x04\x8c\x02os\x8c\x06system\x93)R."), "os.system"),
    "a name that is no text": (torch_zip(b"\x80\x04K\x01K\x02\x93)R."), "damaged"),
    "a pickle without an end": (torch_zip(b"\x80\x02}"), "damaged"),
    "a pickle of nothing": (torch_zip(b""), "damaged"),
    "a stack that is empty": (torch_zip(b"\x80\x020."), "damaged"),
    "a memo that is empty": (torch_zip(b"\x80\x02h\x07."), "damaged"),
    "tuples that double": (torch_zip(endless_pickle()), "DUP"),
    "no dict": (torch_zip(b"\x80\x02K\x01."), "no dict of tensors"),
    "a storage that is cut off": (torch_zip(storage(4, (4,), (1,)), data__0=bytes(8)), "cut off"),
    "a storage that is not there": (torch_zip(storage(4, (4,), (1,))), "damaged"),
    "a tensor beyond its storage": (torch_zip(storage(2, (4,), (1,)), data__0=bytes(8)), "values"),
    "a tensor far beyond it": (
        torch_zip(storage(2, (2**40, 2**40), (1, 0)), data__0=bytes(8)), "values"),
    "strides of 0": (torch_zip(storage(2, (2**50,), (0,)), data__0=bytes(8)), "values"),
    "strides below 0": (torch_zip(storage(2, (2,), (-1,)), data__0=bytes(8)), "damaged"),
    "an offset beyond it": (torch_zip(storage(2, (1,), (1,), 2**60), data__0=bytes(8)), "values"),
    "a negative offset": (torch_zip(storage(2, (1,), (1,), -1), data__0=bytes(8)), "damaged"),
    "a storage of 2^61 values": (torch_zip(storage(2**61, (2,), (1,)), data__0=bytes(8)), "cut off"),
    "big-endian": (
        torch_zip(storage(2, (2,), (1,)), data__0=bytes(8), byteorder=b"big"), "big-endian"),
    "no pickle in the archive": (npz(), "without tensors"),
    "a bomb of deflate": (bomb(zipfile.ZIP_DEFLATED), "compressed"),
    "a bomb of bzip2": (bomb(zipfile.ZIP_BZIP2), "compressed"),
    "a text": (b"version https://git-lfs.github.com/spec/v1\n", "not a file of torch"),
    "a script": (b"#!/bin/sh\ntouch /tmp/edgeft-owned\n", "not a file of torch"),
    "HTML": (b"<!doctype html><script>alert(1)</script>", "not a file of torch"),
    "nothing": (b"", "not a file of torch"),
}  # fmt: skip
"""name -> (bytes, what the refusal of a .bin file says)"""

DISGUISES: dict[str, bytes] = {
    "a pickle of protocol 4": pickled(4),
    "a pickle of protocol 0": pickled(0),
    "torch's archive": torch_zip(pickled(2)),
    "a bomb": bomb(zipfile.ZIP_DEFLATED),
    "an archive behind zeros": bytes(100) + torch_zip(pickled(2)),
    "gzip": b"\x1f\x8b\x08\0" + bytes(200),
    "an ELF file": b"\x7fELF\x02\x01\x01" + bytes(200),
    "a script": b"#!/bin/sh\ntouch /tmp/edgeft-owned\n",
    "GGUF": b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(64),
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a numpy archive": npz(),
}
"""what is not safetensors, under the name of such a file"""


def linked(target: str, name: str = "model.safetensors") -> Write:
    def write(folder: Path) -> Path:
        (folder / name).symlink_to(target)
        return folder

    return write


def cases() -> dict[str, Case]:
    result = {
        f"safetensors: {name}": Case(
            "checkpoint", a_file("x.safetensors", with_header(*made)), BROKEN
        )
        for name, made in HEADERS.items()
    }
    result |= {
        f"bin: {name}": Case("checkpoint", a_file("pytorch_model.bin", data), says)
        for name, (data, says) in PICKLES.items()
    }
    result |= {
        f"safetensors that is {name}": Case(
            "checkpoint", a_file("model.safetensors", data), "safetensors"
        )
        for name, data in DISGUISES.items()
    }
    whole = with_header({"a": entry()}, 8)
    huge = struct.pack("<Q", 100_000_001) + b'{"a":'
    tera = with_header({"a": entry(0, TB, [TB // 4])})
    more: dict[str, tuple[Write, str]] = {
        "an empty file": (a_file("x.safetensors", b""), "not a safetensors file"),
        "seven bytes": (a_file("x.safetensors", bytes(7)), "not a safetensors file"),
        "a header of no bytes": (a_file("x.safetensors", bytes(8)), "not a safetensors file"),
        "a header of 2^64 - 1 bytes": (a_file("x.safetensors", b"\xff" * 16), "not a safetensors"),
        "a header of 2^63 bytes": (
            a_file("x.safetensors", struct.pack("<Q", 2**63) + b"{}"), "header of 9223372036854"),
        "a header of 100 MB": (sparse("x.safetensors", 200_000_000, huge), "header of 100000001"),
        "a header of 26 MB": (
            sparse("x.safetensors", 30_000_000, struct.pack("<Q", 26_000_000)), "header of 26000000"),
        "a header of 1 TB": (sparse("x.safetensors", TB, struct.pack("<Q", TB - 8)), "header of"),
        "a byte too many": (a_file("x.safetensors", whole + b"\0"), "1 bytes that belong to no"),
        "a terabyte too many": (sparse("x.safetensors", TB, whole), "belong to no tensor"),
        "a byte too few": (a_file("x.safetensors", whole[:-1]), "truncated"),
        "a tensor of 1 TB that is not there": (a_file("x.safetensors", tera), "truncated"),
        "a folder by its name": (lambda folder: _folder(folder / "x.safetensors"), "no model"),
        "a link to a device": (linked("/dev/zero"), "no model.safetensors"),
        "a link to /etc/passwd": (linked("/etc/passwd"), "not a safetensors file"),
        "a link to itself": (linked("model.safetensors"), "no model.safetensors"),
        "a link to nothing": (linked("/nowhere/x"), "no model.safetensors"),
        "a link to a pickle": (_link_to_pickle, "not a safetensors file|broken safetensors"),
        f"{ENTRIES} names twice": (a_file("x.safetensors", _repeated()), BROKEN),
    }  # fmt: skip
    return result | {
        f"safetensors: {name}": Case("checkpoint", *made) for name, made in more.items()
    }


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _link_to_pickle(folder: Path) -> Path:
    (folder / "evil.pkl").write_bytes(pickled(4))
    (folder / "model.safetensors").symlink_to("evil.pkl")
    return folder


def _repeated() -> bytes:
    return with_header(b"{" + b",".join([b'"a":1'] * ENTRIES) + b"}")
