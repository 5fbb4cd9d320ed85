"""A corpus of bad models, made by code: name -> Case. No file of it is in the repository.

for name, case in corpus().items():
    path = case.write(folder)
"""

from __future__ import annotations

from pathlib import Path

from helpers.bad_models import gguf_files, others, weights
from helpers.bad_models.case import Case
from helpers.bad_models.folders import Folders

__all__ = ["Case", "corpus"]


def corpus(base: Path) -> dict[str, Case]:
    """Name -> case. `base`: the tiny base, of which the bad folders are copies."""
    return {**weights.cases(), **gguf_files.cases(), **Folders(base).cases(), **others.cases()}
