"""`--add-tokens`: a base and new tokens -> its tokenizer with them, and rows of the embedding that train.

    folder = tokenizer_folder(options)          # options.base itself where no tokens are added
    ids = add_rows(model, options)              # of transformers; the rows that the method trains

A new row begins as the mean of the rows of the pieces that the base's tokenizer makes of the token.
The adapter holds the tokenizer and the rows, and the whole embedding where it had to grow.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from edgeft.adapter.tokenizer import tokenizer_files
from edgeft.errors import InputError
from edgeft.tokenizer.hf_files import load_tokenizer
from edgeft.train.options import TrainOptions

SETTINGS = ("config.json", "generation_config.json")
"""files of a base that name the tokens at which an answer ends"""


def read_tokens(words: tuple[str, ...]) -> tuple[str, ...]:
    """The tokens of `--add-tokens`: one path of a file with a token on each line, or the tokens."""
    if len(words) != 1 or not Path(words[0]).is_file():
        return words
    try:
        lines = Path(words[0]).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{words[0]} is not UTF-8: {error}", "one token on each line") from None
    return tuple(line for line in lines if line.strip())


def tokenizer_folder(options: TrainOptions) -> Path:
    """A folder with the base's tokenizer and the new tokens, removed when the process ends.

    InputError for a token that the tokenizer already has, or that is named twice.
    """
    if not options.add_tokens:
        return options.base
    return _folder(options.base, options.add_tokens)


@functools.lru_cache(maxsize=4)
def _folder(base: Path, tokens: tuple[str, ...]) -> Path:
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(base)
    for token in tokens:
        if tokenizer.token_to_id(token) is not None or not token.strip():
            raise InputError(f"--add-tokens: the tokenizer has {token!r} already", "leave it out")
    if len(set(tokens)) < len(tokens):
        raise InputError("--add-tokens names a token twice", "name each once")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    folder = Path(tempfile.mkdtemp(prefix="edgeft-tokens-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names = [name for name in (*tokenizer_files(base), *SETTINGS) if (base / name).is_file()]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(base / name, folder / name)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def save_tokenizer(options: TrainOptions, output: Path) -> None:
    """Write the tokenizer with the new tokens beside the trained weights."""
    folder = tokenizer_folder(options)
    for name in tokenizer_files(folder):
        if name != "generation_config.json":  # the base's own
            (output / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, output / name)


def add_rows(model: Any, options: TrainOptions) -> list[int]:
    """Ids of the new tokens; the model's embedding grows where it has no rows for them."""
    import torch

    if not options.add_tokens:
        return []
    tokenizer, plain = load_tokenizer(tokenizer_folder(options)), load_tokenizer(options.base)
    ids = [tokenizer.token_to_id(token) for token in options.add_tokens]
    if max(ids) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for token, row in zip(options.add_tokens, ids, strict=True):
                pieces = plain.encode(token, add_special_tokens=False).ids
                layer.weight[row] = layer.weight[pieces].mean(0)
    return ids


def trained_rows(model: Any, ids: list[int]) -> dict[str, list[int]] | None:
    """peft's `trainable_token_indices`: the rows of the embedding, and of an output layer of its own."""
    if not ids:
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embedding] if head.weight is embedding.weight else [embedding, head]
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return {names[id(layer)]: ids for layer in layers}
