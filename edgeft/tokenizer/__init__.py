"""Tokenizer files -> text of a chat (`ChatTemplate`), token ids (`encoder`), vocabularies.

Files of a Hugging Face folder, SentencePiece's tokenizer.model and a GGUF's vocabulary are read;
all become tokenizer.json.
"""

from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate
from edgeft.tokenizer.gguf_vocabulary import from_gguf
from edgeft.tokenizer.hf_files import (
    Encode,
    encoder,
    eos_ids,
    id_to_token,
    load_tokenizer,
    special_tokens,
    template_source,
    tokenizer_json,
)
from edgeft.tokenizer.learned_parts import spans
from edgeft.tokenizer.sentencepiece import SentencePiece
from edgeft.tokenizer.template_lock import check_template_lock

__all__ = [
    "ALPACA",
    "ChatTemplate",
    "Encode",
    "SentencePiece",
    "check_template_lock",
    "encoder",
    "eos_ids",
    "from_gguf",
    "id_to_token",
    "load_tokenizer",
    "spans",
    "special_tokens",
    "template_source",
    "tokenizer_json",
]
