"""`edgeft serve` as a process: how it starts, how it ends, and what it refuses to start."""

from __future__ import annotations

import http.client
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran

from edgeft.errors import InputError
from edgeft.server.options import ServeOptions
from edgeft.server.run import model_names
from helpers.paths import ROOT
from helpers.serving import exported


@pytest.fixture(scope="module")
def artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tiny_base, tmp_path_factory.mktemp("serve"), "f32")[0]


def start(*args: object, **env: str) -> tuple[subprocess.Popen[str], int]:
    """The process and its port, which it tells."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeft", "serve", *map(str, args), "--port", "0", "--threads", "1"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | env,
    )  # fmt: skip
    assert process.stderr
    line = process.stderr.readline()
    assert "serving" in line, line
    return process, int(line.partition("http://")[2].partition(" ")[0].rpartition(":")[2])


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    running = []

    def run(*args: object, **env: str) -> tuple[subprocess.Popen[str], int]:
        running.append(start(*args, **env))
        return running[-1]

    yield run
    for process, _ in running:
        process.kill()
        process.communicate()


def stream(port: int, tokens: int) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"prompt": "the lamp", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
    )
    answer = connection.getresponse()
    assert answer.status == 200 and answer.readline()
    return answer


def test_sigterm_lets_answers_finish_and_exits_with_0(artifact: Path, serve: Any) -> None:
    process, port = serve(artifact)
    answer = stream(port, 300)
    process.send_signal(signal.SIGTERM)
    rest = answer.read()
    assert rest.rstrip().endswith(b"[DONE]") and b'"finish_reason": "length"' in rest
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "POST /v1/completions 200" in err and "lamp" not in err and "Traceback" not in err
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_after_the_shutdown_timeout_answers_are_cut_off(artifact: Path, serve: Any) -> None:
    process, port = serve(artifact, "--shutdown-timeout", "0.2", "--slots", "1")
    answer = stream(port, 500)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest = answer.read()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert time.monotonic() - started < 10 and "Traceback" not in err
    assert b"[DONE]" in rest


def test_prompts_are_logged_only_with_log_prompts(artifact: Path, serve: Any) -> None:
    process, port = serve(artifact, "--log-prompts", EDGEFT_API_KEY="open sesame")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"prompt": "a secret wish", "max_tokens": 1})
    for key, status in (("nonsense", 401), ("open sesame", 200)):
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        assert answer.status == status
        answer.read()
        connection.close()
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert "a secret wish" in err and "sesame" not in err and "nonsense" not in err


def asked(port: int, key: str) -> int:
    """The status of a short completion with this key."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    body = json.dumps({"prompt": "lamp", "max_tokens": 1})
    connection.request("POST", "/v1/completions", body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_sighup_reads_the_keys_again(artifact: Path, serve: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:a1 rpm=1\nbob:b2 tpd=1\n")
    process, port = serve(artifact, "--api-key-file", keys)

    def reloaded(text: str) -> str:
        keys.write_text(text)
        process.send_signal(signal.SIGHUP)
        lines: list[str] = []
        while not lines or "no artifact has changed" not in lines[-1]:
            lines.append(process.stderr.readline())
        return "".join(lines)

    assert [asked(port, key) for key in ("a1", "a1", "b2", "b2", "c3")] == [200, 429, 200, 429, 401]
    said = reloaded("not a key\nbob:b2 c3\n")
    assert "the new keys are refused, the old ones hold: " in said and "c3" not in said
    assert ", key alice" in said and "a1" not in said
    assert asked(port, "a1") == 429
    reloaded("carol:c3")
    assert [asked(port, key) for key in ("a1", "c3")] == [401, 200]


def test_a_server_whose_terminal_is_closed_ends(artifact: Path) -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "edgeft", "serve", artifact, "--port", "0", "--threads", "1"]
    with subprocess.Popen(list(map(str, command)), stderr=end, cwd=ROOT) as process:
        try:
            os.close(end)
            said = b""
            while b"Ctrl-C ends it" not in said:
                said += os.read(terminal, 1000)
            process.send_signal(signal.SIGHUP)
            while b"no artifact has changed" not in said:
                said += os.read(terminal, 1000)
            os.close(terminal)
            process.send_signal(signal.SIGHUP)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_startup_errors_are_one_line(
    artifact: Path, edgeft: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEFT_API_KEY", raising=False)
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for args, says in (
            ((artifact, "--port", port), f"cannot listen on 127.0.0.1:{port}"),
            ((tmp_path / "none.gguf", "--port", 0), "no such artifact"),
            ((artifact, "--host", "0.0.0.0"), "needs a key"),
            ((artifact, "--host", "192.0.2.1"), "needs a key"),
            ((artifact, "--api-key-file", tmp_path / "empty"), "holds no key"),
            ((artifact, "--api-key-file", tmp_path / "missing"), "cannot read the key"),
            ((artifact, "--cors", "*"), "is no origin"),
            ((artifact, "--watch"), "has no manifest"),
            ((artifact, artifact, artifact, "--port", 0), "two artifacts are called"),
        ):
            ran = edgeft("serve", *args)
            assert ran.code == 1 and says in ran.err, ran
            assert len(ran.err.strip().splitlines()) == 1
    ran = edgeft("serve", artifact, "--host", "192.0.2.1", "--port", 0)
    assert ran.code == 1
    assert edgeft("serve").code == 2
    assert edgeft("serve", artifact, "--shutdown-timeout", "nan").code == 2


def test_a_missing_extra_is_named(
    artifact: Path, edgeft: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ran = edgeft("serve", artifact, "--port", 0)
    assert ran.code == 1 and "pip install 'edgeft[serve]'" in ran.err


def test_models_are_named_after_their_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "q8_0.gguf", tmp_path / "b" / "q8_0.gguf", tmp_path / "onnx-int4"]
    assert list(model_names(paths)) == ["q8_0", "b/q8_0", "onnx-int4"]


def test_the_key_is_not_in_the_repr_of_the_options(artifact: Path) -> None:
    assert "sesame" not in repr(ServeOptions((artifact,), key="open sesame"))
    with pytest.raises(InputError):
        ServeOptions((artifact,), host="::").check()
    ServeOptions((artifact,), host="::1").check()
