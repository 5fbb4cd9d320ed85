"""The proxies of deploy/README.md, where they are installed: TLS, the page's Origin, streams."""

from __future__ import annotations

import http.client
import http.server
import itertools
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.serving import exported, running

README = (ROOT / "deploy" / "README.md").read_text()
NAME = "chat.example.org"
PAUSE = 0.4
Start = Callable[[int], int]
"""port of the server -> port of a proxy before it"""


def snippet(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return str(found)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    program = shutil.which(request.param) or shutil.which(request.param, path="/usr/sbin")
    if not program or not shutil.which("openssl"):
        pytest.skip(f"there is no {request.param}, or no openssl")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key,
         "-out", cert, "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"],
        check=True, capture_output=True,
    )  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []

    def start(upstream: int) -> int:
        port = free_port()
        file = tmp_path / "proxy.conf"
        if request.param == "nginx":
            text = snippet("nginx").replace("listen 443", f"listen 127.0.0.1:{port}")
            text = re.sub(r"(ssl_certificate) .*;", rf"\1 {cert};", text)
            text = re.sub(r"(ssl_certificate_key) .*;", rf"\1 {key};", text)
            paths = "".join(
                f"{kind}_temp_path {tmp_path}/{kind};"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            text = f"http {{ access_log off; {paths} {text} }} events {{}}"
            text = f"daemon off; pid {tmp_path}/pid; error_log stderr; {text}"
            command = [program, "-c", str(file), "-e", "stderr"]
        else:
            text = snippet("caddyfile").replace(
                f"{NAME} {{", f"https://{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}"
            )
            text = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + text
            command = [program, "run", "--adapter", "caddyfile", "--config", str(file)]
        changed = text.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}")
        assert changed != text
        file.write_text(changed)
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        started.append(subprocess.Popen(command, env=env, stderr=(tmp_path / "log").open("wb")))
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return port
            except OSError:
                assert started[-1].poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        raise AssertionError((tmp_path / "log").read_text())

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


class Outside(http.client.HTTPSConnection):
    """A browser that believes the proxy's certificate, wherever it is."""

    def __init__(self, port: int, cert: Path) -> None:
        self.trusted = ssl.create_default_context(cafile=str(cert))
        super().__init__(NAME, port, timeout=30, context=self.trusted)

    def connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self.port), 30)
        self.sock = self.trusted.wrap_socket(plain, server_hostname=NAME)


def test_a_page_behind_the_proxy_may_ask_and_others_may_not(
    proxy: Start, tiny_base: Path, tmp_path: Path
) -> None:
    artifact = exported(tiny_base, tmp_path, "q8_0")[0]
    with running(artifact, key="secret", allow_host=(NAME,)) as server:
        port = proxy(server.port)

        def ask(origin: str, key: str = "secret") -> int:
            page = Outside(port, tmp_path / "cert.pem")
            body = '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}'
            headers = {"Origin": origin, "Authorization": f"Bearer {key}",
                       "Content-Type": "application/json"}  # fmt: skip
            page.request("POST", "/v1/chat/completions", body, headers)
            status = page.getresponse().status
            page.close()
            return status

        assert ask(f"https://{NAME}:{port}") == 200
        assert ask(f"https://{NAME}:{port}", "wrong") == 401
        assert ask("https://evil.example") == 403
        assert ask(f"http://{NAME}:{port}") == 403


class Slow(http.server.BaseHTTPRequestHandler):
    """Three events with pauses between them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(3):
            self.wfile.write(b"f\r\ndata: piece %d\n\n\r\n" % i)
            self.wfile.flush()
            time.sleep(PAUSE)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


def test_the_proxy_passes_each_piece_on_at_once(proxy: Start, tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = Outside(proxy(server.server_address[1]), tmp_path / "cert.pem")
        page.request("GET", "/")
        reply, times = page.getresponse(), []
        for line in reply:
            if line.startswith(b"data: "):
                times.append(time.monotonic())
        server.shutdown()
    assert len(times) == 3
    assert all(later - sooner > PAUSE / 2 for sooner, later in itertools.pairwise(times))
