"""Vocabularies of every type: written, read by llama.cpp, compared with the tokenizers package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft import models
from edgeft.base import gguf_import
from edgeft.benchmarks.fidelity.parity import TORTURE, check_tokens
from edgeft.errors import FormatError, InputError, ProofError
from edgeft.files import read_json
from edgeft.models import pretokenizers
from edgeft.tokenizer.hf_files import encoder
from edgeft.tokenizer.sentencepiece import added_token, folder_tokenizer_json
from edgeft.weights import gguf_reader
from helpers.vocabs import (
    LlamaCpp,
    random_texts,
    train_sentencepiece,
    trained,
    write_folder,
    write_gguf,
)

TEXTS = [*TORTURE, *random_texts(150)]
CORPUS = [line for text in TORTURE for line in text.splitlines()] * 9

DIFFERENT = {
    "tekken": "ते",  # \p{M} is no part of a word for llama.cpp
    "gpt-4o": "ते",
    "tiny_aya": "camelCase",  # all letters have the same case
    "falcon": "½",  # digits are looked for before the byte level
    "deepseek-llm": "67",  # digits stay together, which its real vocabulary does not notice
    "deepseek-coder": "\u2028ls",  # exotic white space is not in the range that holds it
}
"""where llama.cpp 0.3.36's regular expressions are not the tokenizer's, and a text that tells"""
EXACT = [name for name in pretokenizers() if name not in DIFFERENT]


@pytest.fixture(scope="module")
def greedy() -> dict[str, Any]:
    """A BPE that would merge across every cut, so that a wrong cut changes the ids."""
    return trained([*TORTURE * 3, *random_texts(300, seed=1), "ते camelCase 67½  \u3000" * 9], 3000)


def byte_level(folder: Path, model: dict[str, Any], pre: str, **more: Any) -> Path:
    row = pretokenizers()[pre]
    tokenizer = {
        "added_tokens": [added_token(len(model["vocab"]), "<|end|>", special=True)],
        "pre_tokenizer": models.pretokenizer_json(row),
        "model": {**model, "ignore_merges": row.ignore_merges},
    }
    return write_folder(folder, {**tokenizer, **more}, eos_token="<|end|>")


@pytest.mark.parametrize("name", EXACT)
def test_llama_cpp_tokenizes_like_the_named_pretokenizer(
    tmp_path: Path, greedy: dict[str, Any], name: str
) -> None:
    folder = byte_level(tmp_path / "a", greedy, name)
    expected = encoder(folder)
    file = write_gguf(folder, tmp_path / "x.gguf")
    with LlamaCpp(file) as model:
        assert not [text for text in TEXTS if model.encode(text) != expected(text)]
        assert check_tokens(model, folder)["stops"] == ["<|end|>"]  # type: ignore[arg-type]
    back = tmp_path / "back"
    back.mkdir()
    gguf_import.write_tokenizer(gguf_reader.read(file), back, {"max_position_embeddings": 64})
    again = encoder(back)
    assert not [text for text in TEXTS if again(text) != expected(text)]
    assert read_json(back / "tokenizer_config.json")["eos_token"] == "<|end|>"


@pytest.mark.parametrize("name", DIFFERENT)
def test_parity_shows_a_text_that_llama_cpp_tokenizes_differently(
    tmp_path: Path, greedy: dict[str, Any], name: str
) -> None:
    folder = byte_level(tmp_path / "a", greedy, name)
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
        text = DIFFERENT[name]
        assert model.encode(text) != encoder(folder)(text)
        with pytest.raises(ProofError, match=r"the artifact cuts '.{1,12}' into \[") as caught:
            check_tokens(model, folder)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_every_alias_tokenizes_alike(tmp_path: Path, greedy: dict[str, Any]) -> None:
    for name in ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "deepseek-v3", "gpt-4o"):
        folder = byte_level(tmp_path / name, greedy, name)
        with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
            expected = [model.encode(text) for text in TORTURE]
        for alias in pretokenizers()[name].aliases:
            with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf", pre=alias)) as model:
                assert [model.encode(text) for text in TORTURE] == expected, alias
            assert models.pretokenizer_named(alias) == pretokenizers()[name]


def test_other_spellings_of_a_pretokenizer_are_recognised(
    tmp_path: Path, greedy: dict[str, Any]
) -> None:
    parts = models.pretokenizer_json(pretokenizers()["qwen2"])["pretokenizers"]
    regex = parts[0]["pattern"]["Regex"]
    for split in (
        {"pattern": {"Regex": regex.replace(r"\r", "\r").replace(r"\n", "\n")}},
        {"behavior": "Removed", "invert": True},
    ):
        cuts = {"type": "Sequence", "pretokenizers": [{**parts[0], **split}, parts[1]]}
        nested = {"type": "Sequence", "pretokenizers": [cuts]}
        folder = byte_level(tmp_path / "a", greedy, "qwen2", pre_tokenizer=nested)
        with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
            check_tokens(model, folder)  # type: ignore[arg-type]


def test_texts_are_compared_in_nfc(tmp_path: Path, greedy: dict[str, Any]) -> None:
    folder = byte_level(tmp_path / "a", greedy, "qwen2", normalizer={"type": "NFC"})
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
        assert check_tokens(model, folder)["only_for"] == ["texts in NFC"]  # type: ignore[arg-type]
        assert model.encode("e\u0301") != encoder(folder)("e\u0301") == model.encode("é")


def test_ignore_merges_matters_only_where_a_token_is_out_of_reach(
    tmp_path: Path, greedy: dict[str, Any]
) -> None:
    folder = byte_level(tmp_path / "a", {**greedy}, "qwen2")
    tokenizer = read_json(folder / "tokenizer.json")
    tokenizer["model"]["ignore_merges"] = True
    write_folder(folder, tokenizer, eos_token="<|end|>")
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
        check_tokens(model, folder)  # type: ignore[arg-type]
    tokenizer["model"]["vocab"]["zqzq"] = len(greedy["vocab"]) + 1
    write_folder(folder, tokenizer, eos_token="<|end|>")
    with pytest.raises(FormatError, match="qwen2 with ignore_merges True"):
        write_gguf(folder, tmp_path / "x.gguf")
    tokenizer["pre_tokenizer"] = models.pretokenizer_json(pretokenizers()["llama-bpe"])
    write_folder(folder, tokenizer, eos_token="<|end|>")
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
        assert model.encode("zqzq") == [len(greedy["vocab"]) + 1]


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
METASPACE = {
    "type": "Metaspace",
    "replacement": "\u2581",
    "prepend_scheme": "first",
    "split": False,
}
STYLES: dict[str, dict[str, Any]] = {
    "llama": {"normalizer": {"type": "Sequence", "normalizers": [PREPEND, SPACES]}},
    "mistral": {"normalizer": None, "pre_tokenizer": METASPACE},
    "gemma": {
        "normalizer": SPACES,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "},
                          "behavior": "MergedWithPrevious", "invert": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a SentencePiece model like Llama 2's."""
    folder = tmp_path_factory.mktemp("spm")
    train_sentencepiece(
        folder / "tokenizer.model", CORPUS, 1500, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
    )  # fmt: skip
    yield folder


