"""`edgeft studio` as a process: its address, its key, a second one, its end; its jobs go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT
from helpers.studio_server import FAKE

pytest.importorskip("uvicorn")

STUDIO = f"""
import sys
from pathlib import Path
from edgeft.cli._forms import commands
from edgeft.studio import StudioOptions, studio
studio(StudioOptions(Path(sys.argv[1]), port=0, browser=False), commands(), {FAKE!r})
"""
"""as `edgeft studio --port 0 --no-browser`, with a fake edgeft behind its jobs"""


def test_a_studio_opens_a_workspace_and_leaves_its_jobs(
    edgeft: Callable[..., Any], tmp_path: Path
) -> None:
    workspace = tmp_path / "work"
    env = os.environ | {"FAKE_SLEEP_S": "0.1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STUDIO, str(workspace)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    assert running.stderr
    try:
        lines = [running.stderr.readline() for _ in range(2)]
        found = re.search(r"(http://127\.0\.0\.1:(\d+))/\?key=(\S+)", lines[1])
        assert found and lines[0] == f"edgeft: workspace {workspace}\n"
        address, port, key = found.groups()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address, timeout=20)
        values = {"base": "b", "data": "d", "output": "adapter", "steps": "100"}
        body = {"page": "train", "form": "train", "values": values}
        headers = {
            "authorization": f"Bearer {key}",
            "origin": address,
            "content-type": "application/json",
        }
        request = urllib.request.Request(f"{address}/api/jobs", json.dumps(body).encode(), headers)
        assert json.load(urllib.request.urlopen(request, timeout=20)) == {"id": 1}
        again = edgeft("studio", "--workspace", workspace, "--port", "0", "--no-browser")
        assert again.code == 1 and f"another studio has {workspace} open, at {address}" in again.err
        again = edgeft("studio", "--workspace", tmp_path / "other", "--port", port, "--no-browser")
        assert again.code == 1 and "choose another --port" in again.err
        progress = workspace / ".studio/jobs/0001/progress.jsonl"
        wait_for(lambda: progress.exists() and progress.stat().st_size > 0)
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
        assert "1 jobs go on without the studio" in running.stderr.read()
    finally:
        running.kill()
        running.wait()
    end = progress.with_name("end.json")
    wait_for(lambda: "exit_code" in end.read_text())
    assert json.loads(end.read_text())["exit_code"] == 0 and (workspace / "adapter").is_dir()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 30 s")


def test_a_key_of_ones_own(edgeft: Callable[..., Any], tmp_path: Path) -> None:
    for text in ("short", "two words that are long enough", ""):
        (tmp_path / "key").write_text(text)
        ran = edgeft("studio", "--workspace", tmp_path / "work", "--key-file", tmp_path / "key")
        assert ran.code == 1 and "holds no key" in ran.err
    ran = edgeft("studio", "--workspace", tmp_path / "work", "--key-file", tmp_path / "none")
    assert ran.code == 1 and "--key-file" in ran.err
    ran = edgeft("studio", "--workspace", tmp_path / "key")
    assert ran.code != 0 and "Traceback" not in ran.err
