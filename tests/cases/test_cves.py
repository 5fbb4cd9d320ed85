"""Attacks that worked elsewhere, each with its number: here they end in one line, and run nothing."""

from __future__ import annotations

import json
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError
from edgeft.weights import gguf_reader
from edgeft.weights.checkpoint import Checkpoint
from helpers.bad_models.gguf_files import gguf, tensor, word
from helpers.bad_models.weights import pickled, storage, torch_zip
from helpers.serving import Served, exported, running
from helpers.tiny import make_base

unit = pytest.mark.unit
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def refused(path: Path, data: bytes, says: str) -> None:
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"x.gguf is not a whole GGUF file: .*{says}"):
        gguf_reader.read(path)


@unit
@pytest.mark.parametrize("dimensions", [5, 65, 2**31, 2**32 - 1])
def test_cve_2024_21802_a_tensor_of_more_dimensions_than_its_array_has(
    tmp_path: Path, dimensions: int
) -> None:
    """Talos: `info->ne` of four numbers was written beyond its end."""
    data = gguf(tensors=[tensor(shape=(1,) * 65, dimensions=dimensions)])
    refused(tmp_path / "x.gguf", data, f"{dimensions} dimensions")


@unit
@pytest.mark.parametrize(
    "shapes",
    [[(2**42 + 1, 2**20)], [(2**63,), (2**63,)], [(2**62,), (2**62,), (2**62,), (2**62 + 8,)],
     [(2**32, 2**30, 4)]],
)  # fmt: skip
def test_cve_2025_53630_sizes_of_tensors_that_wrap(
    tmp_path: Path, shapes: list[tuple[int, ...]]
) -> None:
    """https://github.com/ggml-org/llama.cpp/pull/14595: the sum of the sizes passed 2^64."""
    tensors = [tensor(f"t{i}", shape) for i, shape in enumerate(shapes)]
    refused(tmp_path / "x.gguf", gguf(tensors=tensors), "ends before the end")