def sentencepiece_style(folder: Path, spm: Path, style: str) -> Path:
    tokenizer = folder_tokenizer_json(spm)
    size = len(tokenizer["model"]["vocab"])
    added = [*tokenizer["added_tokens"], added_token(size, "<turn>", special=True)]
    added.append(added_token(size + 1, "<tool>", special=False))
    if style == "gemma":
        run = "\u2581\u2581"
        added.append(added_token(tokenizer["model"]["vocab"][run], run, special=False))
    tokenizer = {**tokenizer, "added_tokens": added, **STYLES[style]}
    return write_folder(
        folder, tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        chat_template="{{ bos_token }}{{ messages[0].content }}",
    )  # fmt: skip


@pytest.mark.parametrize("scores", ["merges", "tokenizer.model"])
@pytest.mark.parametrize("style", STYLES)
def test_sentencepiece_bpe_has_the_same_ids(
    tmp_path: Path, spm: Path, style: str, scores: str
) -> None:
    folder = sentencepiece_style(tmp_path / "a", spm, style)
    if scores == "tokenizer.model":
        (folder / "tokenizer.model").write_bytes((spm / "tokenizer.model").read_bytes())
    expected = encoder(folder)
    start = "<s>" if style == "mistral" else ""
    texts = [start + (t.replace("\u2581", "_") if style == "gemma" else t) for t in TEXTS]
    texts += [start + text for text in ("a<turn>b <tool> c", "<turn>", "<tool><turn> x")]
    file = write_gguf(folder, tmp_path / "x.gguf")
    with LlamaCpp(file) as model:
        assert not [text for text in texts if model.encode(text) != expected(text)]
        check_tokens(model, folder)  # type: ignore[arg-type]
    back = tmp_path / "back"
    back.mkdir()
    gguf_import.write_tokenizer(gguf_reader.read(file), back, {"max_position_embeddings": 64})
    again = encoder(back)
    assert not [text for text in texts if again(text) != expected(text)]


