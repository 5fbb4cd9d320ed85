"""Artifacts that never stopped, and settings that training tools left behind.

A tiny model learns to write an answer and the end of its turn, in which it is certain, and writes on
behind it where nothing stops it. Its tokenizer and generation_config.json name the eos in three ways.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.errors import FormatError, ProofError
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.files import read_json
from edgeft.formats import format_of
from edgeft.records import Limits, Message
from edgeft.runtimes.protocol import open_runtime
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.tokenizer import training_settings
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, eos_ids
from edgeft.tokenizer.learned_parts import spans
from edgeft.tokenizer.stops import stop_ids
from edgeft.weights import gguf_reader
from helpers.families import TINY, card_of, make_tiny
from helpers.tiny import make_tokenizer
from helpers.vocabs import write_gguf

QUESTION, ANSWER = "turn on the lamp", "lamp on"
TALK = (Message("user", QUESTION), Message("assistant", ANSWER))
ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""added tokens of the tiny tokenizer, in the order of their ids"""
SHAPES = {
    # text of the third token, eos_token, positions in ENDS of eos_token_id
    "the eos ends a turn": ("<|im_end|>", "<|im_end|>", [2]),
    "another token": ("<|eoa|>", "<|endoftext|>", [0]),
    "several": ("<|eoa|>", "<|endoftext|>", [0, 1]),
}
FAMILIES = {card_of(case).family: case for case in reversed(TINY)}
"""the first tiny model of each family"""
FAST = (*(("llama", shape) for shape in SHAPES), ("gemma3", "another token"))
MOST_STEPS, LEARNED_NATS, RATE = 1000, 0.03, 0.01


