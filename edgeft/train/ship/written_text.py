"""A base -> plain text that it writes itself, where no file is at hand (`--ship-text auto`).

    write_text(base, Path("shipped.file/text.txt"), seed=0)

Each piece begins with a word that is drawn from the vocabulary, and goes on by sampling at temperature 1. So the
pieces have words of all that the base knows. LLM-QAT makes its data in a like way (arXiv 2305.17888).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeft import machine, store
from edgeft.errors import InputError
from edgeft.progress import Progress
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import id_to_token, load_tokenizer
from edgeft.tokenizer.stops import SPACES, stop_ids
from edgeft.train.memory.base_model import read_base
from edgeft.train.ship.text_windows import bos_ids

PIECES, PIECE_TOKENS = 64, 384
"""some 100,000 characters of English: 70 pieces of a training"""
BATCH_SIZE = 16
"""pieces that are written together"""


def write_text(
    base: Path,
    path: Path,
    seed: int = 0,
    overwrite: bool = False,
    threads: int | None = None,
    pieces: int = PIECES,
) -> None:
    """Write `path`, a .txt file, with a manifest beside it; a complete one stays.

    `seed`: of the words and the samples. `threads`: default torch's. InputError for a vocabulary without words.
    """
    request: dict[str, Any] = {
        "kind": "text",
        "options": {"base": str(base), "seed": seed, "pieces": pieces, "tokens": PIECE_TOKENS},
        "parents": {"base": store.identity(base)},
    }
    if store.find_complete(path, **request):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.writing(path, overwrite=overwrite, **request) as work:
        text = "\n\n".join(_write(base, seed, threads, pieces))
        work.path.write_text(text, encoding="utf-8")


def _write(base: Path, seed: int, threads: int | None, pieces: int) -> Iterator[str]:
    import torch

    from edgeft.train.methods.base_model import stored_base

    if threads:
        torch.set_num_threads(threads)
    tokenizer = load_tokenizer(base)
    words = random.Random(seed).choices(word_ids(base), k=pieces)
    before = _first_ids(base)
    memory = 4 * read_base(base).weights
    machine.preflight(base, "writing the text of --ship-text", memory=memory)
    machine.hold_memory()
    model = stored_base(base, torch.float32, "cpu").eval()
    # Tokens of chats end a text, and rows beyond the vocabulary have no text.
    ends = stop_ids(ChatTemplate.from_folder(base), base)
    added = {token for token, text in id_to_token(base).items() if text.strip(SPACES)}
    rows = model.get_output_embeddings().weight.shape[0]
    never = {*added, *ends, *range(tokenizer.get_vocab_size(), rows)}
    with Progress("writing text", pieces) as bar:
        for start in range(0, pieces, BATCH_SIZE):
            batch = [[*before, word] for word in words[start : start + BATCH_SIZE]]
            written = _sample(model, batch, sorted(never), seed + start)
            yield from (tokenizer.decode(ids).strip() for ids in written)
            bar.update(len(written), sum(map(len, written)))


def _first_ids(base: Path) -> list[int]:
    """The token that the tokenizer puts before a text, or that the chat template does."""
    ends = stop_ids(ChatTemplate.from_folder(base), base)
    added = load_tokenizer(base).encode("").ids[:1]
    return added if added and added[0] not in ends else bos_ids(base)


def word_ids(folder: Path) -> list[int]:
    """The tokens that are letters alone, two of them at least in an alphabet such as Latin."""
    tokenizer, added = load_tokenizer(folder), id_to_token(folder)
    texts = {
        token: tokenizer.decode([token]).strip()
        for token in range(tokenizer.get_vocab_size(with_added_tokens=False))
        if token not in added
    }
    words = [
        token
        for token, text in texts.items()
        if text.isalpha() and (len(text) > 1 or not text.isascii())
    ]
    if not words:
        raise InputError(
            f"{folder}: the vocabulary has no words to begin a text", "--ship-text FILE"
        )
    return words


def _sample(
    model: Any, prompts: Sequence[Sequence[int]], never: Sequence[int], seed: int
) -> list[list[int]]:
    """Each prompt, of equal lengths, with `PIECE_TOKENS` sampled tokens behind it."""
    import torch
    import transformers

    # The base's own would change the sampling.
    model.generation_config = transformers.GenerationConfig()
    ids = torch.tensor(prompts)
    settings = transformers.GenerationConfig(
        max_new_tokens=PIECE_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        suppress_tokens=list(never), pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        rows: list[list[int]] = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings
        ).tolist()
    bos = len(prompts[0]) - 1
    return [row[bos:] for row in rows]