def test_a_space_before_the_first_word_only_needs_a_chat_that_begins_with_bos(
    tmp_path: Path, spm: Path
) -> None:
    folder = sentencepiece_style(tmp_path / "a", spm, "mistral")
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
        facts = check_tokens(model, folder)  # type: ignore[arg-type]
        assert facts["only_for"] == ["texts after <s>"]
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with (
        LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model,
        pytest.raises(ProofError, match="cuts the prompt 'What is the capital"),
    ):
        check_tokens(model, folder)  # type: ignore[arg-type]


def test_only_phi3s_tokens_may_strip_spaces(tmp_path: Path, spm: Path) -> None:
    folder = sentencepiece_style(tmp_path / "a", spm, "llama")
    tokenizer = read_json(folder / "tokenizer.json")
    size = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append(added_token(size + 2, "<|endoftext|>", special=True))
    for token in tokenizer["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    write_folder(folder, tokenizer, bos_token="<s>", eos_token="</s>")
    for name in ("mine", "Phi-3-mini"):
        file = write_gguf(folder, tmp_path / "x.gguf", name=name)
        with LlamaCpp(file) as model:
            assert (
                model.encode("<turn>  a") == encoder(folder)("<turn>  a") == model.encode("<turn>a")
            )
            check_tokens(model, folder)  # type: ignore[arg-type]
    back = tmp_path / "back"
    back.mkdir()
    gguf_import.write_tokenizer(gguf_reader.read(file), back, {"max_position_embeddings": 64})
    assert encoder(back)("<turn>  a") == encoder(folder)("<turn>  a")
    # A name that says phi-3 does not make other tokenizers swallow spaces.
    folder = sentencepiece_style(tmp_path / "b", spm, "llama")
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf", name="not-phi3")) as model:
        check_tokens(model, folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                            "use_regex": True}}, "unknown pre-tokenizer step .*ByteLevel"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated",
                            "invert": False}}, "no known pre-tokenizer cuts by split:x"),
        ({"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]",
                    "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}},
         "a WordPiece vocabulary"),
        ({"merges": []}, "byte-level BPE without merges"),
        ({"single_word": True}, "token '<|end|>' depends on the text before it"),
        ({"lstrip": True}, "token '<|end|>' depends on the text before it"),
        ({"rstrip": True}, "token '<|end|>' swallows the white space after it"),
        ({"content": "a"}, "two ids for 'a'"),
    ],
)  # fmt: skip
def test_an_unsupported_tokenizer_is_refused_with_its_reason(
    tmp_path: Path, greedy: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    folder = byte_level(tmp_path / "model", greedy, "gpt-2")
    tokenizer = read_json(folder / "tokenizer.json")
    token = tokenizer["added_tokens"][0]
    parts = (token, tokenizer["model"], tokenizer)
    next(part for part in parts if change.keys() & part.keys() or part is tokenizer).update(change)
    write_folder(folder, tokenizer, eos_token="<|end|>")
    with pytest.raises(FormatError, match=says.replace("|", r"\|")) as caught:
        write_gguf(folder, tmp_path / "x.gguf")
    assert "no place for the tokenizer of model" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.gguf").exists()


def test_a_prefix_that_depends_on_the_text_is_refused(tmp_path: Path, spm: Path) -> None:
    folder = sentencepiece_style(tmp_path / "a", spm, "mistral")
    tokenizer = read_json(folder / "tokenizer.json")
    for change in ({"prepend_scheme": "always"}, {"split": True}):
        tokenizer["pre_tokenizer"] = METASPACE | change
        write_folder(folder, tokenizer, eos_token="</s>")
        with pytest.raises(FormatError, match="SentencePiece with .*Metaspace"):
            write_gguf(folder, tmp_path / "x.gguf")


def test_rows_without_a_token_are_padded_and_extra_tokens_refused(
    tmp_path: Path, greedy: dict[str, Any]
) -> None:
    folder = byte_level(tmp_path / "a", greedy, "gpt-2")
    size = len(greedy["vocab"]) + 1
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf", size + 7)) as model:
        assert model.vocab_size == size + 7
        assert model.text(size + 6) == f"[PAD{size + 6}]"
    tokenizer = read_json(folder / "tokenizer.json")
    tokenizer["added_tokens"].append(added_token(size, "<image>", special=True))
    write_folder(folder, tokenizer, eos_token="<|end|>")
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf", size)) as model:
        assert model.vocab_size == size
        check_tokens(model, folder)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=f"{size - 1} tokens for an embedding of {size - 9} rows"):
        write_gguf(folder, tmp_path / "x.gguf", size - 9)


