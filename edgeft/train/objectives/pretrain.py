"""Continued pretraining: plain texts -> rows of token ids that are all learned.

The texts follow each other in rows of --cutoff-length tokens, each between the tokens that begin and end a
text. A token sees all that is before it in its row, also the end of another text, as in pretraining.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode
from edgeft.train.objectives.sft import SFT
from edgeft.train.options import TrainOptions


class Pretrain(SFT):
    """Learn every token; the loss is transformers' own of a causal language model."""

    def __init__(
        self,
        options: TrainOptions,
        train: Sequence[Example],
        validation: Sequence[Example],
        chat: ChatTemplate,
        tokenize: Encode,
    ) -> None:
        options = dataclasses.replace(options, shared_prefix=False)  # no two rows begin alike
        super().__init__(options, train, validation, chat, tokenize)
        self.documents = len(train)

    def facts(self) -> dict[str, Any]:
        return {"packed": {"documents": self.documents, "rows": len(self.train)}}
