"""deploy/: the unit and the container name options and files that exist, and start a server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from edgeft.cli.serve import command as serve
from helpers.paths import ROOT
from helpers.serving import exported, running

DEPLOY = ROOT / "deploy"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
UNIT = (DEPLOY / "edgeft.service").read_text()
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
README = (DEPLOY / "README.md").read_text()


def asked(line: str | list[str]) -> dict[str, Any]:
    """What `edgeft serve …` understands; click.UsageError for what it does not."""
    words = shlex.split(line) if isinstance(line, str) else line
    program, name, *args = words
    assert Path(program).name == "edgeft" and name == "serve"
    return serve.make_context("serve", args).params


def settings(text: str) -> dict[str, list[str]]:
    """The [Service] section: key -> its values."""
    section = text.partition("[Service]\n")[2].partition("\n[")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(key, []).append(value)
    return found


SERVICE = settings(UNIT)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(FROM, …) and so on, lines that go on joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        if line:
            name, _, rest = line.partition(" ")
            yield name, rest


CONTAINER = list(instructions(CONTAINERFILE))


def only(name: str) -> str:
    (value,) = [value for key, value in CONTAINER if key == name]
    return value


@pytest.fixture(scope="module")
def artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tiny_base, tmp_path_factory.mktemp("deploy"), "q8_0")[0]


def test_the_unit_asks_for_options_that_exist() -> None:
    (line,) = SERVICE["ExecStart"]
    how = asked(line)
    assert how["host"] == "127.0.0.1" and how["port"] == 8080
    (credential,) = SERVICE["LoadCredential"]
    assert str(how["api_key_file"]) == f"%d/{credential.partition(':')[0]}"
    # uvicorn waits two seconds longer for connections to end.
    assert float(SERVICE["TimeoutStopSec"][0]) > how["shutdown_timeout"] + 2


def test_an_option_that_does_not_exist_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        asked("/opt/edgeft/bin/edgeft serve model.gguf --slot-count 3")


def test_the_unit_is_hardened() -> None:
    wanted = {
        "Type": "exec", "DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict",
        "ProtectHome": "yes", "PrivateTmp": "yes", "CapabilityBoundingSet": "", "MemorySwapMax": "0",
        "IPAddressDeny": "any", "IPAddressAllow": "localhost",
    }  # fmt: skip
    assert {key: SERVICE[key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    assert "MemoryMax" in SERVICE
    # They would break it: ctypes' callbacks, /proc/meminfo.
    assert not {"MemoryDenyWriteExecute", "ProcSubset"} & set(SERVICE)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
@pytest.mark.parametrize(
    "check", [("verify", "--man=no"), ("security", "--offline=yes", "--threshold=20")]
)
def test_systemd_understands_the_unit(tmp_path: Path, check: tuple[str, ...]) -> None:
    file = tmp_path / "edgeft.service"

    def run(text: str) -> subprocess.CompletedProcess[str]:
        file.write_text(text.replace("/opt/edgeft/bin/edgeft", shutil.which("true") or ""))
        return subprocess.run(
            ["systemd-analyze", *check, str(file)], capture_output=True, text=True, check=False
        )

    done = run(UNIT)
    if "unrecognized option" in done.stderr or "Unknown" in done.stderr:
        pytest.skip("systemd is older than 250")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "edgeft.service" not in done.stderr, done.stderr
    if check[0] == "verify":
        assert "edgeft.service" in run(UNIT.replace("ProtectHome=yes", "ProtectHome=maybe")).stderr
    else:
        assert run(re.sub("(?m)^(Protect|SystemCall).*", "", UNIT)).returncode != 0


def test_what_the_unit_starts_answers_and_ends_on_sigterm(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    line = SERVICE["ExecStart"][0].replace("%d", str(tmp_path))
    line = line.replace("/srv/edgeft/model.gguf", str(artifact)).replace("8080", "0")
    command = [sys.executable, "-m", "edgeft", *shlex.split(line)[1:]]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            address = ""
            while not address:
                said = process.stderr.readline()
                assert said, "it ended before it served"
                address = (re.findall(r"http://127\.0\.0\.1:\d+", said) or [""])[0]
            assert ask(address + "/health") == 200
            assert ask(address + "/v1/models") == 401
            assert ask(address + "/v1/models", authorization="Bearer secret") == 200
            assert SERVICE["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
            process.send_signal(signal.SIGHUP)
            assert "no artifact has changed" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(float(SERVICE["TimeoutStopSec"][0])) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def ask(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_container_copies_what_the_wheel_is_made_of() -> None:
    copied: set[str] = set()
    for name, rest in CONTAINER:
        if name == "COPY":
            *sources, _ = rest.split()
            copied.update(sources)
    assert all((ROOT / source).exists() for source in copied)
    project, tools = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"]}
    needed |= {"edgeft", *tools["package-dir"].values(), "constraints.txt"}
    needed.add("deploy/llama_cpp.cmake")  # how llama.cpp is built
    assert copied == needed


def test_the_container_installs_extras_that_exist_on_a_python_that_is_allowed() -> None:
    extras = re.findall(r"(?:edgeft|\.)\[([\w,-]+)\]", CONTAINERFILE)
    assert extras == ["serve", "serve"]
    assert "serve" in PYPROJECT["project"]["optional-dependencies"]
    version = re.search(r"python:(\d+)\.(\d+)-slim", CONTAINERFILE)
    assert version and (int(version[1]), int(version[2])) >= (3, 11)
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"


def test_the_container_serves_as_a_user_who_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", only("USER"))
    how = asked([*json.loads(only("ENTRYPOINT")), *json.loads(only("CMD"))])
    assert how["host"] == "0.0.0.0" and str(how["port"]) == only("EXPOSE")
    assert [name for name, _ in CONTAINER].count("FROM") == 2
    assert "curl" not in CONTAINERFILE


def test_the_container_is_healthy_exactly_while_it_serves(artifact: Path) -> None:
    program, *rest = json.loads(only("HEALTHCHECK").partition("CMD ")[2])
    assert program == "python" and f":{only('EXPOSE')}/" in rest[-1]

    def healthy(port: int) -> bool:
        check = [part.replace(only("EXPOSE"), str(port)) for part in rest]
        done = subprocess.run([sys.executable, *check], capture_output=True, check=False)
        return done.returncode == 0

    with running(artifact, key="secret") as server:
        assert healthy(server.port)
    assert not healthy(server.port)


def test_the_readme_names_what_exists() -> None:
    commands = re.findall(r"^ExecStart=(/\S+ serve .*)$", README, re.MULTILINE)
    podman = re.search(r"podman run (.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(commands) == 1 and podman
    assert asked(commands[0])["allow_host"] == ("chat.example.org",)
    words = shlex.split(podman[1].replace("\\\n", " "))
    how = asked([*json.loads(only("ENTRYPOINT")), *words[words.index("edgeft", 4) + 1 :]])
    assert how["artifacts"] == (Path("/models/q4_k_m.gguf"),) and how["api_key_file"]
    for name in set(re.findall(r"deploy/[\w.]+", README)):
        assert (ROOT / name).is_file(), name
    for target in re.findall(r"^make (\w+)$", README, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
