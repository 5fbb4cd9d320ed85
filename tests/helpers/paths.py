"""Where things lie in a checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DATA = ROOT / "build" / "vocabularies"
"""real tokenizers and llama.cpp's converter, where `make vocabularies` put them"""