@pytest.fixture(scope="session")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Case of TINY -> (base, an adapter that has learned TALK)."""

    @functools.cache
    def build(case: str) -> tuple[Path, Path]:
        base, adapter, live = make_tiny(tmp_path_factory.mktemp(case), TINY[case])
        learn(live, base)
        live.save_pretrained(adapter)
        return base, adapter

    return build


def learn(live: Any, base: Path) -> None:
    """Train the adapter on the answer and the token that ends it."""
    import torch

    chat, encode = ChatTemplate.from_folder(base), encoder(base)
    (prompt, _), (answer, _) = spans(chat, TALK)
    ids, start = encode(prompt + answer), len(encode(prompt))
    weights = [weight for name, weight in live.named_parameters() if "lora_" in name]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=RATE)
    for _ in range(MOST_STEPS):
        optimizer.zero_grad()
        logits = live(torch.tensor([ids])).logits[0, start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]))
        if loss < LEARNED_NATS:
            return
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    pytest.fail(f"the answer was not learned: {float(loss):.2f} nats")


def shaped(base: Path, folder: Path, shape: str) -> Path:
    """A copy of the base whose files name the eos in another way; the ids are the same."""
    shutil.copytree(base, folder)
    end, eos, named = SHAPES[shape]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / file).read_text().replace("<|im_end|>", end)
        (folder / file).write_text(text)
    ids = [size_of(folder) + place for place in named]
    edit(folder / "tokenizer_config.json", eos_token=eos, pad_token=eos)
    edit(folder / "config.json", eos_token_id=ids[0], pad_token_id=ids[0])
    edit(folder / "generation_config.json", eos_token_id=ids if len(ids) > 1 else ids[0])
    return folder


def size_of(folder: Path) -> int:
    """Tokens before the added ones."""
    return len(read_json(folder / "tokenizer.json")["model"]["vocab"])


def edit(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(read_json(path) | settings))


def artifacts_of(base: Path, adapter: Path, out: Path, case: str, **options: Any) -> list[Path]:
    """Every format that the family has, by the whole pipeline with its proofs."""
    data = out.with_suffix(".jsonl")
    row = {"messages": [{"role": m.role, "content": m.content} for m in TALK]}
    data.write_text((json.dumps(row) + "\n") * 4)
    formats = card_of(case).formats
    made = export(ExportOptions(
        out=out, base=str(base), adapter=(Weighted(adapter),), formats=tuple(formats),
        quants=("f32", *(["8bit"] if "gptq" in formats else [])), validation_data=data, base_precision="stored", threads=2,
        **({"calibration": other_chats(out)} if "gptq" in formats else {}), **options))  # fmt: skip
    return [artifact.path for artifact in made]


def other_chats(out: Path) -> Path:
    """Calibration data that is not the validation split."""
    path = out.with_suffix(".calibration.jsonl")
    turns = [{"role": "user", "content": "turn off"}, {"role": "assistant", "content": ANSWER}]
    path.write_text((json.dumps({"messages": turns}) + "\n") * 4)
    return path


def check_stops(path: Path, end: int) -> None:
    """The artifact answers, ends, and its own files name the end."""
    with open_runtime(path, threads=2) as model:
        assert end in named_by(path, model)
        prompt = model.encode(model.chat.render(TALK[:1]))
        (reply,) = model.replies([prompt], Limits(max_tokens=24))
        assert (reply.text, reply.stopped) == (ANSWER, True)
        streamed = model.stream(prompt, Limits(max_tokens=24))
        assert "".join(token.text for token in streamed) == ANSWER
        on = model.stream(prompt, Limits(max_tokens=len(reply.ids) + 4, ignore_eos=True))
        assert len(list(on)) == len(reply.ids) + 4, "a model that ends anyway proves nothing"
    if format_of(path).reference:
        check_transformers(path, prompt, reply.ids, end)


def named_by(path: Path, model: Any) -> set[int]:
    return set(eos_ids(path)) if format_of(path).reference else set(model.file_eos_ids)


def check_transformers(path: Path, prompt: list[int], answer: Any, end: int) -> None:
    """The oracle: transformers' generate with the folder's generation_config.json."""
    import torch
    import transformers

    with ReferenceRuntime(path) as reference:  # GPTQ's codes are dequantized
        written = reference._model.generate(
            torch.tensor([prompt]), max_new_tokens=24,
            generation_config=transformers.GenerationConfig.from_pretrained(path),
        )[0, len(prompt) :].tolist()  # fmt: skip
    assert written == [*answer, end]


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        pytest.param(case, shape, marks=[] if (case, shape) in FAST else pytest.mark.slow)
        for case in FAMILIES.values() for shape in SHAPES
    ],
)  # fmt: skip
def test_every_artifact_stops_where_the_template_ends_a_turn(
    ending: Callable[[str], Any], tmp_path: Path, case: str, shape: str
) -> None:
    plain, adapter = ending(case)
    base = shaped(plain, tmp_path / "base", shape)
    paths = artifacts_of(base, adapter, tmp_path / "out", case)
    assert {format_of(path).name for path in paths} == set(card_of(case).formats)
    for path in paths:
        check_stops(path, size_of(base) + 2)
    if shape == "the eos ends a turn" and (tmp_path / "out" / "hf-f32").is_dir():
        name = "generation_config.json"
        assert (tmp_path / "out" / "hf-f32" / name).read_bytes() == (base / name).read_bytes()


@pytest.fixture(scope="session")
def llama(ending: Callable[[str], Any]) -> tuple[Path, Path]:
    base, adapter = ending("llama")
    return base, adapter


def exported(base: Path, adapter: Path, out: Path, *formats: str, **options: Any) -> list[Path]:
    made = export(ExportOptions(
        out=out, base=str(base), adapter=(Weighted(adapter),), formats=formats, quants=("f32",),
        base_precision="stored", threads=2, **options))  # fmt: skip
    return [artifact.path for artifact in made]


def named_ids(path: Path) -> set[int]:
    with open_runtime(path, threads=2) as model:
        return named_by(path, model)


def test_a_tokenizer_and_a_generation_config_that_differ(
    llama: tuple[Path, Path], tmp_path: Path
) -> None:
    """transformers reads the generation_config alone, which training often leaves as the base's."""
    base, adapter = llama
    base = Path(shutil.copytree(base, tmp_path / "base"))
    size = size_of(base)
    edit(base / "generation_config.json", eos_token_id=size)
    for path in exported(base, adapter, tmp_path / "out", "gguf", "hf", "onnx"):
        check_stops(path, size + 2)
    config = read_json(tmp_path / "out" / "hf-f32" / "config.json")
    assert config["eos_token_id"] == [size, size + 2]


