"""The file of --ship-text -> pieces of it as token ids, one for each step."""

from __future__ import annotations

from pathlib import Path

from edgeft.data.encoding import text_calibration
from edgeft.data.reading import holds_rows, read_text
from edgeft.errors import InputError
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder

TEXT_TOKENS = 256
"""of the text in each step"""
MAX_TEXT_CHARS = 10_000_000


def plain_text(path: Path) -> str:
    """InputError for rows, and for a file without text."""
    if holds_rows(path):
        raise InputError(f"--ship-text {path} holds rows, not plain text", "--data reads rows")
    text = read_text(path)[:MAX_TEXT_CHARS].strip()
    if not text:
        raise InputError(f"--ship-text {path} is empty", "a file with plain text")
    return text


def text_windows(path: Path, tokenizer: Path, steps: int) -> list[list[int]]:
    """`steps` pieces or fewer, spread evenly over the text. Raises as `plain_text`."""
    chat, encode = ChatTemplate.from_folder(tokenizer), encoder(tokenizer)
    bos_ids = encode(chat.bos_token) if "bos_token" in chat.source else []
    return text_calibration(encode(plain_text(path)), bos_ids, steps * TEXT_TOKENS, TEXT_TOKENS)
