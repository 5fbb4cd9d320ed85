"""Bad ONNX folders, data files, options files, tokenizer.model and importance matrices."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeft.benchmarks.studies.fuzz_targets import small_onnx
from helpers.bad_models.case import Case, Write, a_file, sparse
from helpers.bad_models.gguf_files import F32, START, TEXT, array, gguf, number, tensor, text, word
from helpers.bad_models.weights import TB, bomb, deep, pickled


def with_graph(change: Callable[[Any], Any]) -> Write:
    """The small ONNX folder with a changed graph."""

    def write(folder: Path) -> Path:
        import onnx

        path = small_onnx(folder) / "model.onnx"
        proto = onnx.load(path)
        change(proto)
        path.write_bytes(proto.SerializeToString())
        return folder

    return write


def with_decoder(**changes: Any) -> Write:
    """The small ONNX folder with other settings of its decoder; the name `model__x` is one of its model."""

    def write(folder: Path) -> Path:
        path = small_onnx(folder) / "genai_config.json"
        config = json.loads(path.read_text())
        for name, value in changes.items():
            of_model = name.startswith("model__")
            place = config["model"] if of_model else config["model"]["decoder"]
            place[name.removeprefix("model__")] = value
        path.write_text(json.dumps(config))
        return folder

    return write


def outside(location: str, offset: Any = 0, length: Any = 160) -> Write:
    """The table of the graph lies in this file."""

    def change(proto: Any) -> None:
        table = proto.graph.initializer[0]
        table.ClearField("raw_data")
        table.data_location = 1
        for name, value in (("location", location), ("offset", offset), ("length", length)):
            table.external_data.add(key=name, value=str(value))

    return with_graph(change)


def _files(**data: bytes) -> Write:
    def write(folder: Path) -> Path:
        small_onnx(folder)
        for name, content in data.items():
            (folder / name.replace("__", ".")).write_bytes(content)
        return folder

    return write


def _loop(proto: Any) -> None:
    import onnx

    proto.graph.node.append(onnx.helper.make_node("Loop", [], ["x"], body=proto.graph))


def _function(proto: Any) -> None:
    import onnx

    proto.functions.append(onnx.helper.make_function("d", "f", [], [], [], []))


def onnx_cases() -> dict[str, Case]:
    places = ("/etc/passwd", "../model.onnx", "../../etc/passwd", "/dev/zero", "sub/x", "x\0y", "",
              "~/x", "x" * 10_000)  # fmt: skip
    made: dict[str, tuple[Write, str]] = {
        **{f"weights in {place[:20]!r}": (outside(place), "its weights lack") for place in places},
        "an offset beyond its file": (outside("genai_config.json", 10**6), "truncated"),
        "an offset of 2^63": (outside("genai_config.json", 2**63), "truncated"),
        "a negative offset": (outside("genai_config.json", -1), "does not say where"),
        "an offset of a text": (outside("genai_config.json", "x"), "does not say where"),
        "a length of 10^400": (outside("genai_config.json", 0, "1" + "0" * 400), "truncated|where"),
        "a length of 10,000 digits": (outside("genai_config.json", 0, "9" * 10_000), "where"),
        "an endless loop": (with_graph(_loop), "operator 'Loop'"),
        "functions of its own": (with_graph(_function), "functions of its own"),
        "an operator of a library": (
            with_graph(lambda proto: proto.graph.node.add(op_type="X", domain="evil")), "operator 'X'"),
        "no opset": (with_graph(lambda proto: proto.ClearField("opset_import")), "opset 0"),
        "opset 10^6": (with_graph(lambda proto: setattr(proto.opset_import[0], "version", 10**6)), "opset"),
        "an opset below 0": (with_graph(lambda p: setattr(p.opset_import[0], "version", -1)), "opset -1"),
        "a pickle": (_files(model__onnx=pickled(4)), "not an ONNX model|opset"),
        "a bomb": (_files(model__onnx=bomb(8)[:400_000]), "not an ONNX model|opset"),
        "nothing": (_files(model__onnx=b""), "opset 0"),
        "a head of 10^6 columns": (with_decoder(head_size=10**6), "head_size is 1000000"),
        "a head of other columns": (with_decoder(head_size=4), "head_size"),
        "a head of -1 columns": (with_decoder(head_size=-1), "head_size is -1"),
        "a head of NaN": (with_decoder(head_size=float("nan")), "decoder"),
        "2^40 tokens of context": (with_decoder(model__context_length=2**40), "context"),
        "-1 tokens of context": (with_decoder(model__context_length=-1), "context is -1"),
        "a vocabulary of 2^40": (with_decoder(model__vocab_size=2**40), "vocabulary"),
        "a stop beyond the vocabulary": (with_decoder(model__eos_token_id=10), "stops"),
        "a graph outside": (with_decoder(filename="../model.onnx"), "lacks model.onnx"),
        "a graph that is a device": (with_decoder(filename="/dev/zero"), "lacks zero"),
        "a library of operators": (with_decoder(session_options={"custom_ops_library": "/tmp/x.so"}),
                                   "custom_ops_library"),
        "a provider of its own": (with_decoder(session_options={"provider_options": [{"x": {}}]}),
                                  "provider_options"),
        "a profile that is written": (with_decoder(session_options={"enable_profiling": "/etc/x"}),
                                      "enable_profiling"),
        "5,000 brackets": (_files(genai_config__json=b"[" * 5000), "genai_config.json"),
        "settings of a list": (_files(genai_config__json=b"[]"), "genai_config.json"),
        "settings twice": (_files(genai_config__json=b'{"model": {}, "model": {}}'), "twice"),
    }  # fmt: skip
    return {f"onnx: {name}": Case("onnx", *case) for name, case in made.items()}


def _fifo(name: str) -> Write:
    def write(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return write


def data_cases() -> dict[str, Case]:
    zeros, letters = (
        bytes(1_000_000),
        b"x" * 1_000_000,
    )  # packed members after each other are one file
    line = [b'{"text": "', *[letters] * 200, b'"}']
    members = {part: gzip.compress(part) for part in {*line}}
    made: dict[str, tuple[Write, str]] = {
        "a bomb of gzip": (a_file("x.jsonl.gz", b"".join(members[part] for part in line)), "x.jsonl.gz"),
        "a bomb of bzip2": (a_file("x.jsonl.bz2", bz2.compress(zeros) * 200), "x.jsonl.bz2"),
        "a bomb of xz": (a_file("x.jsonl.xz", lzma.compress(zeros, preset=0) * 200), "x.jsonl.xz"),
        "gzip in gzip": (a_file("x.jsonl.gz", gzip.compress(gzip.compress(b"{}"))), "x.jsonl.gz"),
        "half of gzip": (a_file("x.jsonl.gz", gzip.compress(b"{}" * 1000)[:-9]), "cannot be read"),
        "a zip archive": (a_file("x.jsonl", bomb(8)[:1000]), "zip archive"),
        "a pickle": (a_file("x.jsonl", pickled(4)), "a pickle"),
        "a pickle of protocol 2": (a_file("x.jsonl", pickled(2)), "a pickle"),
        "GGUF": (a_file("x.jsonl", gguf()), "GGUF"),
        "safetensors": (a_file("x.jsonl", struct.pack("<Q", 8) + b'{"a": 1}'), "safetensors"),
        "HTML": (a_file("x.jsonl", b"<!doctype html><script>alert(1)</script>"), "web page"),
        "5,000 brackets": (a_file("x.jsonl", b"[" * 5000), "x.jsonl"),
        "5,000 objects in each other": (a_file("x.jsonl", deep(5000)), "x.jsonl"),
        "half a surrogate pair": (a_file("x.jsonl", b'{"prompt": "\\ud800", "completion": "x"}'), "x.jsonl"),
        "a number of 5,000 digits": (a_file("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}"), "x.jsonl"),
        "zeros": (a_file("x.jsonl", bytes(1000)), "binary file|x.jsonl"),
        "bytes that are no UTF-8": (a_file("x.jsonl", b'{"a": "\xff\xfe"}'), "x.jsonl"),
        "1 TB of nothing": (sparse("x.jsonl", TB, b""), "x.jsonl"),
        "1 TB behind a brace": (sparse("x.jsonl", TB, b'{"text": "'), "x.jsonl"),
        "1 TB of CSV": (sparse("x.csv", TB, b"prompt,completion\n"), "x.csv"),
        "Parquet that is none": (a_file("x.parquet", b"PAR1" + bytes(100) + b"PAR1"), "x.parquet"),
        "Parquet with a footer of 2^31": (
            a_file("x.parquet", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"), "x.parquet"),
        "Arrow that is none": (a_file("x.arrow", b"ARROW1\0\0" + b"\xff" * 100), "x.arrow"),
        "a CSV with a column twice": (a_file("x.csv", b"a,a\n1,2\n"), "two columns"),
        "a CSV with more cells": (a_file("x.csv", b"prompt,completion\n1,2,3\n"), "3 cells"),
        "a named pipe": (_fifo("x.jsonl"), "x.jsonl"),
        "a device": (lambda folder: Path("/dev/zero"), "zero"),
        "a link to itself": (_link_to_itself, "x.jsonl"),
    }  # fmt: skip
    return {f"data: {name}": Case("data", *case) for name, case in made.items()}


def _link_to_itself(folder: Path) -> Path:
    (folder / "x.jsonl").symlink_to("x.jsonl")
    return folder / "x.jsonl"


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


def options_cases() -> dict[str, Case]:
    tomls: dict[str, bytes] = {
        "5,000 brackets": b"a = " + b"[" * 5000, "half": b"a = ", "a key twice": b"a = 1\na = 2",
        "a table twice": b"[x]\n[x]", "bytes that are no UTF-8": b'a = "\xff"', "zeros": bytes(64),
        "a pickle": pickled(4), "a number of 100,000 digits": b"threads = 0x" + b"f" * 100_000,
    }  # fmt: skip
    result = {
        f"toml: {name}": Case("toml", a_file("run.toml", data), "run.toml")
        for name, data in tomls.items()
    }
    yamls: dict[str, bytes] = {
        "a billion laughs": LAUGHS.encode(), "an object of Python": b"a: !!python/object/apply:os.system [id]",
        "a name of Python": b"a: !!python/name:os.system", "a key twice": b"a: 1\na: 2",
        "5,000 brackets": b"a: " + b"[" * 5000, "half": b"a: [", "a list": b"- a", "zeros": bytes(64),
        "merged anchors": b"a: &a {x: 1}\nb: {<<: *a}", "1 MB": b"a: " + b"x" * 1_000_000,
    }  # fmt: skip
    result |= {
        f"yaml: {name}": Case("yaml", a_file("run.yaml", data), "run.yaml")
        for name, data in yamls.items()
    }
    special: dict[str, tuple[Write, str]] = {
        "toml: 2 MB": (sparse("run.toml", 2_000_000), "run.toml"),
        "toml: 1 TB": (sparse("run.toml", TB), "run.toml"),
        "yaml: a device": (lambda folder: Path("/dev/zero"), "/dev/zero"),
        "yaml: 1 TB": (sparse("run.yaml", TB), "run.yaml"),
    }
    return result | {name: Case(name[:4], *case) for name, case in special.items()}


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def field(place: int, data: bytes, length: int | None = None) -> bytes:
    return bytes([place << 3 | 2]) + varint(len(data) if length is None else length) + data


def piece(letters: bytes, kind: int = 1) -> bytes:
    return field(1, field(1, letters) + b"\x15" + struct.pack("<f", 0) + bytes([24, kind]))


PIECES = piece(b"<unk>", 2) + piece(b"a") + piece(b"b")


def tokenizer_cases() -> dict[str, Case]:
    made: dict[str, tuple[Write, str]] = {
        "nothing": (a_file("tokenizer.model", b""), "tokenizer.model"),
        "zeros": (a_file("tokenizer.model", bytes(100)), "tokenizer.model"),
        "a pickle": (a_file("tokenizer.model", pickled(4)), "tokenizer.model"),
        "a piece beyond the file": (a_file("tokenizer.model", field(1, b"x", 10**6)), "tokenizer.model"),
        "a piece of 2^63 letters": (a_file("tokenizer.model", field(1, b"x", 2**63)), "tokenizer.model"),
        "a number of 900 kB": (a_file("tokenizer.model", b"\x0a" + b"\xff" * 900_000), "tokenizer.model"),
        "a piece that is no UTF-8": (a_file("tokenizer.model", piece(b"\xff")), "tokenizer.model"),
        "a piece of 500,000 letters": (
            a_file("tokenizer.model", PIECES + piece(b"x" * 500_000) + field(2, b"\x18\x02")), "longer|tokenizer.model"),
        "an unknown kind of model": (
            a_file("tokenizer.model", PIECES + field(2, b"\x18\x09")), "tokenizer.model"),
        "1 TB": (sparse("tokenizer.model", TB), "tokenizer.model"),
        "a named pipe": (_fifo("tokenizer.model"), "tokenizer.model"),
        "a device": (lambda folder: Path("/dev/zero"), "/dev/zero"),
    }  # fmt: skip
    return {f"tokenizer.model: {name}": Case("sentencepiece", *case) for name, case in made.items()}


def imatrix_cases() -> dict[str, Case]:
    keys = [array("imatrix.datasets", TEXT, 1, text(b"x")), number("imatrix.chunk_size", 16),
            number("imatrix.chunk_count", 1), word("general.type", "imatrix")]  # fmt: skip
    sums, counts = "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"
    pair = [tensor(sums, (4,)), tensor(counts, (1,), offset=32)]
    nan = struct.pack("<f", float("nan"))

    def file(tensors: list[bytes], kept: list[bytes] = keys, body: bytes = bytes(64)) -> Write:
        return a_file("x.gguf", gguf(kept, tensors, body=0) + body)

    made: dict[str, tuple[Write, str]] = {
        "no sums": (file([]), "no sums"),
        "sums without counts": (file(pair[:1]), "without counts"),
        "sums for no counts": (file([pair[0], tensor(counts, (0,))]), "sums for 0 counts"),
        "counts that do not divide": (file([pair[0], tensor(counts, (3,), offset=32)]), "for 3 counts"),
        "sums of NaN": (file(pair, body=nan * 16), "not finite"),
        "sums of another type": (file([tensor(sums, (4,), 26), pair[1]]), "not float32"),
        "no chunk size": (file(pair, [*keys[:1], *keys[2:]]), "chunk_size is missing"),
        "datasets of a number": (file(pair, [number("imatrix.datasets", 1), *keys[1:]]), "imatrix file"),
        "1 TB": (sparse("x.gguf", TB, START), "imatrix|whole GGUF"),
        "the old format": (a_file("x.gguf", struct.pack("<i", 1) + bytes(100)), "whole GGUF"),
        "a pickle": (a_file("x.gguf", pickled(4)), "whole GGUF"),
    }  # fmt: skip
    assert F32 == 6
    return {f"imatrix: {name}": Case("imatrix", *case) for name, case in made.items()}


def cases() -> dict[str, Case]:
    return {
        **onnx_cases(),
        **data_cases(),
        **options_cases(),
        **tokenizer_cases(),
        **imatrix_cases(),
    }
