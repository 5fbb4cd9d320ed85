"""`edgeft studio` as a process: its address, its key, a second one, its end; its jobs go on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT

pytest.importorskip("uvicorn")


def test_a_studio_opens_a_workspace_and_leaves_its_jobs(
    edgeft: Callable[..., Any], tmp_path: Path
) -> None:
    workspace = tmp_path / "work"
    command = [
        sys.executable,
        "-m",
        "edgeft",
        "studio",
        "--workspace",
        str(workspace),
        "--port",
        "0",
    ]
    running = subprocess.Popen(
        [*command, "--no-browser"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert running.stderr
    try:
        lines = [running.stderr.readline() for _ in range(2)]
        found = re.search(r"(http://127\.0\.0\.1:(\d+))/\?key=(\S+)", lines[1])
        assert found and lines[0] == f"edgeft: workspace {workspace}\n"
        address, port, key = found.groups()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address)
        again = edgeft("studio", "--workspace", workspace, "--port", "0", "--no-browser")
        assert again.code == 1 and f"another studio has {workspace} open, at {address}" in again.err
        again = edgeft("studio", "--workspace", tmp_path / "other", "--port", port, "--no-browser")
        assert again.code == 1 and "choose another --port" in again.err
        (workspace / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
        body = {"page": "data", "form": "check", "values": {"data": ["chats.jsonl"]}}
        headers = {
            "authorization": f"Bearer {key}",
            "origin": address,
            "content-type": "application/json",
        }
        request = urllib.request.Request(f"{address}/api/jobs", json.dumps(body).encode(), headers)
        assert json.load(urllib.request.urlopen(request)) == {"id": 1}
        events = urllib.request.Request(f"{address}/events?job=1", None, headers)
        with urllib.request.urlopen(events) as stream:
            while b'"state": "running"' not in stream.readline():
                pass
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
        assert "jobs go on without the studio" in running.stderr.read()
    finally:
        running.kill()
        running.wait()
    end = workspace / ".studio/jobs/0001/end.json"
    for _ in range(200):
        if end.exists() and end.read_text().strip():
            break
        signal.sigtimedwait([], 0.1)
    assert json.loads(end.read_text())["exit_code"] in (0, 3)
    result = json.loads((end.parent / "output.txt").read_text())
    assert result["rows"] == 3


def test_a_key_of_ones_own(edgeft: Callable[..., Any], tmp_path: Path) -> None:
    for text in ("short", "two words that are long enough", ""):
        (tmp_path / "key").write_text(text)
        ran = edgeft("studio", "--workspace", tmp_path / "work", "--key-file", tmp_path / "key")
        assert ran.code == 1 and "holds no key" in ran.err
    ran = edgeft("studio", "--workspace", tmp_path / "work", "--key-file", tmp_path / "none")
    assert ran.code == 1 and "--key-file" in ran.err
    ran = edgeft("studio", "--workspace", tmp_path / "key")
    assert ran.code != 0 and "Traceback" not in ran.err
