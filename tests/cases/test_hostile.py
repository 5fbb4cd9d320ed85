"""Damaged and hostile files: one line that names file and place, within seconds, and nothing else.

Every reader gets some 150 damaged copies of a valid file. The larger rounds are in docs/results.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgeft import models, store
from edgeft.benchmarks.studies.fuzz_targets import small_onnx
from edgeft.benchmarks.studies.mutations import json_mutants, json_texts, mutants
from edgeft.errors import EdgeftError, InputError
from edgeft.files import home, read_json
from edgeft.merge.view import open_merged
from edgeft.records import Manifest
from edgeft.weights import gguf_reader
from edgeft.weights.checkpoint import Checkpoint
from edgeft.weights.gguf_check import problems
from helpers.converting import convert
from helpers.mutate import rewritten_gguf
from helpers.paths import ROOT
from helpers.tiny import CHATML, make_base, write_gptq

COUNT = int(os.environ.get("MUTANTS", "60"))
"""damaged copies for each reader; `make test-all` sets more"""


def survives(read: Callable[[], Any], seconds: float = 2) -> bool:
    """Whether `read` succeeds; it may fail with an EdgeftError of one line, and it must not take long."""
    started = time.process_time()
    try:
        read()
        result = True
    except EdgeftError as error:
        assert "\n" not in str(error), str(error)
        assert len(str(error)) < 2000
        result = False
    assert time.process_time() - started < seconds
    return result


def outcomes(path: Path, files: Iterable[bytes], read: Callable[[], Any]) -> set[bool]:
    """Whether some of the files were read, and some were not."""
    results = set()
    for data in files:
        path.write_bytes(data)
        results.add(survives(read))
    return results


@pytest.fixture(scope="module")
def tiny_gguf(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    convert(open_merged(tiny_base, None), out, "f16")
    return out


# safetensors: the reference implementation is the oracle


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def with_header(text: bytes, body: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def reference_reads(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return bool(file.keys()) or True
    except (SafetensorError, OSError):
        return False


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.numpy import save_file

    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    arrays = {
        "a": np.ones((4, 2), np.float32),
        "b": np.zeros(3, np.float16),
        "c": np.ones(0, np.float32),
    }
    save_file(arrays, path, {"format": "pt"})
    return path


@pytest.mark.unit
def test_no_damaged_safetensors_is_read_that_the_reference_refuses(
    small: Path, tmp_path: Path
) -> None:
    header, body = header_of(small)
    span = small.stat().st_size - len(body)
    files = [*mutants(small.read_bytes(), COUNT, seed=1, span=span)]
    files += [with_header(text, body) for text in json_texts(header, COUNT, seed=2)]
    path, both = tmp_path / "x.safetensors", 0
    for data in files:
        path.write_bytes(data)
        if survives(lambda: Checkpoint(path)):
            assert reference_reads(path), data[:400]
            both += 1
    assert both, "no damaged file was still a whole one"


HEADER = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
LAX = {
    "trailing bytes": with_header(HEADER.encode(), bytes(9)),
    "a dtype twice": with_header(
        HEADER.replace('"shape"', '"dtype":"F32","shape"').encode(), bytes(8)
    ),
    "a shape twice": with_header(
        HEADER.replace('"shape":[2]', '"shape":[2],"shape":[2]').encode(), bytes(8)
    ),
    "a dimension as text": with_header(HEADER.replace("[2]", '["2"]').encode(), bytes(8)),
    "a dimension as a float": with_header(HEADER.replace("[2]", "[2.0]").encode(), bytes(8)),
    "a dimension as true": with_header(HEADER.replace("[2]", "[2,true]").encode(), bytes(8)),
    "an offset as true": with_header(HEADER.replace("[0,8]", "[false,8]").encode(), bytes(8)),
    "a byte order mark": with_header(b"\xef\xbb\xbf" + HEADER.encode(), bytes(8)),
    "UTF-16": with_header(HEADER.encode("utf-16"), bytes(8)),
    "UTF-32": with_header(HEADER.encode("utf-32"), bytes(8)),
    "metadata of numbers": with_header(b'{"__metadata__":{"a":1},' + HEADER[1:].encode(), bytes(8)),
    "metadata as a list": with_header(b'{"__metadata__":[],' + HEADER[1:].encode(), bytes(8)),
    "a list of offsets too long": with_header(
        HEADER.replace("[0,8]", "[0,8,8]").encode(), bytes(8)
    ),
}


@pytest.mark.unit
@pytest.mark.parametrize("case", LAX)
def test_what_the_reference_refuses_of_a_safetensors_header(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header(HEADER.encode(), bytes(8)))
    assert reference_reads(path) and Checkpoint(path).tensors
    path.write_bytes(LAX[case])
    assert not reference_reads(path)
    with pytest.raises(InputError, match="x.safetensors"):
        Checkpoint(path)


@pytest.mark.unit
@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [2**63, 2**63, 0], [0] * 100])
def test_an_empty_tensor_of_a_huge_shape_is_refused(shape: list[int], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    entry = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    path.write_bytes(with_header(json.dumps(entry).encode(), b""))
    with pytest.raises(InputError, match="x.safetensors has a broken safetensors header"):
        Checkpoint(path)


@pytest.mark.unit
def test_a_header_larger_than_that_of_any_model_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header(b"[" * 26_000_000, b""))
    assert not survives(lambda: Checkpoint(path), seconds=0.5)


@pytest.mark.unit
@pytest.mark.parametrize(
    "text", ["[" * 5000, "{" * 9, '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "\udcff", "3",
             '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": "x\\u0000"}}',
             '{"weight_map": {"a": "%s"}}' % ("x" * 10_000)]
)  # fmt: skip
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="index.json|lacks the shard"):
        Checkpoint(tmp_path)


@pytest.mark.unit
def test_a_layer_with_a_weight_and_its_codes_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder, layers = write_gptq(tiny_base, tmp_path / "gptq")
    Checkpoint(folder)
    header, body = header_of(folder / "model.safetensors")
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
    text = json.dumps(header | {next(iter(layers)): entry}).encode()
    (folder / "model.safetensors").write_bytes(with_header(text, body + bytes(4)))
    with pytest.raises(InputError, match="has both a weight and a qweight"):
        Checkpoint(folder)


# config.json


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 0), ("num_hidden_layers", 10**9), ("rms_norm_eps", -1),
     ("rms_norm_eps", float("nan")), ("hidden_size", {}), ("hidden_size", -1), ("hidden_size", 64.0),
     ("hidden_size", True), ("num_attention_heads", 0), ("num_key_value_heads", 3), ("head_dim", 0),
     ("intermediate_size", 10**400), ("rope_parameters", [1]), ("vocab_size", "265"),
     ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
     ("rope_parameters", {"rope_type": "llama3", "factor": "x"}),
     ("rope_scaling", {"type": 3, "factor": 2.0}), ("max_position_embeddings", 2**40)],
)  # fmt: skip
def test_a_number_that_no_model_can_have_is_refused_before_anything_is_written(
    edgeft: Callable[..., Any], tiny_base: Path, tmp_path: Path, key: str, value: Any
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    for file in tiny_base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text()) | {key: value}
    (base / "config.json").write_text(json.dumps(config))
    for fmt, quant in (("gguf", "f16"), ("hf", "f16")):
        ran = edgeft("merge-export", "--base", base, "--out", out, "--no-live", "--format", fmt,
                     "--quant", quant, "--threads", 1)  # fmt: skip
        assert ran.code == 1 and f"config.json: {key}" in ran.err.splitlines()[-1]
        assert not out.exists()


@pytest.mark.parametrize("seed", range(2))
def test_damaged_config_json(tiny_base: Path, tmp_path: Path, seed: int) -> None:
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    out = tmp_path / "x.gguf"

    def write() -> None:
        convert(open_merged(base, None), out, "q8_0")

    for changed in json_mutants(config, COUNT // 2, seed):
        (base / "config.json").write_text(json.dumps(changed))
        if survives(write, seconds=4):
            header = gguf_reader.read(out)
            assert not list(problems(header)), changed
        out.unlink(missing_ok=True)


def test_every_card_names_the_numbers_that_are_checked() -> None:
    from edgeft.models.hyperparameters import HYPERPARAMETERS, REQUIRED

    for card in models.cards():
        assert set(REQUIRED) <= set(card.hparams), card.family
        numbers = {
            key for key in card.hparams if not key.endswith(("_norm", "residual", "pattern"))
        }
        assert numbers - set(HYPERPARAMETERS) <= {"rope.scaling.yarn_log_multiplier"}, card.family


# chat templates

LOOPS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a text doubled": "{% set n = namespace(x='x') %}{% for i in range(33) %}{% set n.x = n.x ~ n.x %}"
                      "{% endfor %}{{ n.x }}",
    "a list doubled": "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}"
                      "{% endfor %}{{ n.x | string | length }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a product": "{{ 'x' * (10 ** 10) }}",
    "a width": "{{ '%999999999d' % 1 }}",
    "a format": "{{ '{:>999999999}'.format(1) }}",
    "a filter's width": "{{ 'x' | center(10 ** 10) }}",
    "slices": "{{ [1] | slice(10 ** 9) | list }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
                                       "{% endmacro %}{{ m(60) }}",
    "words": "{{ lipsum(n=10 ** 7) }}",
    "a replacement": "{% set x = 'x' * 10 ** 5 %}{{ x.replace('x', x).replace('x', x) }}",
    "rounding": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
}  # fmt: skip


WHOLE_SECOND = ("nested loops", "a text doubled")
"""loops that run into the limits as they are: one of time, one of memory"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renderers that wait 0.1 s of work for a template, not a second."""
    from edgeft.child_process import Pool
    from edgeft.tokenizer import jinja_sandbox

    limits = replace(jinja_sandbox.RENDERING, cpu_s=0.1)
    pool = Pool(Path(jinja_sandbox.__file__), "answer", limits, 1)
    monkeypatch.setattr(jinja_sandbox, "_renderers", pool)