@unit
@pytest.mark.parametrize(
    ("counts", "shape"),
    [((2**63 // 368, None), (32,)), ((2**64 // 368 + 1, None), (32,)), ((None, None), (2**62 - 92,)),
     ((None, 2**64 // 32), (32,))],
)  # fmt: skip
def test_cve_2026_27940_counts_that_wrap_together_with_the_overhead(
    tmp_path: Path, counts: tuple[int | None, int | None], shape: tuple[int, ...]
) -> None:
    """The way around the fix before: count times overhead plus the sizes passed 2^64.

    https://github.com/ggml-org/llama.cpp/pull/19856
    """
    refused(tmp_path / "x.gguf", gguf(tensors=[tensor(shape=shape)], counts=counts), "ends ")


@unit
@pytest.mark.parametrize(
    ("shape", "offset"), [((2**20,), 0), ((33,), 0), ((32,), 96), ((32, 1, 1, 10**6), 0)]
)
def test_cve_2026_7482_a_tensor_that_is_larger_than_the_file(
    tmp_path: Path, shape: tuple[int, ...], offset: int
) -> None:
    """Ollama quantized what lies behind the file in memory, and sent it to a registry."""
    data = gguf(tensors=[tensor(shape=shape, offset=offset)])
    refused(tmp_path / "x.gguf", data, "ends before the end of 'a'")


ESCAPES = (
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system(CMD) }}",
    ("{% for c in [].__class__.__base__.__subclasses__() %}{% if c.__name__ == '_wrap_close' %}"
    "{{ c.__init__.__globals__['system'](CMD) }}{% endif %}{% endfor %}"),
    "{{ cycler.__init__.__globals__.os.popen(CMD).read() }}",
)  # fmt: skip


def escapes(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    owned = tmp_path / "owned"
    for source in ESCAPES:
        yield source.replace("CMD", json.dumps(f"touch {owned}")), owned


@unit
def test_cve_2024_34359_a_template_in_a_gguf_file_runs_code(
    edgeft: Callable[..., Any], tmp_path: Path
) -> None:
    """llama-cpp-python rendered `tokenizer.chat_template` without a sandbox."""
    from edgeft.records import Message
    from edgeft.tokenizer.chat_template import ChatTemplate

    for source, owned in escapes(tmp_path):
        path = tmp_path / "x.gguf"
        path.write_bytes(gguf([word("tokenizer.chat_template", source)]))
        assert "source" in edgeft("inspect", path).out
        stored = gguf_reader.read(path).meta["tokenizer.chat_template"]
        with pytest.raises(InputError, match="the chat template refuses these messages"):
            ChatTemplate(stored, "", "", ()).render([Message("user", "hi")])
        assert not owned.exists()


@unit
def test_cve_2026_5760_a_template_of_a_folder_runs_code(tmp_path: Path) -> None:
    """SGLang rendered the tokenizer's template without a sandbox, too."""
    from edgeft.records import Message
    from edgeft.tokenizer.chat_template import ChatTemplate

    base = make_base(tmp_path / "base")
    for source, owned in escapes(tmp_path):
        for name in ("chat_template.jinja", "tokenizer_config.json"):
            settings = json.loads((base / "tokenizer_config.json").read_text())
            (base / "tokenizer_config.json").write_text(
                json.dumps(settings | {"chat_template": source})
            )
            if name == "chat_template.jinja":
                (base / name).write_text(source)
            with pytest.raises(InputError, match="the chat template refuses these messages"):
                ChatTemplate.from_folder(base).render([Message("user", "hi")])
            (base / "chat_template.jinja").unlink(missing_ok=True)
        assert not owned.exists()


def old_tar() -> bytes:
    """The format of torch before 0.1.10, whose loader ignored weights_only."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled(2))
            archive.addfile(entry, BytesIO(pickled(2)))
    return buffer.getvalue()


@unit
@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.pth", "x.ckpt"])
def test_cve_2025_32434_a_file_of_torch_runs_code_in_spite_of_weights_only(
    tmp_path: Path, name: str
) -> None:
    """torch <= 2.5.1. Nothing is unpickled here."""
    owned = Path("/tmp/edgeft-owned")
    owned.unlink(missing_ok=True)
    for data in (old_tar(), torch_zip(pickled(2)), pickled(2), pickled(0)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            Checkpoint(tmp_path / name)
        assert not owned.exists()


@unit
def test_cve_2026_24747_an_entry_is_set_in_what_is_no_dict(tmp_path: Path) -> None:
    """torch < 2.10: SETITEM on a tensor wrote into memory, and a storage said it had more values."""
    path = tmp_path / "pytorch_model.bin"
    view = storage(2, (2,), (1,))
    on_tensor = view[:-2] + b"K\x00K\x01s" + view[-2:]
    programs = {
        "an item of no dict": on_tensor,
        "an item of no dict ": b"\x80\x02]K\x00K\x01s.",
        "an item of no dict  ": b"\x80\x02X\x01\0\0\0x(K\x00K\x01u.",
        "cut off": storage(2**20, (2,), (1,)),
    }
    for says, program in programs.items():
        path.write_bytes(torch_zip(program, data__0=bytes(8)))
        with pytest.raises(InputError, match=says.strip()):
            Checkpoint(path)
    path.write_bytes(torch_zip(view, data__0=bytes(8)))
    assert Checkpoint(path).tensors["w"].shape == (2,)


# The server


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    (artifact,) = exported(tiny_base, tmp_path_factory.mktemp("cves"), "f32")
    with running(artifact, slots=1, queue=4, context=128) as served:
        yield served


def answers(served: Served) -> bool:
    return bool(served.json(TEXT, {"prompt": "lamp", "max_tokens": 2})["choices"])


@pytest.mark.parametrize("number", [-1, -(2**31), 2**31, 10**30])
def test_cve_2026_21869_a_negative_number_of_tokens_to_discard(served: Served, number: int) -> None:
    """llama-server: `n_discard` moved the cache before its beginning. Nothing is discarded here."""
    for field in ("n_discard", "n_keep"):
        body = {"prompt": "lamp", "max_tokens": 300, field: number}
        status, data, _ = served.ask("POST", TEXT, body)
        assert status == 400 if (field, number) != ("n_keep", -1) else status == 200, data
    assert answers(served)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11434", "127.0.0.1.evil.example"])
def test_cve_2024_28224_a_foreign_name_that_resolves_to_this_machine(
    served: Served, host: str
) -> None:
    """Ollama: a web page of any name could ask, once its name led to 127.0.0.1."""
    for path in ("/v1/models", "/api/tags", "/"):
        assert served.ask("GET", path, headers={"host": host})[0] == 403
    body = {"prompt": "x", "max_tokens": 1}
    assert served.ask("POST", TEXT, body, {"host": host})[0] == 403


def test_prompts_that_are_too_long_do_not_end_the_server(served: Served) -> None:
    """llama-server ended after four in a row."""
    for _ in range(6):
        status, data, _ = served.ask("POST", TEXT, {"prompt": "lamp " * 500, "max_tokens": 2})
        assert status == 400 and b"context" in data
    assert answers(served)


def test_a_request_of_50_kilobytes_does_not_end_the_server(served: Served) -> None:
    """llama-server ended with exit code 139."""
    for text in ("x" * 50_000, "lamp " * 10_000, "\u00e9\U0001f600" * 8000, "\\" * 50_000):
        messages = [{"role": "user", "content": text}]
        assert served.ask("POST", CHAT, {"messages": messages, "max_tokens": 1})[0] == 400
    assert answers(served)


def test_a_second_request_to_a_busy_slot_waits(served: Served) -> None:
    """llama-server ended where one slot got two."""
    results: list[int] = []

    def ask() -> None:
        body = {"prompt": "lamp", "max_tokens": 60, "ignore_eos": True}
        results.append(served.ask("POST", TEXT, body)[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [200] * 4 and answers(served)


def test_text_that_is_no_utf8_does_not_end_the_server(served: Served) -> None:
    """llama-server ended in its JSON library."""
    for text in (b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf0\x28\x8c\xbc", b"abc\x80"):
        for body in (b'{"prompt": "%b", "max_tokens": 1}' % text, b'{"%b": 1}' % text):
            assert served.ask("POST", TEXT, body)[0] == 400
    with socket.create_connection(("127.0.0.1", served.port), 10) as client:
        client.sendall(b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 4")
    assert answers(served)
