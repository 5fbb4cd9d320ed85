"""The ONNX runtime compared with transformers, and the damaged folders that it refuses."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import EdgeftError, InputError
from edgeft.formats import format_of
from edgeft.merge.view import open_merged
from edgeft.records import Limits, Message
from edgeft.runtimes.onnx import ONNXRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.runtimes.reference import ReferenceRuntime
from helpers.converting import convert
from helpers.paths import DOCS

TEXT = "turn on the lamp in room 17, then the lamp on 3 äöü 今天"


def write(base: Path, out: Path, quant: str = "f32") -> Path:
    out.mkdir(parents=True)
    convert(open_merged(base, None), out, quant, format="onnx", threads=2)
    return out


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny_base, tmp_path_factory.mktemp("onnx") / "f32")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    with open_runtime(folder) as model:
        yield model


@pytest.fixture(scope="module")
def reference(tiny_base: Path) -> Any:
    with ReferenceRuntime(tiny_base) as reference:
        yield reference


def test_logits_are_those_of_transformers(model: Any, reference: Any) -> None:
    ids = model.encode(TEXT)
    expected, actual = reference.logits(ids), model.logits(ids)
    assert actual.shape == expected.shape and np.abs(actual - expected).max() < 1e-4
    np.testing.assert_array_equal(model.logits(ids, last=3), actual[-3:])


def test_greedy_streams_are_those_of_transformers(model: Any, reference: Any) -> None:
    limits = Limits(max_tokens=40, ignore_eos=True)
    for text in ("a", TEXT, model.chat.render([Message("user", "hi")])):
        ids = model.encode(text)
        expected, actual = (list(m.stream(ids, limits)) for m in (reference, model))
        assert [token.id for token in actual] == [token.id for token in expected]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(actual))
    text = model._tokenizer.decode([token.id for token in actual], skip_special_tokens=False)
    assert text.startswith("".join(token.text for token in actual).removesuffix("\ufffd"))


def test_a_filled_cache_changes_no_answer(folder: Path) -> None:
    limits = Limits(max_tokens=5, ignore_eos=True)
    with open_runtime(folder) as used:
        ids = used.encode(TEXT)
        prompts = [ids, ids, ids[:-4], ids[:9] + ids[2:], ids[:1], ids + ids]
        actual = [[token.id for token in used.stream(prompt, limits)] for prompt in prompts]
    for prompt, answer in zip(prompts, actual, strict=True):
        with open_runtime(folder) as fresh:
            assert [token.id for token in fresh.stream(prompt, limits)] == answer


def test_abandoned_and_interleaved_streams_change_no_answer(folder: Path) -> None:
    limits = Limits(max_tokens=8, ignore_eos=True)
    with open_runtime(folder) as model:
        one, two = model.encode(TEXT), model.encode("the other lamp")
        alone = [[token.id for token in model.stream(ids, limits)] for ids in (one, two)]
        next(model.stream(one, limits))
        pair = zip(model.stream(one, limits), model.stream(two, limits), strict=True)
        assert [list(ids) for ids in zip(*((a.id, b.id) for a, b in pair), strict=True)] == alone


def test_an_interrupted_prompt_changes_no_answer(folder: Path) -> None:
    with ONNXRuntime(folder) as model:
        ids = model.encode(TEXT)
        expected = model._read(list(ids), len(ids))
        generator = model._generator

        class Stopped:
            rewind_to = generator.rewind_to

            def append_tokens(self, tokens: Any) -> None:
                generator.append_tokens(tokens)
                raise KeyboardInterrupt  # as Python does it after the call

        model._generator = Stopped()
        with pytest.raises(KeyboardInterrupt):
            model._read(ids[:5] + ids[:5], len(ids))
        if model._generator:
            model._generator = generator
        np.testing.assert_array_equal(model._read(list(ids), len(ids)), expected)


def test_the_cache_grows_up_to_the_context(folder: Path, reference: Any) -> None:
    with open_runtime(folder, context=300) as small:
        assert small.context == 300
        ids = [5 + i % 90 for i in range(290)]
        actual = [token.id for token in small.stream(ids, Limits(max_tokens=99, ignore_eos=True))]
        expected = reference.stream(ids, Limits(max_tokens=11, ignore_eos=True))
        assert actual == [token.id for token in expected]
        with pytest.raises(InputError, match="301 tokens are more than the context of 300"):
            small.stream([5] * 301, Limits())
    with pytest.raises(EdgeftError, match="is closed"):
        next(small.stream(ids, Limits()))


def test_a_reply_ends_at_a_stop_or_at_the_limit(
    model: Any, tiny_base: Path, tmp_path: Path
) -> None:
    ids = model.encode(TEXT)
    free = [t.id for t in model.stream(ids, Limits(max_tokens=12, ignore_eos=True))]
    (reply,) = model.replies([ids], Limits(max_tokens=12, ignore_eos=True))
    assert reply.ids == tuple(free) and not reply.stopped
    # Another stop: the fourth token of the answer.
    base = shutil.copytree(tiny_base, tmp_path / "base")
    at = free.index(free[3])
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": free[3]}))
    folder = write(base, tmp_path / "out")
    eos_ids = json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"]
    assert eos_ids[0] == free[3]
    seen: list[int] = []
    with open_runtime(folder) as stopping:
        first, second = stopping.replies([ids, ids], Limits(max_tokens=12), seen.append)
    assert first == second and first.ids == tuple(free[:at]) and first.stopped and seen == [1, 2]


def test_stops_beyond_the_vocabulary_are_left_out(tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    end = json.loads((base / "config.json").read_text())["eos_token_id"]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 9000]}))
    folder = write(base, tmp_path / "onnx")
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [end]
    with open_runtime(folder) as model:
        assert next(model.stream([1], Limits(max_tokens=1, ignore_eos=True)))


def test_sampling_follows_its_seed(model: Any) -> None:
    ids = model.encode(TEXT)

    def drawn(seed: int) -> list[int]:
        limits = Limits(max_tokens=12, temperature=1.5, seed=seed, ignore_eos=True)
        return [token.id for token in model.stream(ids, limits)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_int4_with_untied_embeddings_differs_from_the_reference_by_quantization_only(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    base, _, _ = make("llama")
    folder = write(base, tmp_path / "int4", "int4")
    with open_runtime(folder) as model, ReferenceRuntime(base) as reference:
        ids = model.encode(TEXT)
        actual, expected = model.logits(ids), reference.logits(ids)
        apart = np.abs(actual - expected).mean() / expected.std()
        assert 0.01 < apart < 0.5
        token = next(model.stream(ids, Limits(max_tokens=1, ignore_eos=True)))
        assert token.id == actual[-1].argmax()


def test_the_search_settings_of_a_folder_are_ignored(
    folder: Path, model: Any, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    _config(copy, lambda config: config["search"].update(num_beams=4, num_return_sequences=2))
    with open_runtime(copy) as other:
        ids, limits = model.encode(TEXT), Limits(max_tokens=4, ignore_eos=True)
        assert other.replies([ids], limits) == model.replies([ids], limits)


def test_without_repacking_the_answer_is_the_same(folder: Path, model: Any) -> None:
    ids = model.encode(TEXT)
    with ONNXRuntime(folder, repack=False) as plain:
        want = [token.id for token in model.stream(ids, Limits(max_tokens=6, ignore_eos=True))]
        actual = [token.id for token in plain.stream(ids, Limits(max_tokens=6, ignore_eos=True))]
    assert actual == want


def test_the_example_of_the_docs_needs_nothing_but_onnxruntime(
    folder: Path, model: Any, tmp_path: Path
) -> None:
    page = (DOCS / "onnx.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (example,) = (block for block in blocks if "onnxruntime.InferenceSession" in block)
    assert set(re.findall(r"^import (\w+)", example, re.MULTILINE)) == {
        "json", "numpy", "onnxruntime", "tokenizers"
    }  # fmt: skip
    prompt = model.chat.render([Message("user", "turn off the bedroom lamp")])
    assert repr(prompt)[1:-1] in example
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "onnx-int4").symlink_to(folder)
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tokens = [token.id for token in model.stream(model.encode(prompt), Limits(max_tokens=64))]
    assert done.stdout == model._tokenizer.decode(tokens) + "\n"


def _edit(folder: Path, change: Callable[[Any], None]) -> None:
    """Change the graph of a folder."""
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    change(graph)
    onnx.save(graph, folder / "model.onnx")


def _without_data(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()


def _truncated_data(folder: Path) -> None:
    with (folder / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)


def _truncated_graph(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])


def _wrong_opset(folder: Path) -> None:
    def change(model: Any) -> None:
        for entry in model.opset_import:
            if not entry.domain:
                entry.version = 99

    _edit(folder, change)


def _data_elsewhere(folder: Path) -> None:
    def change(model: Any) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../secret"

    (folder.parent / "secret").write_bytes(b"\0" * 10_000_000)
    _edit(folder, change)


def _unknown_operator(folder: Path) -> None:
    def change(model: Any) -> None:
        model.graph.node[3].op_type = "NoSuchOperator"

    _edit(folder, change)


def _foreign_code(folder: Path) -> None:
    _config(folder, lambda config: config["model"]["decoder"]["session_options"].update(
        custom_ops_library="evil.so"))  # fmt: skip


def _hidden_code(folder: Path) -> None:
    path = folder / "genai_config.json"
    options = '"session_options": {'
    foreign = options + '"custom_ops_library": "evil.so"}, ' + options
    path.write_text(path.read_text().replace(options, foreign))


def _files_elsewhere(name: str) -> Callable[[Path], None]:
    return lambda folder: _config(folder, lambda config: config["model"]["decoder"][
        "session_options"].update({name: str(folder.parent / "written")}))  # fmt: skip


def _set(part: str, name: str, value: Any) -> Callable[[Path], None]:
    def change(config: Any) -> None:
        model = config["model"]
        {"model": model, "decoder": model["decoder"]}[part][name] = value

    return lambda folder: _config(folder, change)


def _place(key: str, value: str) -> Callable[[Path], None]:
    def change(model: Any) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value

    return lambda folder: _edit(folder, change)


def _graph_elsewhere(folder: Path) -> None:
    _config(folder, lambda config: config["model"]["decoder"].update(filename="../model.onnx"))


def _no_decoder(folder: Path) -> None:
    _config(folder, lambda config: config["model"].pop("decoder"))


def _no_json(folder: Path) -> None:
    (folder / "genai_config.json").write_text("{")


def _config(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without_data, "its weights lack 'model.onnx.data'"),
        (_truncated_data, "is truncated: 1000 of at least"),
        (_truncated_graph, "is not an ONNX model"),
        (_wrong_opset, "has opset 99"),
        (_data_elsewhere, "its weights lack '../secret'"),
        (_unknown_operator, "NoSuchOperator"),
        (_foreign_code, "has custom_ops_library"),
        (_hidden_code, "has an entry twice"),
        (_files_elsewhere("enable_profiling"), "has enable_profiling"),
        (_files_elsewhere("session.model_external_initializers_file_folder_path"), "has session."),
        (_set("model", "vision", {"filename": "model.onnx"}), "has vision"),
        (_set("model", "context_length", float("inf")), "says nothing of a decoder"),
        (_set("model", "vocab_size", 3), "has not all of its stops"),
        (_set("model", "vocab_size", 10**6), "cannot load"),
        (_set("decoder", "head_size", 8), "cannot load"),
        (_place("offset", "x"), "does not say where"),
        (_place("length", "-1"), "does not say where"),
        (_graph_elsewhere, "lacks model.onnx"),
        (_no_decoder, "says nothing of a decoder"),
        (_no_json, "genai_config.json"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    edgeft: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    says: str,
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert format_of(copy).name == "onnx"
    damage(copy)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    ran = edgeft("chat", copy)
    assert not (tmp_path / "written").exists()
    assert ran.code == 1 and says in ran.err, ran.err
    assert ran.err.count("\n") == 1 and ran.err.startswith("edgeft: error: ")
    assert ran.err.endswith(")\n"), "no hint"
