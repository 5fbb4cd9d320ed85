"""Tokenizer files of a Hugging Face folder are read as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError
from edgeft.files import read_json
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, eos_ids, load_tokenizer


def folder(path: Path, **files: Any) -> Path:
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


ADDED = [{"id": 1, "content": "</s>"}, {"id": 5, "content": "<|im_end|>"}]


def test_a_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    bos = {"content": "<s>", "lstrip": False, "__type": "AddedToken"}
    config = {"chat_template": "config", "bos_token": bos, "eos_token": "</s>"}
    folder(tmp_path, tokenizer_config=config)
    assert ChatTemplate.from_folder(tmp_path) == ChatTemplate("config", "<s>", "</s>", ("</s>",))
    (tmp_path / "chat_template.jinja").write_text("file ü", encoding="utf-8")
    assert ChatTemplate.from_folder(tmp_path).source == "file ü"


def test_a_list_of_named_templates(tmp_path: Path) -> None:
    entries = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder(tmp_path, tokenizer_config={"chat_template": entries})
    assert ChatTemplate.from_folder(tmp_path).source == "D"
    folder(tmp_path, tokenizer_config={"chat_template": entries[:1]})
    assert ChatTemplate.from_folder(tmp_path).source == "T"


def wordlevel(path: Path, **config: Any) -> Path:
    """A folder that transformers opens, too."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel

    path.mkdir()
    tokenizer: Any = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_special_tokens([AddedToken(f"<{name}>", special=True) for name in "abcd"])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<b>", **config}
    return folder(path, tokenizer_config=config)


NAMED = [{"name": "tool_use", "template": "list tool"}, {"name": "default", "template": "list"}]
PLACES: dict[str, dict[str, Any]] = {
    "config": {"config": "config"},
    "list": {"config": NAMED},
    "file": {"config": "config", "files": {"chat_template.jinja": "file"}},
    "file over list": {"config": NAMED, "files": {"chat_template.jinja": "file"}},
    "more files": {
        "config": "config",
        "files": {"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "rag"},
    },
    "a default among more files": {
        "config": "config",
        "files": {"additional_chat_templates/default.jinja": "D",
                  "additional_chat_templates/a.jinja": "A"},
    },
    "all of them": {
        "config": NAMED,
        "files": {"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "rag",
                  "chat_template.json": '{"chat_template": "json"}'},
    },
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_the_template_that_transformers_takes(tmp_path: Path, place: str) -> None:
    from transformers import AutoTokenizer

    path = wordlevel(tmp_path / "a", chat_template=PLACES[place]["config"])
    for name, text in PLACES[place].get("files", {}).items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    theirs: Any = AutoTokenizer.from_pretrained(path)
    assert ChatTemplate.from_folder(path).source == theirs.get_chat_template()


def test_a_processors_template_is_the_last_resort(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config={}, chat_template={"chat_template": "json"})
    assert ChatTemplate.from_folder(tmp_path).source == "json"


EVERY = (
    "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}"
    "{% for m in messages %}{% generation %} {{ m.content }}\n{% endgeneration %}{% endfor %}"
)


@pytest.mark.parametrize("legacy", [False, True])
def test_special_tokens_and_generation_blocks_as_transformers(tmp_path: Path, legacy: bool) -> None:
    from transformers import AutoTokenizer

    unknown = {"content": "<c>"} if legacy else {"content": "<c>", "__type": "AddedToken"}
    tokens = {"bos_token": "<a>", "unk_token": unknown, "pad_token": "<d>"}
    path = wordlevel(tmp_path / "a", chat_template=EVERY, **({} if legacy else tokens))
    if legacy:  # before transformers 4.34 they were in a file of their own
        folder(path, special_tokens_map={**tokens, "eos_token": "<a>"})
    theirs: Any = AutoTokenizer.from_pretrained(path)
    wanted = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    ours = ChatTemplate.from_folder(path)
    assert ours.render([Message("user", "hi")], generation_prompt=False) == wanted
    assert wanted == ("<a>|<a>|<c>|<d> hi\n" if legacy else "<a>|<b>|<c>|<d> hi\n")


def test_add_bos_token_is_no_special_token(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config={"add_bos_token": True, "add_eos_token": True})
    chat = ChatTemplate.from_folder(tmp_path)
    assert (chat.bos_token, chat.eos_token, chat.stops) == ("", "", ())


def test_broken_templates_and_tokenizers_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(InputError, match=r"chat_template\.jinja is not UTF-8: "):
        ChatTemplate.from_folder(tmp_path)
    for text in ("{", '{"model": {"type": "BPE"}}', '{"version": "9.9"}', "[]"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer: ") as caught:
            encoder(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer: "):
        encoder(tmp_path)


def test_stops_are_the_eos_and_the_generation_configs_list(tmp_path: Path) -> None:
    folder(
        tmp_path,
        tokenizer_config={"eos_token": "</s>"},
        tokenizer={"added_tokens": ADDED},
        config={"eos_token_id": 1},
    )
    assert eos_ids(tmp_path) == (1,)
    assert ChatTemplate.from_folder(tmp_path).stops == ("</s>",)
    folder(tmp_path, generation_config={"eos_token_id": [5, 1, 77]})
    assert eos_ids(tmp_path) == (5, 1, 77)
    assert ChatTemplate.from_folder(tmp_path).stops == ("</s>", "<|im_end|>")
    folder(tmp_path, generation_config={"eos_token_id": None})
    assert eos_ids(tmp_path) == (1,)
    assert eos_ids(tmp_path / "none") == ()


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not UTF-8"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.from_folder(tmp_path)
    folder(tmp_path, tokenizer_config=[1])
    with pytest.raises(InputError, match="does not hold a JSON object"):
        read_json(tmp_path / "tokenizer_config.json")
    assert read_json(tmp_path / "absent.json") == {}
    with pytest.raises(InputError, match=r"no tokenizer\.json in") as caught:
        load_tokenizer(tmp_path)
    assert "fast tokenizer" in caught.value.hint


def test_the_encoder_knows_special_tokens_and_adds_none(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = Tokenizer(WordLevel({"?": 0, "<s>": 1, "hi": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("hi").ids == [1, 2]
    assert encoder(tmp_path)("<s>hi hi") == [1, 2, 2]
