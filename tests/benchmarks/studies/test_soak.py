"""A short soak of a tiny model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeft.benchmarks.studies import soak
from helpers.serving import exported


@pytest.mark.slow
def test_server_survives_bad_clients(tiny_base: Path, tmp_path: Path) -> None:
    (artifact,) = exported(tiny_base, tmp_path, "f32")
    # In a thread: a browser of other tests may have a loop that runs in this one.
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(soak.run, artifact, 1, 5.0).result()
    assert result["crashes"] == result["stuck"] == 0
    assert result["requests"] > 30 and result["left"] > 3
    assert {"200", "400", "413"} <= set(result["statuses"])