def special(folder: Path, greedy: dict[str, Any], count: int = 4, **more: Any) -> Path:
    """Added tokens <t0>, <t1>, ... after the vocabulary."""
    size = len(greedy["vocab"])
    added = [added_token(size + i, f"<t{i}>", special=True) for i in range(count)]
    return byte_level(folder, greedy, "gpt-2", added_tokens=added, **more)


def test_stops_fill_three_keys(tmp_path: Path, greedy: dict[str, Any]) -> None:
    import json

    folder = special(tmp_path / "a", greedy, 5)
    size = len(greedy["vocab"])
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<t1>"}}))
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [size + 1, size + 3, size + 4]}))
    file = write_gguf(folder, tmp_path / "x.gguf")
    with LlamaCpp(file) as model:
        assert check_tokens(model, folder)["stops"] == ["<t1>", "<t3>", "<t4>"]  # type: ignore[arg-type]
    back = tmp_path / "back"
    back.mkdir()
    gguf_import.write_tokenizer(gguf_reader.read(file), back, {"max_position_embeddings": 64})
    ends = read_json(back / "generation_config.json")["eos_token_id"]
    assert ends == [size + 1, size + 3, size + 4]
    generation.write_text(json.dumps({"eos_token_id": [size + i for i in range(1, 5)]}))
    with pytest.raises(FormatError, match=r"three tokens, a also at \['<t4>'\]"):
        write_gguf(folder, tmp_path / "x.gguf")
    config.write_text(json.dumps({"eos_token": "<nowhere>"}))
    with pytest.raises(FormatError, match="a: '<nowhere>', which ends a turn, is not a token"):
        write_gguf(folder, tmp_path / "x.gguf")
    config.write_text("{}")
    generation.unlink()
    with pytest.raises(FormatError, match="names no token that ends a turn"):
        write_gguf(folder, tmp_path / "x.gguf")


def test_bos_is_the_token_that_the_post_processor_adds(
    tmp_path: Path, greedy: dict[str, Any]
) -> None:
    import json

    size = len(greedy["vocab"])
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<t0>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<t0>": {"id": "<t0>", "ids": [size], "tokens": ["<t0>"]}},
    }  # fmt: skip
    both = {"type": "Sequence", "processors": [{"type": "ByteLevel", "add_prefix_space": True,
                                                "trim_offsets": False}, template]}  # fmt: skip
    for post, config, adds in (
        (None, {"bos_token": "<t0>"}, False),
        (template, {"bos_token": "<t0>"}, True),
        (both, {}, True),
        (both, {"bos_token": "<t0>", "add_bos_token": False}, False),
        (both, {"bos_token": "<t2>"}, False),
        (None, {"bos_token": "<t0>", "add_bos_token": True}, True),
        (None, {"add_bos_token": True}, False),
    ):
        folder = special(tmp_path / "a", greedy, post_processor=post)
        text = json.dumps({"eos_token": "<t1>", **config})
        (folder / "tokenizer_config.json").write_text(text)
        with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
            assert model.adds_bos() is adds, (post, config)
            if adds:
                assert model.chat.bos_token == "<t0>"


def test_a_broken_tokenizer_is_a_one_line_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"model": {"type": "BPE"}}, eos_token="x")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer: ") as caught:
        write_gguf(folder, tmp_path / "x.gguf", 10)
    assert "\n" not in str(caught.value)
