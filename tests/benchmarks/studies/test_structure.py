"""The figures of the structure are those of a small package."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.benchmarks.studies.structure import figures

pytestmark = pytest.mark.unit


def test_figures_of_a_small_package(tmp_path: Path) -> None:
    files = {
        "edgeft/__init__.py": "",
        "edgeft/errors.py": "def check(x):\n    if x and x > 1:\n        return x\n",
        "edgeft/web/__init__.py": "",
        "edgeft/web/one.py": "from edgeft.web import two\nfrom edgeft.errors import check\n",
        "edgeft/web/two.py": "def later():\n    import edgeft.web.one\n",
        "README.md": "one\ntwo\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    result = figures(tmp_path)
    assert (result["modules"], result["loose_modules"], result["readme_lines"]) == (5, 1, 2)
    assert (result["rooms"], result["room_arrows"], result["rooms_in_circles"]) == (3, 1, [])
    assert result["files_in_circles"] == ["edgeft.web.one", "edgeft.web.two"]
    assert result["most_branches_functions"] == {
        "edgeft.errors:check": 2,
        "edgeft.web.two:later": 0,
    }
