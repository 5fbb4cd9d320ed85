"""What training tools leave in a model's files: harmful settings are undone, others stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.files import read_json
from edgeft.tokenizer import training_settings
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.stops import stop_ids
from helpers.tiny import make_tokenizer


def undo(folder: Path, vocabulary: int, name: str) -> None:
    chat = ChatTemplate.from_folder(folder)
    training_settings.undo(folder, vocabulary, stop_ids(chat, folder), chat.stops, name)


pytestmark = pytest.mark.unit

EOS = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BOS = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}


def template(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(parts), "pair": [*parts, TEXT]}


@pytest.mark.parametrize(
    ("file", "key", "left", "right"),
    [
        ("config.json", "use_cache", False, True),
        ("generation_config.json", "use_cache", False, True),
        ("config.json", "output_router_logits", True, False),
        ("config.json", "pretraining_tp", 4, 1),
        ("config.json", "pad_token_id", 1000, None),
        ("config.json", "auto_map", {"AutoConfig": "code.Config"}, None),
        ("generation_config.json", "suppress_tokens", [3, "END"], [3]),
        ("generation_config.json", "begin_suppress_tokens", ["END"], None),
        ("generation_config.json", "sequence_bias", [[["END"], -9.0], [[3, 4], -1.0]],
         [[[3, 4], -1.0]]),
        ("generation_config.json", "penalty_alpha", 0.6, None),
        ("generation_config.json", "dola_layers", "low", None),
        ("generation_config.json", "token_healing", True, None),
        ("config.json", "attn_implementation", "flash_attention_2", None),
        ("config.json", "_attn_implementation", "flash_attention_2", None),
        ("generation_config.json", "min_new_tokens", 16, None),
        ("generation_config.json", "min_length", 16, None),
        ("generation_config.json", "num_return_sequences", 4, None),
        ("generation_config.json", "stop_strings", ["<|im_end|>", "User:"], ["User:"]),
        ("generation_config.json", "stop_strings", "<|im_end|>", None),
        ("tokenizer_config.json", "add_eos_token", True, False),
        ("tokenizer.json", "post_processor", template(BOS, TEXT, EOS), template(BOS, TEXT)),
        ("tokenizer.json", "post_processor",
         {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template(TEXT, EOS)]},
         {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template(TEXT)]}),
    ],
)  # fmt: skip
def test_a_harmful_setting_is_undone_with_a_note(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    key: str,
    left: Any,
    right: Any,
) -> None:
    size, end = make_tokenizer(tmp_path / "model")
    left = json.loads(json.dumps(left).replace('"END"', str(end)))
    path = tmp_path / "model" / file
    before = read_json(path) | {"other": 1, key: left}
    path.write_text(json.dumps(before))
    undo(tmp_path / "model", size, str(tmp_path))
    after = read_json(path)
    assert after.get(key) == right and after["other"] == 1
    assert {**after, key: left} == before
    note = f"{key} of {file} is undone in the artifact: "
    assert capsys.readouterr().err.count(note) == 1
    undo(tmp_path / "model", size, str(tmp_path))
    assert read_json(path) == after and not capsys.readouterr().err


def test_files_without_harmful_settings_keep_their_bytes(tmp_path: Path) -> None:
    size, end = make_tokenizer(tmp_path / "model")
    folder = tmp_path / "model"
    for file, settings in {
        "config.json": {"use_cache": True, "pretraining_tp": 1, "pad_token_id": end},
        "generation_config.json": {
            "do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096,
            "suppress_tokens": [3], "bad_words_ids": [[end]], "min_length": 0,
            "sequence_bias": [[[end], 1.0]], "forced_bos_token_id": 3,
            "stop_strings": ["User:"], "repetition_penalty": 1.1, "forced_eos_token_id": end,
        },
        "tokenizer_config.json": {"add_eos_token": False, "padding_side": "right"},
        "tokenizer.json": {
            "truncation": None, "padding": None, "post_processor": template(BOS, TEXT),
        },
    }.items():  # fmt: skip
        (folder / file).write_text(json.dumps(read_json(folder / file) | settings))
    before = {file: file.read_bytes() for file in folder.iterdir()}
    undo(folder, size, "base")
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_bos_that_is_the_eos_stays_before_a_text(tmp_path: Path) -> None:
    size, _ = make_tokenizer(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(json.dumps(read_json(path) | {"post_processor": template(EOS, TEXT)}))
    before = path.read_bytes()
    undo(tmp_path / "model", size, "base")
    assert path.read_bytes() == before


def test_no_setting_is_both_harmful_and_harmless() -> None:
    harmless = {key for keys in training_settings.HARMLESS for key in keys.split(", ")}
    assert not harmless & {rule.key for rule in training_settings.HARMFUL}
    assert all(rule.reason for rule in training_settings.HARMFUL)