@pytest.mark.unit
@pytest.mark.parametrize("case", LOOPS)
def test_a_template_without_end_is_refused(case: str, request: pytest.FixtureRequest) -> None:
    from edgeft.tokenizer import jinja_sandbox

    if case not in WHOLE_SECOND:
        request.getfixturevalue("impatient")
    started = time.perf_counter()
    with pytest.raises(InputError, match="the chat template refuses these messages: ") as caught:
        jinja_sandbox.render(LOOPS[case], messages=[])
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 30, "on an idle machine it is 1 s"


@pytest.mark.unit
def test_a_template_that_writes_more_than_any_conversation_is_refused() -> None:
    from edgeft.errors import TemplateLimitError
    from edgeft.tokenizer import jinja_sandbox

    assert len(jinja_sandbox.render("{{ 'x' * 10 ** 7 }}")) == 10**7
    with pytest.raises(TemplateLimitError, match="it writes more than 10,000,000 characters"):
        jinja_sandbox.render("{{ 'x' * (10 ** 7 + 1) }}")


@pytest.mark.unit
def test_a_lower_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root may raise a hard limit, so a renderer that tried to would end before it renders."""
    import resource

    from edgeft import child_process

    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda of, pair: limits.append(pair))
    for most in (resource.RLIM_INFINITY, 1000):
        monkeypatch.setattr(resource, "getrlimit", lambda of, most=most: (most, most))
        child_process._limit_memory(2000)
    assert limits == [(2000, resource.RLIM_INFINITY), (1000, 1000)]


@pytest.mark.unit
def test_the_memory_of_a_template_grows_with_its_messages_alone() -> None:
    from edgeft.errors import TemplateLimitError
    from edgeft.tokenizer import jinja_sandbox

    source = "{% set x = 'x' * length %}{{ x | length }}"
    assert jinja_sandbox.render(source, length=40 * 10**6) == "40000000"
    with pytest.raises(TemplateLimitError, match=r"it takes more than 64\.0 MB of memory"):
        jinja_sandbox.render(source, length=70 * 10**6)
    assert jinja_sandbox.render(source, length=70 * 10**6, messages="m" * 10**6) == "70000000"


@pytest.mark.unit
@pytest.mark.parametrize(
    "source",
    ["{% break %}", "{% continue %}", "{% macro m(a, a) %}{% endmacro %}", "{{ " + "(" * 5000,
     "{% for a in b %}" * 21 + "{% endfor %}" * 21, "{{ x" + ".a" * 100_000 + " }}", "{% set 1 = 2 %}"],
)  # fmt: skip
@pytest.mark.usefixtures("impatient")
def test_a_template_that_is_no_code(source: str) -> None:
    from edgeft.tokenizer import jinja_sandbox

    with pytest.raises(InputError, match="the chat template (does not compile|refuses)"):
        jinja_sandbox.render(source, b=[], x={})


@pytest.mark.unit
@pytest.mark.usefixtures("impatient")
def test_a_renderer_that_ended_is_replaced_and_the_next_text_is_right() -> None:
    from edgeft.tokenizer import jinja_sandbox

    messages = [{"role": "user", "content": "h\u00e9 \U0001f600 \x00"}]
    for _ in range(2):
        with pytest.raises(InputError):
            jinja_sandbox.render(LOOPS["a power"], messages=[])
        text = jinja_sandbox.render(CHATML, messages=messages, add_generation_prompt=True)
        assert (
            text == f"<|im_start|>user\n{messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        )


@pytest.mark.unit
def test_many_threads_render_at_the_same_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from edgeft.tokenizer import jinja_sandbox

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: jinja_sandbox.render("{{ i }}", i=i), range(200)))
    assert texts == [str(i) for i in range(200)]


@pytest.mark.unit
def test_damaged_templates() -> None:
    from edgeft.tokenizer import jinja_sandbox

    rendered = set()
    for data in mutants(CHATML.encode(), COUNT, seed=5):
        source = data.decode("latin-1")
        rendered.add(survives(functools.partial(jinja_sandbox.render, source, messages=[])))
    assert rendered == {True, False}


# GGUF


def test_damaged_gguf_headers(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"

    def read() -> None:
        list(problems(gguf_reader.read(path), language_model=True))

    span = min(t.offset for t in gguf_reader.read(tiny_gguf).tensors.values())
    assert outcomes(path, mutants(tiny_gguf.read_bytes(), COUNT, 7, span), read) == {True, False}


KEYS = {
    "block_count": {"llama.block_count": 0},
    "many blocks": {"llama.block_count": 10**6},
    "experts": {"llama.expert_count": 2},
    "used experts": {"llama.expert_count": 2, "llama.expert_used_count": 3},
    "rope scaling": {"llama.rope.scaling.type": "x"},
    "rope dimensions": {"llama.rope.dimension_count": 15},
    "epsilon": {"llama.attention.layer_norm_rms_epsilon": -1.0},
    "no number": {"llama.attention.layer_norm_rms_epsilon": float("nan")},
    "no heads": {"llama.attention.head_count": 0},
    "heads": {"llama.attention.head_count_kv": 3},
    "unknown token": {"tokenizer.ggml.unknown_token_id": 512},
    "end token": {"tokenizer.ggml.eos_token_id": 10**6},
    "no merges": {"tokenizer.ggml.merges": None},
    "types": {"tokenizer.ggml.token_type": [1, 1]},
    "scores": {"tokenizer.ggml.scores": [0.5]},
    "tokens": {"tokenizer.ggml.tokens": [1, 2]},
    "a token twice": {"tokenizer.ggml.tokens": ["a"] * 265},
    "alignment": {"general.alignment": 2},
    "architecture": {"general.architecture": 3},
    "name": {"general.name": 3},
    "template": {"tokenizer.chat_template": 3},
}


@pytest.mark.parametrize("case", KEYS)
def test_a_header_that_llama_cpp_would_not_survive(
    edgeft: Callable[..., Any], tiny_gguf: Path, tmp_path: Path, case: str
) -> None:
    path = rewritten_gguf(tiny_gguf, tmp_path / "model.gguf", KEYS[case])
    place = next(iter(KEYS[case])).rpartition(".")[2]
    for command in (
        ("inspect",),
        ("chat",),
        ("serve", "--port", 0),
        ("merge-export", "--quant", "f16"),
    ):
        source = (
            ("--base", path, "--out", tmp_path / "out") if command[0] == "merge-export" else (path,)
        )
        ran = edgeft(*command, *source)
        line = ran.err.splitlines()[-1]
        assert ran.code == 1 and "model.gguf" in line, (command, line)
        assert place.partition("_")[0] in line or "GGUF" in line, (command, line)
        assert "Traceback" not in ran.err


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float64, np.float16])
def test_a_vector_of_another_type_than_float32_is_refused(
    edgeft: Callable[..., Any], tiny_gguf: Path, tmp_path: Path, dtype: type
) -> None:
    norm = {"output_norm.weight": np.ones(64, dtype)}
    path = rewritten_gguf(tiny_gguf, tmp_path / "model.gguf", {}, norm)
    for command in ("inspect", "chat"):
        ran = edgeft(command, path)
        assert ran.code == 1 and "output_norm.weight" in ran.err.splitlines()[-1]


def test_a_whole_file_has_no_problems_and_ids_beyond_its_vocabulary_are_refused(
    tiny_gguf: Path,
) -> None:
    from edgeft.records import Limits
    from edgeft.runtimes.gguf import GGUFRuntime

    assert not list(problems(gguf_reader.read(tiny_gguf), language_model=True))
    with GGUFRuntime(tiny_gguf, threads=1) as model:
        for ids in ([265], [-1], [0, 10**6]):
            with pytest.raises(InputError, match="go from 0 to 264"):
                model.logits(ids)
            with pytest.raises(InputError, match="go from 0 to 264"):
                model.stream(ids, Limits())


def test_an_abort_that_no_rule_foresees_is_one_line(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.runtimes import trial
    from edgeft.runtimes.protocol import open_runtime

    path = rewritten_gguf(tiny_gguf, tmp_path / "model.gguf", {"llama.block_count": 0})
    source = "from edgeft.runtimes import llama_context\nllama_context.check_runs = lambda header: None\n"
    unchecked = tmp_path / "unchecked.py"
    unchecked.write_text(source + f"exec(open({trial.__file__!r}).read())\n")
    monkeypatch.setattr(trial, "__file__", str(unchecked))
    with pytest.raises(
        InputError, match=r"cannot load .*model\.gguf: llama\.cpp ends with GGML_ASSERT"
    ):
        trial.check_survives(path)
    monkeypatch.undo()
    with pytest.raises(InputError, match="block_count is 0"):
        open_runtime(path, threads=1)


def test_a_file_is_tried_once(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.runtimes import trial

    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    trial.check_survives(path)
    monkeypatch.setattr(trial, "Worker", None)
    trial.check_survives(path)
    path.write_bytes(tiny_gguf.read_bytes() + b"x")
    with pytest.raises(TypeError):
        trial.check_survives(path)


def test_damaged_gguf_files_as_a_base(tiny_gguf: Path, tmp_path: Path) -> None:
    from edgeft.base.gguf_import import import_gguf

    span = min(t.offset for t in gguf_reader.read(tiny_gguf).tensors.values())
    path = tmp_path / "x.gguf"
    files = mutants(tiny_gguf.read_bytes(), COUNT, 11, span)
    assert outcomes(path, files, lambda: import_gguf(path, "hostile-import")) == {True, False}


@pytest.mark.unit
def test_a_long_array_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    key = b"x.y"
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    for item_type, size in ((8, 8), (0, 1), (12, 8)):
        count = 50_000_000 // size
        path.write_bytes(start + struct.pack("<IIQ", 9, item_type, count) + bytes(50_000_000))
        assert not survives(lambda: gguf_reader.read(path), seconds=1)


# The other readers


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "size"), [("config.json", 17_000_000), ("tokenizer.json", 65_000_000)]
)
def test_json_larger_than_that_of_any_model_is_not_read(
    name: str, size: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"[")
        file.truncate(size)
    with pytest.raises(InputError, match="more than that of any model"):
        read_json(path)


@pytest.mark.unit
def test_damaged_sentencepiece_models(tmp_path: Path) -> None:
    from edgeft.tokenizer.sentencepiece import SentencePiece

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    pieces = b"".join(
        field(
            1,
            field(1, text.encode())
            + b"\x15"
            + struct.pack("<f", -i)
            + bytes([24, 2 if not i else 1]),
        )
        for i, text in enumerate(["<unk>", "a", "b", "ab", "\u2581a"])
    )
    whole = pieces + field(2, b"\x18\x02") + field(3, b"\x18\x01")
    path = tmp_path / "tokenizer.model"

    def read() -> None:
        SentencePiece.read(path).tokenizer_json()

    assert outcomes(path, mutants(whole, COUNT, 13), read) == {True, False}
    path.write_bytes(b"\x0a" + b"\xff" * 1_000_000)
    assert not survives(read, seconds=0.5)
    long = b"x" * 1_000_000
    varint = bytes([0x80 | len(long) & 127, 0x80 | len(long) >> 7 & 127, len(long) >> 14])
    piece = b"\x0a" + varint + long
    outer = bytes([0x80 | len(piece) & 127, 0x80 | len(piece) >> 7 & 127, len(piece) >> 14])
    path.write_bytes(whole + b"\x0a" + outer + piece)
    assert not survives(read, seconds=1)


@pytest.mark.unit
def test_damaged_manifests(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with store.writing(target, kind="base", options={"a": 1}, parents={"file": "0"}) as draft:
        (draft.path / "config.json").write_text("{}")
    path = target / "manifest.json"
    whole = json.loads(path.read_text())

    def read() -> None:
        store.find_complete(target, "base", {"a": 1}, {"file": "0"})
        store.identity(target)

    assert outcomes(path, json_texts(whole, COUNT, 17), read) == {True, False}
    with pytest.raises((TypeError, ValueError)):
        Manifest.from_json(json.dumps(whole | {"schema": "1"}))


@pytest.mark.unit
def test_damaged_imatrix_files(tmp_path: Path) -> None:
    from edgeft.weights import imatrix

    path = tmp_path / "x.gguf"
    sums = imatrix.Sums(np.ones((1, 4), np.float32), np.ones(1, np.float32))
    imatrix.write(imatrix.Imatrix({"blk.0.attn_q.weight": sums}, ("a",), 16, 1), path)
    whole = path.read_bytes()
    assert outcomes(path, mutants(whole, COUNT, 19), lambda: imatrix.read(path)) == {True, False}


@pytest.mark.unit
@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "threads = 0x" + "f" * 100_000, 'out = "a\\u0000b"', "[x]\n[x]", "\udcff"]
)  # fmt: skip
def test_a_configuration_that_is_none(
    edgeft: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    ran = edgeft("merge-export", "--config", path)
    assert ran.code == 1 and "run.toml" in ran.err.splitlines()[-1]


@pytest.mark.unit
def test_a_long_prompt_is_a_prompt(tmp_path: Path) -> None:
    from edgeft.benchmarks.quality.evaluate import _prompt_ids
    from edgeft.benchmarks.quality.refusals import load_refusals

    class Refusing:
        chat = SimpleNamespace(render=lambda messages, tools: "text")

        def encode(self, text: str) -> list[int]:
            raise InputError("too long")

    path = tmp_path / "r.csv"
    path.write_text("prompt,label\n" + "x" * 200_000 + ",safe\n")
    items = load_refusals(path)
    assert len(items.examples[0].messages[0].content) == 200_000
    with pytest.raises(InputError, match="the item of line 2: too long"):
        _prompt_ids(cast(Any, Refusing()), items.examples[0])
    path.write_text('prompt,label\n"x' + "\0" * 9 + ",safe\n")
    assert survives(lambda: load_refusals(path)) is False


@pytest.mark.unit
def test_a_home_of_a_user_that_does_not_exist(
    edgeft: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = edgeft("merge-export", "--base", "~nobodyx/y", "--out", tmp_path / "o", "--quant", "f16")
    assert ran.code == 1 and "~nobodyx/y: there is no such user" in ran.err
    monkeypatch.setenv("EDGEFT_HOME", "~nobodyx/y")
    with pytest.raises(InputError, match="~nobodyx/y: there is no such user"):
        home()


@pytest.mark.unit
def test_names_that_are_not_utf8_are_kept_in_a_manifest(tmp_path: Path) -> None:
    target, options = tmp_path / "out", {"validation": "v\udcff.jsonl"}
    for _ in range(2):
        with store.writing(
            target, kind="base", options=options, parents={}, overwrite=True
        ) as draft:
            (draft.path / "config.json").write_text("{}")
        assert store.find_complete(target, "base", options, {})


@pytest.mark.unit
def test_a_linked_result_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for target, place in (
        (tmp_path / "hf", tmp_path / "disk/hf"),
        (tmp_path / "q.gguf", tmp_path / "disk/q"),
    ):
        for number, parents in enumerate(({}, {"base": "1"})):
            with store.writing(
                target, kind="artifact", options={}, parents=parents, overwrite=True
            ) as draft:
                file = draft.path / "config.json" if draft.path.is_dir() else draft.path
                file.write_text(str(number))
            if not number:
                target.rename(place)
                target.symlink_to(place)
        assert target.is_symlink() and not place.is_symlink()
        assert (place / "config.json" if place.is_dir() else place).read_text() == "1"
        assert store.find_complete(target, "artifact", {}, {"base": "1"})
    assert sorted(p.name for p in tmp_path.rglob("*partial*")) == []


@pytest.mark.unit
def test_half_a_surrogate_pair_is_shown_escaped(edgeft: Callable[..., Any], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"x\ud800": "\ud800", "model_type": "\udcff"})
    )
    assert "\\ud800" in edgeft("inspect", base).out
    shown = json.loads(edgeft("inspect", base, "--json").out)
    assert shown["model"]["model_type"] == "\udcff"


# ONNX


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    return small_onnx(tmp_path_factory.mktemp("onnx"))


def test_damaged_onnx_folders(onnx_folder: Path, tmp_path: Path) -> None:
    from edgeft.weights.onnx_graph import ONNXGraph

    names = ("model.onnx", "genai_config.json")
    whole = {name: (onnx_folder / name).read_bytes() for name in names}

    def read() -> None:
        graph = ONNXGraph(tmp_path)
        assert graph.opset and graph.size and graph.operators() and graph.bytes_per_token(8) >= 0

    for name in names:
        (tmp_path / name).write_bytes(whole[name])
    assert survives(read)
    assert outcomes(tmp_path / names[0], mutants(whole[names[0]], COUNT, 23), read) == {True, False}
    (tmp_path / names[0]).write_bytes(whole[names[0]])
    texts = json_texts(json.loads(whole[names[1]]), COUNT, 29)
    assert outcomes(tmp_path / names[1], texts, read) == {True, False}


def test_an_onnx_graph_that_could_run_without_end_or_take_all_memory(
    onnx_folder: Path, tmp_path: Path
) -> None:
    import onnx

    from edgeft.weights.onnx_graph import ONNXGraph

    proto = onnx.load(onnx_folder / "model.onnx")
    config = json.loads((onnx_folder / "genai_config.json").read_text())

    def refused(change: Callable[[Any, Any], Any], match: str) -> None:
        graph, settings = onnx.ModelProto(), json.loads(json.dumps(config))
        graph.CopyFrom(proto)
        change(graph, settings["model"]["decoder"])
        (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
        (tmp_path / "genai_config.json").write_text(json.dumps(settings))
        with pytest.raises(InputError, match=match):
            ONNXGraph(tmp_path)

    def loop(graph: Any) -> Any:
        return onnx.helper.make_node("Loop", [], ["x"], body=graph)

    inner = onnx.helper.make_graph([loop(proto.graph)], "inner", [], [])
    choice = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    function = onnx.helper.make_function("d", "f", [], [], [], [])
    custom = onnx.helper.make_node("X", [], [], domain="evil")
    refused(lambda graph, _: graph.graph.node.append(loop(proto.graph)), "operator 'Loop'")
    refused(lambda graph, _: graph.graph.node.append(choice), "operator 'Loop'")
    refused(lambda graph, _: graph.graph.node.append(custom), "operator 'X'")
    refused(lambda graph, _: graph.functions.append(function), "functions of its own")
    refused(lambda _, decoder: decoder.update(head_size=10**6), "head_size is 1000000")
    refused(lambda _, decoder: decoder.update(head_size=4), "head_size")
    refused(lambda _, decoder: decoder.update(num_key_value_heads=2000), "num_key_value_heads 2000")


# What bench and ab read and write


@pytest.mark.unit
def test_damaged_baselines_of_log_probabilities(tmp_path: Path) -> None:
    from safetensors.numpy import save, save_file

    from edgeft.benchmarks.fidelity import kept_baseline
    from edgeft.benchmarks.fidelity.compare import ScoredSequence

    sequences = [ScoredSequence([1, 2, 3], np.array([0, 1]))]
    header = {"schema": 1, "vocabulary": 9, "name": "x",
              "sequences": kept_baseline.fingerprint(sequences)}  # fmt: skip
    arrays: dict[str, Any] = {
        "ids": np.arange(8, dtype=np.uint16).reshape(2, 4),
        "likely": np.full((2, 4), -1.5, np.float32), "true": np.full(2, -1.5, np.float32),
    }  # fmt: skip
    path = tmp_path / "x.logprobs"

    def read() -> None:
        scores = kept_baseline.KeptBaseline(path, sequences).score(sequences[0])
        scores.divergence(np.zeros((2, 9), np.float32))

    save_file(arrays, path, {"edgeft": json.dumps(header)})
    assert survives(read)
    whole = path.read_bytes()
    assert outcomes(path, mutants(whole, COUNT, 31), read) == {True, False}
    headers = (
        save(arrays, {"edgeft": text.decode("latin-1")}) for text in json_texts(header, COUNT, 37)
    )
    assert False in outcomes(path, headers, read)
    save_file(arrays | {"ids": arrays["ids"] + 2}, path, {"edgeft": json.dumps(header)})
    with pytest.raises(InputError, match="beyond the vocabulary of 9"):
        read()


def test_answers_are_shown_where_they_cannot_be_kept(
    edgeft: Callable[..., Any], tiny_gguf: Path, tiny_chats: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEFT_HOME", str(tmp_path / "file/home"))
    ran = edgeft(
        "bench", tiny_gguf, "--items", tiny_chats, "--max-tokens", 2, "--no-speed", "--json"
    )
    assert ran.code == 0 and json.loads(ran.out)
    assert "the answers are not kept" in ran.err


# The server


def test_a_server_after_hostile_requests(tiny_gguf: Path, tmp_path: Path) -> None:
    """In a process of its own: it holds 600 connections."""
    import http.client
    import socket

    name = tmp_path / "t\udcffx.gguf"
    name.write_bytes(tiny_gguf.read_bytes())
    broken = (
        b"POST /v1/completions HTTP/1.1\r\nHost: evil\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n"
    )
    command = [sys.executable, "-m", "edgeft", "serve", name, "--port", "0", "--slots", "1",
               "--context", "64"]  # fmt: skip
    key = os.environ | {"EDGEFT_API_KEY": "k\udcffy"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT, env=key) as process:
        assert process.stderr
        try:
            port = 0
            while not port:
                line = process.stderr.readline()
                assert line, "it ended before it served"
                port = int((re.findall(rb"http://127\.0\.0\.1:(\d+)", line) or [0])[0])
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port), 10) as client:
                    client.sendall(broken)
                    assert client.recv(100).startswith(b"HTTP/1.1 4")
                    client.sendall(b"-1\r\nxyz")
            idle = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(600)]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.putrequest("GET", "/v1/models")
            connection.putheader("Authorization", b"Bearer k\xffy")
            connection.endheaders()
            answer = connection.getresponse()
            shown = json.loads(answer.read())
            assert answer.status == 200 and shown["data"][0]["id"] == "t?x"
            for client in [*idle, connection]:
                client.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert b"Traceback" not in process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize("template", ["nested loops", "a text doubled"])
def test_a_server_refuses_a_template_without_end_and_ends_in_time(
    tiny_gguf: Path, tmp_path: Path, template: str
) -> None:
    from helpers.serving import running

    path = tmp_path / "model.gguf"
    rewritten_gguf(tiny_gguf, path, {"tokenizer.chat_template": LOOPS[template]})
    with running(path, slots=1, context=64) as served:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        for _ in range(2):
            status, data, _ = served.ask("POST", "/v1/chat/completions", body)
            assert status == 400 and b"the chat template refuses these messages" in data
        assert served.ask("GET", "/health")[0] == 200
        started = time.perf_counter()
    assert time.perf_counter() - started < 10