def test_a_base_without_a_generation_config(llama: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = llama
    base = shaped(base, tmp_path / "base", "another token")
    (base / "generation_config.json").unlink()
    for path in exported(base, adapter, tmp_path / "out", "gguf", "hf", "onnx"):
        check_stops(path, size_of(base) + 2)
    written = read_json(tmp_path / "out" / "hf-f32" / "generation_config.json")
    config = read_json(base / "config.json")
    assert {**written, "eos_token_id": 0} == {
        "bos_token_id": config["bos_token_id"], "pad_token_id": config["pad_token_id"],
        "eos_token_id": 0,
    }  # fmt: skip


def test_files_that_name_no_eos(llama: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = llama
    base = shaped(base, tmp_path / "base", "another token")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = read_json(base / name)
        left = {key: value for key, value in settings.items() if not key.startswith("eos")}
        (base / name).write_text(json.dumps(left))
    for path in exported(base, adapter, tmp_path / "out", "gguf", "hf"):
        assert size_of(base) + 2 in named_ids(path)


def test_an_end_that_is_an_added_token_but_not_a_special_one(
    llama: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = llama
    base = shaped(base, tmp_path / "base", "another token")
    tokenizer = read_json(base / "tokenizer.json")
    tokenizer["added_tokens"][2]["special"] = False
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    for path in exported(base, adapter, tmp_path / "out", "gguf", "onnx"):
        check_stops(path, size_of(base) + 2)


def test_ordinary_tokens_among_the_stops(
    llama: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """GGUF's keys hold them as far as there are keys; the others are named."""
    base, adapter = llama
    base = shaped(base, tmp_path / "base", "the eos ends a turn")
    size = size_of(base)
    edit(base / "generation_config.json", eos_token_id=[size + 2, 5, 6, 7, 100_000])
    (path,) = exported(base, adapter, tmp_path / "out", "gguf")
    # llama.cpp adds <|endoftext|>, which it knows by name.
    assert named_ids(path) == {size + 2, size, 5, 6}
    assert "GGUF has no place for the stop 7 ('ć')" in capfd.readouterr().err


def test_more_stops_than_gguf_has_keys_are_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    size, end = make_tokenizer(folder)
    tokenizer = read_json(folder / "tokenizer.json")
    last = tokenizer["added_tokens"][-1]
    more = [last | {"id": size + i, "content": f"<more{i}>"} for i in range(4)]
    tokenizer["added_tokens"] += more
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit(folder / "generation_config.json", eos_token_id=[end, size + 1, size + 2])
    write_gguf(folder, tmp_path / "x.gguf")
    config = (folder / "tokenizer_config.json").read_text()
    template = config.replace("+ '<|im_end|>'", "+ '<more0>'")
    assert template != config
    (folder / "tokenizer_config.json").write_text(template)
    with pytest.raises(
        FormatError, match=r"three tokens, base also at \['<more0>'\] \(take tokens"
    ):
        write_gguf(folder, tmp_path / "x.gguf")


def test_an_artifact_of_another_program_stops_where_its_template_ends_a_turn(
    llama: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files name the base's eos alone; edgeft's runtimes read the template."""
    base, adapter = llama
    base = shaped(base, tmp_path / "base", "another token")
    size = size_of(base)
    with monkeypatch.context() as patch:
        patch.setattr("edgeft.export.verify._check_stops", lambda *_: frozenset([size, size + 2]))
        patch.setattr("edgeft.converters.gguf.vocabulary.LLAMA_CPP_END_TOKENS", frozenset())
        patch.setattr("edgeft.converters.onnx.convert.stop_ids", lambda *_: (size,))
        patch.setattr("edgeft.converters.folder.stop_ids", lambda *_: (size,))
        patch.setattr("gguf.GGUFWriter.add_eot_token_id", lambda *_: None)
        paths = exported(base, adapter, tmp_path / "out", "gguf", "hf", "onnx")
    for path in paths:
        with open_runtime(path, threads=2) as model:
            assert size + 2 not in named_by(path, model)
            prompt = model.encode(model.chat.render(TALK[:1]))
            (reply,) = model.replies([prompt], Limits(max_tokens=24))
            assert (reply.text, reply.stopped) == (ANSWER, True)


@pytest.mark.parametrize("format", ["gguf", "hf", "onnx"])
def test_an_artifact_whose_files_lack_the_stop_is_not_written(
    llama: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    base, adapter = llama
    base = shaped(base, tmp_path / "base", "another token")
    size = size_of(base)
    monkeypatch.setattr("edgeft.converters.onnx.convert.stop_ids", lambda *_: (size,))
    monkeypatch.setattr("edgeft.converters.folder.stop_ids", lambda *_: (size,))
    monkeypatch.setattr("gguf.GGUFWriter.add_eot_token_id", lambda *_: None)
    with pytest.raises(ProofError, match=r"does not stop at <\|eoa\|>"):
        exported(base, adapter, tmp_path / "out", format)
    assert not list((tmp_path / "out").glob("*"))
    monkeypatch.setattr("edgeft.export.verify.check_named", lambda *_: None)
    with pytest.raises(ProofError, match=r"writes <\|eoa\|> where an answer ends"):
        exported(base, adapter, tmp_path / "out", format, validation_data=chats(tmp_path))


def chats(folder: Path) -> Path:
    path = folder / "chats.jsonl"
    row = {"messages": [{"role": m.role, "content": m.content} for m in TALK]}
    path.write_text((json.dumps(row) + "\n") * 4)
    return path


def test_a_template_that_ends_with_text_is_named(
    llama: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, adapter = llama
    base = shaped(base, tmp_path / "base", "the eos ends a turn")
    turn = "{{ '### ' + m.role + ':\\n' + m.content + '\\n\\n' }}"
    source = "{% for m in messages %}" + turn + "{% endfor %}### assistant:\n"
    edit(base / "tokenizer_config.json", chat_template=source)
    exported(base, adapter, tmp_path / "out", "gguf")
    assert "ends an answer with the text '### user:' and no token" in capfd.readouterr().err
    lines = (tmp_path / "out" / "f32.Modelfile").read_text().splitlines()
    assert lines[-2:] == ['PARAMETER stop "<|im_end|>"', 'PARAMETER stop "### user:"']


LEFT = {
    "config.json": {
        "use_cache": False, "pretraining_tp": 2, "auto_map": {"AutoConfig": "code.Config"},
        "pad_token_id": 1000, "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": True, "_name_or_path": "/root/run",
    },
    "generation_config.json": {
        "use_cache": False, "num_return_sequences": 2, "temperature": 0.6, "top_p": 0.9,
    },
    "tokenizer_config.json": {"add_eos_token": True, "padding_side": "right"},
}  # fmt: skip
PREVENT_ENDS: tuple[dict[str, Any], ...] = (
    {"suppress_tokens": ["END"]}, {"min_new_tokens": 23}, {"min_length": 80},
    {"sequence_bias": [[["END"], -100.0]]}, {"stop_strings": ["<|im_end|>"]},
    {"token_healing": True}, {"num_return_sequences": 2},
)  # fmt: skip
"""settings of generation_config.json with which transformers' generate runs on, or fails"""


def test_settings_of_training_do_not_reach_generation(
    llama: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, adapter = llama
    base = Path(shutil.copytree(plain, tmp_path / "base"))
    for name, settings in LEFT.items():
        edit(base / name, **settings)
    for path in exported(base, adapter, tmp_path / "out", "gguf", "hf", "onnx"):
        check_stops(path, size_of(base) + 2)
        manifest = read_json(store.manifest_path(path))
        assert manifest["facts"]["parity"]["live"]["prompts"], "the live model was loaded, too"
    (clean,) = exported(plain, adapter, tmp_path / "clean", "gguf")
    header, other = (gguf_reader.read(path).meta for path in (tmp_path / "out/f32.gguf", clean))
    different = {key for key in header.keys() | other.keys() if header.get(key) != other.get(key)}
    assert different <= {"general.name"}


def test_transformers_generate_ends_whatever_prevented_it(
    llama: tuple[Path, Path], tmp_path: Path
) -> None:
    """Oracle: with the setting generate fails or runs on, with the artifact's file it ends."""
    plain, adapter = llama
    (path,) = exported(plain, adapter, tmp_path / "out", "hf")
    end = size_of(plain) + 2
    clean = read_json(path / "generation_config.json")
    chat, encode = ChatTemplate.from_folder(path), encoder(path)
    prompt = encode(chat.render(TALK[:1]))
    for settings in PREVENT_ENDS:
        left = json.loads(json.dumps(settings).replace('"END"', str(end)))
        (path / "generation_config.json").write_text(json.dumps(clean | left))
        with pytest.raises((AssertionError, ValueError)):
            check_transformers(path, prompt, encode(ANSWER), end)
        stops = stop_ids(chat, path)
        training_settings.undo(path, end + 1, stops, chat.stops, str(tmp_path))
        check_transformers(path, prompt, encode(ANSWER), end)
