"""Artifacts become engines, and other formats are served one answer at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from edgeft.errors import InputError
from edgeft.records import Limits, Message
from edgeft.runtimes import draft_model
from edgeft.runtimes.protocol import Runtime, open_runtime
from edgeft.server import run as run_module
from edgeft.server.options import ServeOptions
from helpers.serving import exported, running


@pytest.fixture(scope="module")
def artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tiny_base, tmp_path_factory.mktemp("run"), "f32")[0]


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Runtime]:
    with open_runtime(artifact, threads=1, context=256) as model:
        yield model


def test_ctrl_c_while_a_model_is_opened_waits_for_what_is_computed(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Opened(run_module.GGUFRuntime):
        def close(self) -> None:
            order.append("closed")
            super().close()

    def interrupted(
        name: str, runtime: Any, slots: int, queue: int, worker: Any, isolate: bool, **_: Any
    ) -> Any:
        begun = threading.Event()

        def compute() -> None:
            begun.set()
            time.sleep(0.3)
            order.append("computed")

        threading.Thread(target=worker.call, args=(compute,), daemon=True).start()
        assert begun.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "open_runtime", lambda path, *_, **__: Opened(path, 1, 128))
    monkeypatch.setattr(run_module, "BatchingEngine", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        run_module.engines(ServeOptions((artifact,))),
    ):
        pass
    assert order == ["computed", "closed"]


def test_other_formats_answer_one_at_a_time(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, model: Runtime
) -> None:
    class Other:
        """A runtime that is none of llama.cpp's."""

        def __init__(self, inner: Runtime) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            if name in ("sequences", "piece", "decoder", "matcher"):
                raise AttributeError(name)
            return getattr(self.inner, name)

    real = run_module.open_runtime
    monkeypatch.setattr(run_module, "open_runtime", lambda *args, **how: Other(real(*args, **how)))
    with running(artifact, context=256, queue=4) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        hello: list[Any] = [{"role": "user", "content": "lamp"}]
        ids = model.encode(model.chat.render([Message("user", "lamp")]))
        wanted = "".join(token.text for token in model.stream(ids, Limits(12)))
        for stream in (False, True):
            done: Any = client.chat.completions.create(
                model="f32", messages=hello, max_tokens=12, stream=stream
            )
            if stream:
                text = "".join(c.choices[0].delta.content or "" for c in done if c.choices)
            else:
                text = done.choices[0].message.content
            assert text == wanted
        with pytest.raises(openai.BadRequestError, match="no grammar"):
            client.chat.completions.create(
                model="f32", messages=hello, response_format={"type": "json_object"}
            )
        with pytest.raises(openai.BadRequestError, match="no logprobs"):
            client.chat.completions.create(model="f32", messages=hello, logprobs=True)


def test_a_draft_guesses_for_what_is_served(
    wide: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "MIN_PROBABILITY", 0.0)
    body = {"prompt": "the lamp", "max_tokens": 24, "ignore_eos": True}
    how: dict[str, Any] = {"slots": 2, "context": 256, "kv_type": "q8_0", "max_memory": 10**9}
    texts = []
    for draft in (None, wide["f16"]):
        with running(wide["q8_0"], draft=draft, **how) as served:
            answer = served.json("/v1/completions", body)
            texts.append(answer["choices"][0]["text"])
            assert bool(answer["timings"].get("draft_n")) == bool(draft)
            metrics = served.ask("GET", "/metrics")[1].decode()
            assert ('edgeft_drafted_tokens_total{model="q8_0"} 0\n' in metrics) != bool(draft)
    assert texts[0] == texts[1]
    missing = ServeOptions((wide["q8_0"],), draft=Path("nowhere.gguf"))
    with pytest.raises(InputError, match=r"nowhere\.gguf"), run_module.engines(missing):
        pass


def test_a_draft_that_cannot_guess_is_refused_and_closed(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[run_module.GGUFRuntime] = []
    real = run_module.open_runtime

    def opening(*args: Any, **how: Any) -> Any:
        opened.append(real(*args, **how))  # type: ignore[arg-type]
        return opened[-1]

    def another_vocabulary(draft: Any, target: Any) -> None:
        raise InputError("another vocabulary")

    monkeypatch.setattr(run_module, "open_runtime", opening)
    monkeypatch.setattr(draft_model, "check_same_vocabulary", another_vocabulary)
    options = ServeOptions((artifact,), draft=artifact, context=128)
    with pytest.raises(InputError, match="another vocabulary"), run_module.engines(options):
        pass
    assert len(opened) == 2
    for runtime in opened:
        with pytest.raises(ValueError, match="closed"):
            runtime.is_recurrent  # noqa: B018
    with pytest.raises(InputError, match="exclude each other"):
        replace(options, speculate="ngram").check()


@pytest.mark.parametrize("alias", ["gpt-4o", "a=b", "=f32", "f32=f32", "a="])
def test_an_alias_of_nothing_is_refused(alias: str) -> None:
    with pytest.raises(InputError, match="--alias"):
        run_module.model_aliases([alias], {"f32": Path("out/f32.gguf")})


def test_an_alias_names_a_model_or_its_file() -> None:
    names = {"f32": Path("out/f32.gguf"), "q8_0": Path("out/q8_0.gguf")}
    aliases = run_module.model_aliases(["a=b=q8_0", "*=out/f32.gguf"], names)
    assert aliases == {"a=b": "q8_0", "*": "f32"}
