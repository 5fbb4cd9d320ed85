"""The image of deploy/: built, started as deploy/README.md says, asked, reloaded and ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.serving import exported

pytestmark = pytest.mark.slow

START_TIMEOUT_S = 120.0


def call(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def tool() -> str:
    """podman or docker, where one works and the base image can be had."""
    problems = ["there is neither podman nor docker"]
    for name in filter(shutil.which, ("podman", "docker")):
        done = call(name, "info")
        if not done.returncode:
            return name
        problems.append(f"{name} does not work: {done.stderr.strip().splitlines()[-1]}")
    pytest.skip(problems[-1])


@pytest.fixture(scope="module")
def image(tool: str) -> Iterator[str]:
    base = (ROOT / "deploy" / "Containerfile").read_text().partition("ARG PYTHON=")[2].split()[0]
    if call(tool, "image", "inspect", base).returncode:
        pulled = call(tool, "pull", base, timeout=600)
        if pulled.returncode:
            pytest.skip(f"{base} cannot be had: {pulled.stderr.strip().splitlines()[-1]}")
    docker_format = ("--format", "docker") if tool == "podman" else ()
    built = call(
        tool, "build", *docker_format, "--file", "deploy/Containerfile", "--tag", "edgeft-test", ".",
        timeout=3600,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-4000:]
    yield "edgeft-test"
    call(tool, "image", "rm", "--force", "edgeft-test")


@pytest.fixture
def container(
    tool: str, image: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Its id; as in deploy/README.md, with a free port."""
    models = tmp_path_factory.mktemp("models")
    (artifact,) = exported(tiny_base, models, "q8_0")
    models.chmod(0o755)
    artifact.chmod(0o644)
    started = call(
        tool, "run", "--detach", "--publish", "127.0.0.1::8080", "--read-only", "--tmpfs", "/tmp",
        "--cap-drop", "all", "--security-opt", "no-new-privileges", "--memory", "2g",
        "--volume", f"{models}:/models:ro", "--env", "EDGEFT_API_KEY=secret",
        image, "/models/q8_0.gguf",
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    yield started.stdout.strip()
    call(tool, "rm", "--force", started.stdout.strip())


def ask(url: str, body: object = None, key: str = "secret") -> int:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    data = json.dumps(body).encode() if body else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=30
        ) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def logs(tool: str, container: str) -> str:
    done = call(tool, "logs", container)
    return done.stdout + done.stderr


def wait_for(text: str, tool: str, container: str) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while text not in logs(tool, container):
        assert time.monotonic() < end, logs(tool, container)
        time.sleep(0.2)


def test_the_image_serves_reloads_and_ends(tool: str, container: str) -> None:
    wait_for("serving q8_0", tool, container)
    address = call(tool, "port", container, "8080").stdout.split()[0]
    url = f"http://127.0.0.1:{address.rpartition(':')[2]}"
    assert ask(f"{url}/health") == 200
    chat = {"messages": [{"role": "user", "content": "lamp"}], "max_tokens": 4}
    assert ask(f"{url}/v1/chat/completions", chat, key="wrong") == 401
    assert ask(f"{url}/v1/chat/completions", chat) == 200
    assert call(tool, "kill", "--signal", "HUP", container).returncode == 0
    wait_for("no artifact has changed", tool, container)
    assert ask(f"{url}/v1/chat/completions", chat) == 200
    assert call(tool, "stop", container).returncode == 0
    state = call(tool, "inspect", "--format", "{{.State.ExitCode}}", container)
    assert state.stdout.strip() == "0" and "Traceback" not in logs(tool, container)
