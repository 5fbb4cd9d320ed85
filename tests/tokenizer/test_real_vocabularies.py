"""Vocabularies of real models (`make vocabularies`): imported, exported, every id compared."""

from __future__ import annotations

import base64
import json
import shutil
import unicodedata
from pathlib import Path

import pytest

from edgeft import models
from edgeft.base import gguf_import
from edgeft.benchmarks.fidelity.parity import TORTURE, check_tokens
from edgeft.errors import FormatError, ProofError
from edgeft.tokenizer.hf_files import encoder
from edgeft.tokenizer.sentencepiece import SentencePiece, added_token
from edgeft.weights import gguf_reader
from helpers.paths import ROOT
from helpers.tiny import byte_letters
from helpers.vocabs import LlamaCpp, random_texts, write_folder, write_gguf

pytestmark = pytest.mark.slow
DATA = ROOT / "build" / "vocabularies"
TEXTS = [*TORTURE, *random_texts(2000)]

# llama.cpp's models/ggml-vocab-*.gguf; the last three come without test vectors.
GGUFS = (
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe",
    "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
    "aquila", "baichuan", "gpt-neox",
)  # fmt: skip
HUGGING_FACE = ("llama2", "llama3", "llama3_1", "qwen3", "gemma3", "deepseek_v3")


def data(name: str) -> Path:
    found = DATA / name
    if not found.exists():
        pytest.skip(
            f"no {found.relative_to(DATA.parent.parent)}: run make vocabularies (npm helps)"
        )
    return found


def exotic(text: str) -> bool:
    """White space outside ASCII, which some of llama.cpp's regular expressions do not see."""
    return any(ord(c) > 127 and c.isspace() for c in text)


@pytest.mark.parametrize("name", GGUFS)
def test_a_gguf_comes_in_and_goes_out(tmp_path: Path, name: str) -> None:
    file = data("gguf") / f"ggml-vocab-{name}.gguf"
    folder = tmp_path / "model"
    folder.mkdir()
    gguf_import.write_tokenizer(gguf_reader.read(file), folder, {"max_position_embeddings": 64})
    encode = encoder(folder)
    vectors = Path(f"{file}.out")
    if vectors.exists():
        texts = Path(f"{file}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
        lines = vectors.read_text().split("\n")
        assert len(texts) > 40
        assert not [
            text for text, line in zip(texts, lines, strict=False)
            if encode(text) != [int(number) for number in line.split()]
        ]  # fmt: skip
    exported = write_gguf(folder, tmp_path / "x.gguf", name=name)
    with LlamaCpp(file) as original, LlamaCpp(exported) as model:
        assert not [text for text in TEXTS if model.encode(text) != original.encode(text)]
        texts = [t for t in TEXTS if not (name == "deepseek-llm" and exotic(t))]
        assert not [text for text in texts if encode(text) != original.encode(text)]
        check_tokens(model, folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bert-bge", "nomic-bert-moe"])
def test_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    file = data("gguf") / f"ggml-vocab-{name}.gguf"
    with pytest.raises(FormatError, match="GGUF import does not read"):
        gguf_import.write_tokenizer(
            gguf_reader.read(file), tmp_path, {"max_position_embeddings": 64}
        )


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_hugging_face_tokenizer_goes_out(tmp_path: Path, name: str) -> None:
    folder = data(name)
    # Gemma 3's text models have no row for the image token.
    size = 262_144 if name == "gemma3" else None
    encode = encoder(folder)
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf", size)) as model:
        check_tokens(model, folder)  # type: ignore[arg-type]
        texts = [unicodedata.normalize("NFC", text) for text in random_texts(4000, seed=3)]
        assert not [text for text in texts if model.encode(text) != encode(text)]


@pytest.mark.parametrize(
    "name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240216.model.v2"]
)
def test_mistrals_sentencepiece_models(tmp_path: Path, name: str) -> None:
    import sentencepiece

    shutil.copyfile(data("mistral/mistral_common/data") / name, tmp_path / "tokenizer.model")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    model = SentencePiece.read(tmp_path / "tokenizer.model")
    for i, piece in enumerate(model.pieces):
        assert (piece.text, piece.score) == (oracle.id_to_piece(i), oracle.get_score(i))
    encode = encoder(tmp_path)
    texts = [text for text in TEXTS if "<unk>" not in text and "\0" not in text]
    assert not [text for text in texts if encode(text) != oracle.encode(text)]
    with LlamaCpp(write_gguf(tmp_path, tmp_path / "x.gguf")) as written:
        assert not [text for text in texts if written.encode(text) != oracle.encode(text)]
        check_tokens(written, tmp_path)  # type: ignore[arg-type]


def test_tekken_is_refused_with_the_text(tmp_path: Path) -> None:
    """Its \\p{M} belongs to a word, llama.cpp's does not: diacritics are cut off their letters."""
    raw = json.loads((data("mistral/mistral_common/data") / "tekken_240911.json").read_text())
    special = raw["config"]["default_num_special_tokens"]
    letters = byte_letters()
    pieces = [
        base64.b64decode(row["token_bytes"])
        for row in raw["vocab"][: raw["config"]["default_vocab_size"] - special]
    ]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    written = ["".join(letters[byte] for byte in piece) for piece in pieces]
    merges = []
    for piece in pieces:
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        cuts = sorted((cut for cut in cuts if set(cut) <= ranks.keys()), key=lambda c: ranks[c[0]])
        merges += [[written[ranks[part]] for part in cut] for cut in cuts]
    names = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{i}>" for i in range(3, special))]
    tokenizer = {
        "added_tokens": [added_token(i, text, special=True) for i, text in enumerate(names)],
        "pre_tokenizer": models.pretokenizer_json(models.pretokenizers()["tekken"]),
        "model": {"type": "BPE", "merges": merges, "ignore_merges": True,
                  "vocab": {text: i for i, text in enumerate([*names, *written])}},
    }  # fmt: skip
    folder = write_folder(tmp_path / "a", tokenizer, bos_token="<s>", eos_token="</s>")
    encode = encoder(folder)
    with LlamaCpp(write_gguf(folder, tmp_path / "x.gguf")) as model:
        latin = [text for text in random_texts(1000) if all(ord(c) < 0x250 for c in text)]
        assert not [text for text in latin if model.encode(text) != encode(text)]
        with pytest.raises(ProofError, match="the artifact cuts"):
            check_tokens(model, folder)  # type: ignore[arg-type]
