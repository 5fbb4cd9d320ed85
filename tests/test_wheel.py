"""The wheel: nothing but edgeft/…, and it works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.paths import ROOT


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_runs_anywhere(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir",
         str(tmp_path), str(ROOT)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        archive.extractall(site)
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgeft"}
    assert not (site / "edgeft" / "benchmarks" / "studies").exists()
    code = (
        "import edgeft.converters.gguf.convert, edgeft.benchmarks.statistics.noninferiority as p, edgeft.models as m\n"
        "from edgeft.benchmarks.suites import load_suite\n"
        f"assert p.__file__.startswith({str(site)!r}), p.__file__\n"
        "assert load_suite('smart_home').test.is_file() and m.cards() and m.sources()\n"
        "from pathlib import Path\n"
        "from edgeft import records, report\n"
        "empty = records.Release('PASS', None, '', {}, (), {})\n"
        "assert '<style>' in report.write(empty, Path('report')).read_text()\n"
        "assert (Path(report.__file__).parent / 'SCHEMA.md').is_file()\n"
        "from edgeft.cli import main\nmain(['--help'])\n"
    )
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "merge-export" in done.stdout
