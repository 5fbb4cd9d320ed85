"""No stage opens the network: tests refuse it, and the stages end where even a native library does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from edgeft import NO_TELEMETRY
from helpers.faults import Server

OTHER_MACHINE = "192.0.2.1"
"""an address of RFC 5737, which no machine has"""


@pytest.mark.unit
def test_a_test_reaches_this_machine_alone() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname()).close()
    for address in ((OTHER_MACHINE, 80), ("example.invalid", 80)):
        with pytest.raises(PermissionError, match="a test opens the network"):
            socket.create_connection(address, timeout=1)
    with socket.socket(type=socket.SOCK_DGRAM) as datagram, pytest.raises(PermissionError):
        datagram.sendto(b"", (OTHER_MACHINE, 53))


@pytest.mark.parametrize(
    "call", [f"socket().connect(('{OTHER_MACHINE}', 80))", "getaddrinfo('a.invalid', 80)"]
)
def test_a_stage_that_opens_the_network_would_end(core: Server, call: str) -> None:
    """Every stage in this folder runs so, with all its libraries, and none ends."""
    ended = subprocess.run(
        [sys.executable, "-c", f"from socket import *; {call}"],
        check=False, capture_output=True, text=True, env=os.environ | {"LD_PRELOAD": str(core.shim)},
    )  # fmt: skip
    assert ended.returncode == -6 and "the network was opened" in ended.stderr


ONNX_REPORTS_S = 20
"""seconds after its import; onnxruntime 1.32 takes 9"""


@pytest.mark.unit
def test_libraries_are_told_to_report_nothing() -> None:
    assert {name: os.environ.get(name) for name in NO_TELEMETRY} == NO_TELEMETRY


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import edgeft", "import edgeft.runtimes.onnx"])
def test_onnxruntime_reports_nothing(core: Server, first: str) -> None:
    """Without edgeft's variable it opens the network some seconds after its import."""
    code = f"{first}; import onnxruntime, time; time.sleep({ONNX_REPORTS_S})"
    environment = {name: of for name, of in os.environ.items() if name not in NO_TELEMETRY}
    for given, expected in ((code, 0), (code.partition("; ")[2], -6)):
        ended = subprocess.run(
            [sys.executable, "-c", given],
            check=False, capture_output=True, text=True, env=environment | {"LD_PRELOAD": str(core.shim)},
        )  # fmt: skip
        assert ended.returncode == expected, ended.stderr
