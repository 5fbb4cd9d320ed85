"""docs/families.md and docs/cli.md are what docs/generate.py writes now."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.docs import DOCS
from helpers.paths import ROOT

pytestmark = pytest.mark.unit


def test_the_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
