"""One answer at a time, of any runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeft.records import Limits, Sampling, Token
from edgeft.runtimes.grammar import json_schema_grammar
from edgeft.runtimes.protocol import open_runtime
from edgeft.server.engine import Worker
from edgeft.server.jobs import GenerationRequest
from edgeft.server.sequential_engine import SequentialEngine
from helpers.converting import convert
from helpers.engines import answers, text_of
from helpers.serving import exported, running

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def artifacts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    quants = ("f32", "f16", "q8_0")
    return dict(
        zip(quants, exported(tiny_base, tmp_path_factory.mktemp("q"), *quants), strict=True)
    )


def test_one_by_one_answers_as_the_runtime_does(
    tiny_base: Path, artifacts: dict[str, Path]
) -> None:
    runtime = open_runtime(artifacts["f32"], threads=1)
    engine = SequentialEngine("any", runtime, 8, Worker())
    try:
        ids = [tuple(runtime.encode(text)) for text in ("the lamp", "on the desk", "lamp")]
        events = answers(engine, [GenerationRequest(i, 12, ignore_eos=True) for i in ids])
        with open_runtime(artifacts["f32"], threads=1) as other:
            for one, prompt in zip(events, ids, strict=True):
                stream = other.stream(prompt, Limits(12, ignore_eos=True))
                assert text_of(one) == "".join(token.text for token in stream)
                assert one[-1].finish_reason == "length"
    finally:
        engine.close()


@pytest.mark.parametrize("most", [3, 4, 9])
def test_one_by_one_tells_when_the_context_is_full(most: int) -> None:
    """transformers' stream ends by itself there, as it does at a stop."""

    class Model:
        context = 5

        def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
            for _ in range(min(limits.max_tokens, self.context - len(ids))):
                yield Token(7, "a", 0.0)

        def close(self) -> None: ...

    engine = SequentialEngine("any", Model(), 8, Worker())  # type: ignore[arg-type]
    try:
        (events,) = answers(engine, [GenerationRequest((1, 2), most)])
        assert events[-1].finish_reason == "length" and text_of(events) == "aaa"
        (events,) = answers(engine, [GenerationRequest((1, 2), 2)])
        assert events[-1].finish_reason == "length" and text_of(events) == "aa"
    finally:
        engine.close()


@pytest.fixture(scope="module")
def onnx(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.merge.view import open_merged

    folder = tmp_path_factory.mktemp("onnx") / "f32"
    folder.mkdir()
    convert(open_merged(tiny_base, None), folder, "f32", format="onnx", threads=2)
    return folder


def test_an_onnx_artifact_answers_by_a_schema(onnx: Path) -> None:
    schema = {"type": "object", "properties": {"room": {"enum": ["hall", "den"]}},
              "required": ["room"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "lamp"}], "max_tokens": 100}
    with running(onnx, context=256) as served:
        for more in ({}, {"temperature": 1.0, "seed": 3}, {"top_k": 5, "temperature": 2.0}):
            answer = served.json(CHAT, body | more | {"response_format": form})["choices"][0]
            assert json.loads(answer["message"]["content"])["room"] in ("hall", "den")
            assert answer["finish_reason"] == "stop"
        answer = served.json(CHAT, body | {"response_format": {"type": "json_object"}})
        assert answer["choices"][0]["message"]["content"].startswith("{")
        form["json_schema"] = {"schema": {"type": "nonsense"}}
        status, data, _ = served.ask("POST", CHAT, body | {"response_format": form})
        error = json.loads(data)["error"]
        assert status == 400 and "Invalid type" in error["message"] and "\n" not in error["message"]
        assert served.json(CHAT, body)["choices"]


def test_an_onnx_answer_without_a_schema_is_unchanged_by_one_before(onnx: Path) -> None:
    engine = SequentialEngine("any", open_runtime(onnx, threads=1), 8, Worker())
    try:
        plain = GenerationRequest(tuple(engine.runtime.encode("the lamp")), 12, ignore_eos=True)
        grammar = json_schema_grammar({"type": "object"})
        first = text_of(answers(engine, [plain])[0])
        answers(engine, [replace(plain, sampling=Sampling(grammar=grammar))])
        assert text_of(answers(engine, [plain])[0]) == first
    finally:
        engine.close()
