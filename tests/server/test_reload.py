"""A new file of an artifact is served while the answers on the old one finish."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.errors import InputError
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.server import reload as reload_module
from edgeft.server import run as run_module
from helpers.serving import Served, exported, running


@pytest.fixture(scope="module")
def files(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    old, new = exported(tiny_base, tmp_path_factory.mktemp("reload"), "f32", "q8_0")
    return old, new


@pytest.fixture
def artifact(files: tuple[Path, Path], tmp_path: Path) -> Path:
    return put(files[0], tmp_path / "model.gguf")


def put(file: Path, target: Path) -> Path:
    """As an export does it: by renaming, the manifest last."""
    options = {"from": file.name}
    with store.writing(
        target, kind="artifact", options=options, parents={}, overwrite=True
    ) as draft:
        shutil.copy(file, draft.path)
    return target


def likeliest(served: Served) -> float:
    """The log probability of the first token, which tells the two files apart."""
    body = {"prompt": "the lamp", "max_tokens": 1, "logprobs": 0}
    answer = served.json("/v1/completions", body)
    return float(answer["choices"][0]["logprobs"]["token_logprobs"][0])


class Stream:
    """An answer whose first event has come."""

    def __init__(self, served: Served, tokens: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        body = {"prompt": "the lamp", "max_tokens": tokens, "stream": True, "ignore_eos": True}
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        self.answer = connection.getresponse()
        assert self.answer.status == 200
        self.first = self.answer.readline()

    def text(self) -> str:
        lines = (self.first + self.answer.read()).splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        return "".join(choice["text"] for event in events for choice in event["choices"])


def wait_for(is_true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Notes:
    """What the server tells its user, recorded where it says it: reading stderr from another thread loses lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._notes: list[str] = []
        monkeypatch.setattr(reload_module, "say", self._notes.append)

    def wait_for_last(self, count: int) -> str:
        """The last of `count` notes, each of which is one line."""
        wait_for(lambda: len(self._notes) >= count)
        assert len(self._notes) == count and not any("\n" in note for note in self._notes)
        return self._notes[-1]


def test_running_answers_finish_on_the_old_file_and_new_requests_go_to_the_new_one(
    artifact: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    with running(files[1], context=512) as other:
        new_value = likeliest(other)
    with running(artifact, context=512) as served:
        old_value = likeliest(served)
        assert old_value != new_value
        whole = Stream(served, 400).text()
        old: Any = served.engines[0]
        step = old._sequences.step

        def slow(tokens: Any) -> None:
            go_on.wait(0.02)
            step(tokens)

        monkeypatch.setattr(old._sequences, "step", slow)
        answer = Stream(served, 400)
        put(files[1], artifact)
        served.reload()
        wait_for(lambda: served.engines[0] is not old)
        assert likeliest(served) == new_value
        assert not old._closed and old.running == 1
        go_on.set()
        assert answer.text() == whole
        wait_for(lambda: old._closed)
        assert likeliest(served) == new_value
        _, metrics, _ = served.ask("GET", "/metrics")
        assert b'edgeft_requests_total{model="model"} 5\n' in metrics  # of both files


def test_a_request_that_has_chosen_its_engine_keeps_it(
    artifact: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the choice of the engine and the first job, nothing in the engine tells that it is used."""
    with running(artifact, context=128) as served:
        old, at, go_on = served.engines[0], threading.Event(), threading.Event()
        encode = old.runtime.encode

        def slow(text: str) -> list[int]:
            at.set()
            assert go_on.wait(20)
            return encode(text)

        monkeypatch.setattr(old.runtime, "encode", slow)
        answers: list[float] = []
        thread = threading.Thread(target=lambda: answers.append(likeliest(served)))
        thread.start()
        assert at.wait(20)
        put(files[1], artifact)
        served.reload()
        wait_for(lambda: served.engines[0] is not old)
        time.sleep(0.05)
        assert not old._closed
        go_on.set()
        thread.join(20)
        assert len(answers) == 1
        wait_for(lambda: old._closed)


def test_a_broken_file_is_refused_with_one_line(
    artifact: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes(monkeypatch)
    whole = artifact.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    with running(artifact, context=128) as served:
        old, value = served.engines[0], likeliest(served)
        for count, content in enumerate((whole[: len(whole) // 2], flipped, b"no model"), start=1):
            artifact.with_name("next").write_bytes(content)
            artifact.with_name("next").replace(artifact)
            served.reload()
            said = notes.wait_for_last(count)
            assert "model: the new file is refused, the old one serves on: " in said
            assert "has other bytes than when it was written" in said or " bytes, not " in said
        store.manifest_path(artifact).unlink()  # so that only the engine can tell
        served.reload()
        assert "is refused" in notes.wait_for_last(4)
        served.reload()
        assert "SIGHUP: no artifact has changed" in notes.wait_for_last(5)
        artifact.unlink()
        served.reload()
        assert "is refused" in notes.wait_for_last(6)
        assert served.engines == [old] and likeliest(served) == value
        put(files[1], artifact)
        served.reload()
        wait_for(lambda: served.engines != [old])
        assert likeliest(served) != value


def test_watch_waits_for_the_manifest(
    artifact: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "WATCH_INTERVAL_S", 0.02)
    (tmp_path / "next").mkdir()
    new = put(files[1], tmp_path / "next" / "model.gguf")
    with running(artifact, context=128, watch=True) as served:
        old = served.engines[0]
        store.manifest_path(artifact).unlink()
        new.replace(artifact)
        time.sleep(0.2)
        assert served.engines == [old]
        store.manifest_path(new).replace(store.manifest_path(artifact))
        wait_for(lambda: served.engines != [old])
        wait_for(lambda: old._closed)


def test_watch_needs_a_manifest(files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="has no manifest"):
        reload_module.check_watchable([files[0]])


def test_an_engine_that_does_not_open_closes_its_runtime(
    artifact: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    class Opened(GGUFRuntime):
        def close(self) -> None:
            closed.append(True)
            super().close()

    with running(artifact, context=128) as served:
        old = served.engines[0]
        monkeypatch.setattr(run_module, "open_runtime", lambda path, *_, **__: Opened(path, 1, 128))

        def fails(*_: object) -> None:
            raise MemoryError("no room for\na second model")

        monkeypatch.setattr(run_module, "BatchingEngine", fails)
        put(files[1], artifact)
        served.reload()
        wait_for(lambda: closed)
        assert likeliest(served) and served.engines == [old]
