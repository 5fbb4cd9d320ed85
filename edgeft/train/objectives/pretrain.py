"""Continued pretraining: plain texts -> rows of token ids that are all learned.

The texts follow each other in rows of --cutoff-length tokens, each between the tokens that begin and end a
text. A token sees all that is before it in its row, also the end of another text, as in pretraining.
"""

from __future__ import annotations

from typing import Any

from edgeft.train.objectives.sft import SFT


class Pretrain(SFT):
    """Learn every token; the loss is transformers' own of a causal language model."""

    rows_begin_alike = False

    def facts(self) -> dict[str, Any]:
        return {"packed": {"documents": self.rows_read, "rows": len(self.train)}}
