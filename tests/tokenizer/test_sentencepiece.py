"""The oracle is the sentencepiece package: its trainer makes the models, its processor the ids."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.fidelity.parity import TORTURE, check_tokens
from edgeft.errors import FormatError, InputError
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, load_tokenizer
from edgeft.tokenizer.sentencepiece import CHATGLM_ROLE_TOKENS, CHATGLM_TOKENS, SentencePiece
from helpers.vocabs import LlamaCpp, random_texts, train_sentencepiece, write_gguf

CORPUS = [line for text in TORTURE for line in text.splitlines()] * 9
SIZE = 1500
TEXTS = [*TORTURE, *random_texts(300)]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
              "remove_extra_whitespaces": False, "split_digits": True},
    "gemma": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
              "remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "plain": {"model_type": "bpe", "character_coverage": 0.98},
    "unigram": {"model_type": "unigram", "character_coverage": 0.98},
    "bytes": {"model_type": "unigram", "byte_fallback": True, "add_dummy_prefix": False},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_sentencepieces(tmp_path: Path, kind: str) -> None:
    oracle = train_sentencepiece(tmp_path / "tokenizer.model", CORPUS, SIZE, **KINDS[kind])
    model = SentencePiece.read(tmp_path / "tokenizer.model")
    assert len(model.pieces) == oracle.vocab_size() > 400
    for i, piece in enumerate(model.pieces):
        assert (piece.text, piece.score) == (oracle.id_to_piece(i), oracle.get_score(i))
    encode = encoder(tmp_path)
    # A byte piece written out is text for sentencepiece, and a NUL ends its text.
    texts = [t for t in TEXTS if "<0x" not in t and "\0" not in t]
    if model.charsmap:  # tokenizers' Precompiled looks up whole graphemes, sentencepiece prefixes
        texts = [t for t in texts if not any(map(unicodedata.combining, t))]
    assert len(texts) > 200
    different = [text for text in texts if encode(text) != oracle.encode(text)]
    assert not different
    decode = load_tokenizer(tmp_path).decode
    for text in texts:
        if oracle.unk_id() in oracle.encode(text):
            continue
        assert decode(encode(text)) == oracle.decode(oracle.encode(text))


def test_special_and_user_defined_pieces(tmp_path: Path) -> None:
    oracle = train_sentencepiece(
        tmp_path / "tokenizer.model", CORPUS, SIZE, user_defined_symbols=["<table>", "\u2581\u2581"],
        control_symbols=["<turn>"], **KINDS["gemma"],
    )  # fmt: skip
    encode = encoder(tmp_path)
    for text in ("a<table>b <table>", "<table>", "x  y<table>  z"):
        assert encode(text) == oracle.encode(text)
    turn = oracle.piece_to_id("<turn>")
    assert encode("<turn>a") == [turn, *oracle.encode("a")]
    chat = ChatTemplate.from_folder(tmp_path)
    assert (chat.bos_token, chat.eos_token, chat.unk_token) == ("<s>", "</s>", "<unk>")
    assert chat.stops == ("</s>",)


def chatglm(folder: Path, **config: Any) -> Any:
    oracle = train_sentencepiece(folder / "tokenizer.model", CORPUS, SIZE, **KINDS["llama"])
    config = {"tokenizer_class": "ChatGLMTokenizer", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return oracle


ROLES = "{% for m in messages %}[gMASK]sop<|{{ m.role }}|>\n {{ m.content }}{% endfor %}"


def test_chatglm_has_its_own_tokens_after_the_pieces(tmp_path: Path) -> None:
    oracle = chatglm(tmp_path, chat_template=ROLES + "<|assistant|>")
    size = oracle.vocab_size()
    encode = encoder(tmp_path)
    for i, text in enumerate((*CHATGLM_TOKENS, *CHATGLM_ROLE_TOKENS)):
        assert encode(text) == [size + i]
    # Like its tokenizer, which cuts at the tokens and gives each part to sentencepiece.
    assert encode("[gMASK]sop<|user|>\n hi") == [
        size + 1,
        size + 3,
        size + 6,
        *oracle.encode("\n hi"),
    ]
    assert not [text for text in TEXTS if "\0" not in text and encode(text) != oracle.encode(text)]
    chat = ChatTemplate.from_folder(tmp_path)
    assert chat.stops == ("</s>", "<|user|>", "<|observation|>")

    with LlamaCpp(write_gguf(tmp_path, tmp_path / "x.gguf", size + 40)) as model:
        assert check_tokens(model, tmp_path)["stops"] == list(chat.stops)  # type: ignore[arg-type]
        assert not [text for text in TEXTS if model.encode(text) != encode(text)]
        assert model.vocab_size == size + 40


def test_chatglm2_has_no_roles(tmp_path: Path) -> None:
    oracle = chatglm(tmp_path)
    size = oracle.vocab_size()
    assert encoder(tmp_path)("sop<|user|>") == [size + 3, *oracle.encode("<|user|>")]
    assert ChatTemplate.from_folder(tmp_path).stops == ("</s>",)
    # The code is read, never run: it alone tells the third version's tokens.
    (tmp_path / "tokenization_chatglm.py").write_text('1 / 0  # "<|assistant|>"')
    assert encoder(tmp_path)("<|user|>") == [size + 6]


def test_what_has_no_equivalent_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    train_sentencepiece(file, CORPUS, SIZE, user_defined_symbols=["<table>"], **KINDS["llama"])
    with pytest.raises(FormatError, match="user-defined pieces beside a space prefix"):
        load_tokenizer(tmp_path)
    train_sentencepiece(file, CORPUS, 60, model_type="word")
    with pytest.raises(InputError, match="neither unigram nor BPE"):
        load_tokenizer(tmp_path)
    train_sentencepiece(file, CORPUS, SIZE, treat_whitespace_as_suffix=True, **KINDS["llama"])
    with pytest.raises(InputError, match="spaces after words"):
        load_tokenizer(tmp_path)
    # llama.cpp has no table of characters and keeps all spaces.
    train_sentencepiece(file, CORPUS, SIZE, byte_fallback=True, **KINDS["plain"])
    with pytest.raises(FormatError, match=r"SentencePiece with .*Precompiled"):
        write_gguf(tmp_path, tmp_path / "x.gguf", 2000)
    train_sentencepiece(file, CORPUS, SIZE, **KINDS["unigram"])
    with pytest.raises(FormatError, match="a Unigram vocabulary"):
        write_gguf(tmp_path, tmp_path / "x.gguf", 2000)


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    train_sentencepiece(file, CORPUS, SIZE, **KINDS["llama"])
    whole = file.read_bytes()
    for broken in (
        b"",
        b"{}",
        whole[:5000],
        whole[1:],
        b"\x0a\xff\xff\xff\xff\xff\xff",
        b"\xff" * 99,
    ):
        file.write_bytes(broken)
        with pytest.raises(InputError, match=r"tokenizer\.model is not a SentencePiece model") as e:
            load_tokenizer(tmp_path)
        assert "\n" not in str(e.value)
