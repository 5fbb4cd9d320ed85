"""The file of --ship-text -> pieces of it as token ids, one for each step."""

from __future__ import annotations

from pathlib import Path

from edgeft.data.reading import holds_rows, read_text
from edgeft.errors import InputError
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder

TEXT_TOKENS = 256
"""tokens of a piece, with bos"""
PIECE_CHARS = 6 * TEXT_TOKENS
"""characters that a piece is cut from: enough for its tokens in most languages"""


def plain_text(path: Path) -> str:
    """The text of the file. InputError for rows, for a file without text, and where there is none."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", "check --ship-text")
    if holds_rows(path):
        raise InputError(f"--ship-text {path} holds rows, not plain text", "--data reads rows")
    text = read_text(path).strip()
    if not text:
        raise InputError(f"--ship-text {path} is empty", "a file with plain text")
    return text


def text_windows(path: Path, tokenizer: Path, steps: int) -> list[list[int]]:
    """`steps` pieces or fewer, spread evenly over the text. Raises as `plain_text`."""
    encode, before = encoder(tokenizer), bos_ids(tokenizer)
    text = plain_text(path)
    count = max(1, min(steps, len(text) // PIECE_CHARS))
    starts = (i * len(text) // count for i in range(count))
    pieces = (encode(text[start : start + PIECE_CHARS]) for start in starts)
    return [[*before, *ids][:TEXT_TOKENS] for ids in pieces]


def bos_ids(tokenizer: Path) -> list[int]:
    """The token that begins a text, where the chat template writes one."""
    chat = ChatTemplate.from_folder(tokenizer)
    return encoder(tokenizer)(chat.bos_token) if "bos_token" in chat.source else []
