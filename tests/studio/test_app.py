"""The studio over HTTP: who may ask, pages, forms, uploads, jobs, events."""

from __future__ import annotations

import html
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.benchmarks.statistics.noninferiority import minimum_items
from edgeft.studio import desktop, pages
from edgeft.studio.guide import QUICK_ITEMS
from edgeft.studio.render import NAV, STATIC
from edgeft.train.checkpoints import REQUEST_FILE
from helpers.studio_server import MAX_UPLOAD, Server, serving_studio

pytest.importorskip("uvicorn")

ROW = {"messages": [{"role": "user", "content": "on?"}, {"role": "assistant", "content": "{}"}]}
ADDRESSES = ["/", *(f"/{page.name}" for page in pages.PAGES if page.name != "start")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_studio(tmp_path_factory.mktemp("studio") / "work") as running:
        yield running


def rows(path: Path, count: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(ROW) + "\n" for _ in range(count)))
    return path


# ── who may ask ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example:80"}, 403),  # DNS rebinding
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),  # a form of another page need not name it
        ({"cookie": ""}, 401),
        ({"cookie": "edgeft-studio-{port}=wrong"}, 401),
    ],
)
def test_who_may_not_start_a_job(server: Server, headers: dict[str, str], status: int) -> None:
    headers = {"cookie": f"edgeft-studio-{server.port}={server.studio.key}", **headers}
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    body = json.dumps({"page": "plan", "form": "plan", "values": {"base": "x"}}).encode()
    answer = server.ask("POST", "/api/jobs", body, key=False, **headers)
    assert answer.status == status and server.studio.jobs.all() == []


@pytest.mark.parametrize(
    "path", [*ADDRESSES, "/jobs/1", "/file/a.jsonl", "/raw/report.html", "/events"]
)
def test_every_page_asks_for_the_key(server: Server, path: str) -> None:
    answer = server.ask("GET", path, key=False, origin="")
    assert answer.status == 401 and server.studio.key not in answer.text
    assert str(server.root) not in answer.text


def test_the_address_with_the_key_opens_the_page(server: Server) -> None:
    answer = server.ask("GET", f"/?key={server.studio.key}", key=False, origin="")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    answer = server.ask("GET", "/data", key=False, origin="", cookie=cookie.partition(";")[0])
    assert answer.status == 200
    login = {"content_type": "application/x-www-form-urlencoded"}
    wrong = server.ask("POST", "/login", b"key=no", key=False, **login)
    right = server.ask("POST", "/login", f"key={server.studio.key}".encode(), key=False, **login)
    assert (wrong.status, right.status) == (403, 303)
    assert server.ask("POST", "/login", b"key=" + b"x" * 5000, key=False, **login).status == 413


def test_a_page_runs_its_own_scripts_only(server: Server) -> None:
    answer = server.get("/")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"<script(?![^>]*(src|application/json))|\son\w+=|style=", answer.text)
    assert answer.headers["cache-control"] == "no-store"


def test_files_of_the_page_are_small() -> None:
    folders = (STATIC, STATIC.parent / "templates", STATIC.parent / "words")
    size = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    assert size < 500_000


# ── pages ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("path", ADDRESSES)
def test_every_page_is_there_in_every_language(server: Server, path: str, language: str) -> None:
    answer = server.get(path, accept_language=f"{language}-XX,fr;q=0.5")
    assert answer.status == 200 and f'<html lang="{language}"' in answer.text
    assert all(f'href="/{name if name != "start" else ""}"' in answer.text for name in NAV)


def test_forms_are_filled_from_the_address_and_from_an_earlier_job(server: Server) -> None:
    rows(server.root / "a.jsonl")
    text = server.get("/train?data=a.jsonl&epochs=3").text
    assert re.search(r'id="train-data"[^>]*value="a.jsonl"', text)
    assert re.search(r'id="train-epochs"[^>]*value="3"', text)
    number = server.start(
        "train", "train", base="b", data="a.jsonl", output="o", lora_r="4", steps="1"
    )
    server.wait(number)
    text = server.get(f"/train?form=train&from={number}").text
    assert re.search(r'id="train-lora_r"[^>]*value="4"', text)
    assert "data-filled" in text


def test_a_form_guesses_the_columns_of_a_file_with_other_names(tmp_path: Path) -> None:
    with serving_studio(tmp_path / "work", jobs=False) as server:
        (server.root / "own.csv").write_text("No,Wrote,Desk\n1,where is my card,cards\n")
        columns = 'value="prompt=Wrote, answer=Desk"'
        text = server.get("/train?data=own.csv").text
        assert columns in text.partition("<details")[0], "it stands in front"
        assert columns in server.get("/data?form=check&data=own.csv").text
        assert columns not in server.get("/train?data=own.csv&objective=dpo").text
        assert "x=No, y=Desk" in server.get("/train?data=own.csv&columns=x=No&columns=y=Desk").text
        assert 'data-field="columns"' not in server.get("/train").text.partition("<details")[0]
        rows(server.root / "known.jsonl")
        assert "prompt=" not in server.get("/train?data=known.jsonl").text.partition("<details")[0]


def test_a_form_begins_with_what_is_most_likely_meant(tmp_path: Path) -> None:
    with serving_studio(tmp_path / "work", jobs=False) as server:
        for name in ("old/f16", "old/q8_0", "new/f16", "new/q4_0", "new/q8_0"):
            file = server.root / f"{name}.gguf"
            file.parent.mkdir(exist_ok=True)
            file.write_text("")
            os.utime(file, (name.startswith("new"),) * 2)
        (server.root / "tuned").mkdir()
        (server.root / "tuned/adapter_config.json").write_text("{}")
        text = server.get("/measure").text
        assert re.search(r'id="ab-last"[^>]*value="new/f16.gguf"', text)
        ticked = re.findall(r'value="([^"]+)" checked', text.partition("ab-last")[0])
        assert ticked == ["new/q4_0.gguf", "new/q8_0.gguf"]
        assert 'value="tuned" checked' in server.get("/export").text
        assert 'value="tuned" checked' not in server.get("/export?adapter=other").text


def test_a_name_of_a_file_is_no_script(server: Server) -> None:
    rows(server.root / "<img src=x onerror=alert(1)>.jsonl")
    for path in ("/data", "/runs", "/train"):
        text = server.get(path).text
        assert "<img" not in text and "&lt;img" in text


def test_what_does_not_exist_is_said(server: Server) -> None:
    for path in ("/nowhere", "/jobs/99", "/file/none.jsonl", "/file/../../etc/passwd", "/raw/.studio/key",
                 "/static/../app.py", "/file/%00"):  # fmt: skip
        answer = server.get(path)
        assert answer.status == 404, path


def test_a_browser_gets_an_error_as_a_page(server: Server) -> None:
    for path in ("/nowhere", "/jobs/99", "/file/none.jsonl"):
        answer = server.get(path, accept="text/html,*/*", accept_language="zh")
        assert answer.status == 404 and 'role="alert"' in answer.text and "没有成功" in answer.text
        assert server.get(path).json["error"]["message"]


def test_a_workspace_that_was_moved_is_said_and_not_made_anew(tmp_path: Path) -> None:
    with serving_studio(tmp_path / "work", jobs=False) as server:
        rows(server.root / "a.jsonl")
        server.root.rename(tmp_path / "elsewhere")
        answer = server.get("/data", accept="text/html")
        assert answer.status == 409 and "was moved or deleted" in answer.text
        body = {"page": "plan", "form": "plan", "values": {"base": "b"}}
        answer = server.post("/api/jobs", body)
        assert answer.status == 409 and "put the folder back" in answer.json["error"]["hint"]
        assert server.ask("POST", "/api/upload?name=b.csv", b"x").status == 409
        assert not server.root.exists()
        server.root.mkdir()  # another folder of this name
        assert server.post("/api/jobs", body).status == 409
        server.root.rmdir()
        (tmp_path / "elsewhere").rename(server.root)
        assert "a.jsonl" in server.get("/data").text
        assert server.post("/api/jobs", body).status == 201


def test_a_file_of_the_workspace_is_shown_in_a_sandbox(server: Server) -> None:
    (server.root / "report").mkdir()
    (server.root / "report/report.html").write_text("<script>alert(1)</script>")
    (server.root / "report/link.html").symlink_to("/etc/hostname")
    (server.root / "report/run.sh").write_text("")
    answer = server.get("/raw/report/report.html")
    assert answer.status == 200
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert server.get("/raw/report/link.html").status == 404
    assert server.get("/raw/report/run.sh").status == 404


# ── forms and jobs ───────────────────────────────────────────────────────────────────────────────


def command(server: Server, page: str, form: str, **values: Any) -> Any:
    return server.post("/api/command", {"page": page, "form": form, "values": values}).json


def test_a_form_is_a_command_line_and_a_toml_table(server: Server) -> None:
    answer = command(server, "train", "train", base="b", data="d.jsonl", output="o", lora_r="0")
    assert answer["line"] == "edgeft train --base b --data d.jsonl --output o --lora-r 0"
    assert answer["toml"].startswith('[train]\nbase = "b"\n') and "--lora-r" in answer["problem"]
    answer = command(server, "data", "preview", base="b", data="d.jsonl")
    assert answer["line"] == "edgeft train --base b --data d.jsonl --output preview --preview"
    assert answer["problem"] == ""


def test_a_form_is_saved_and_loaded_as_toml(server: Server) -> None:
    values = {"base": "b", "data": "d.jsonl", "output": "o", "lora_r": "4", "double_quant": False,
              "target_modules": ["q_proj"], "packing": True}  # fmt: skip
    body = {"page": "train", "form": "train", "values": values}
    names = [server.post("/api/toml", body).json["path"] for _ in range(2)]
    assert names == ["train.toml", "train-2.toml"]
    text = server.get("/train?form=train&config=train-2.toml").text
    assert re.search(r'id="train-lora_r"[^>]*value="4"', text)
    assert re.search(r'id="train-packing"[^>]* checked', text)
    assert not re.search(r'id="train-double_quant"[^>]* checked', text)
    assert 'value="q_proj"' in text and "config=train.toml" in text
    (server.root / "bad.toml").write_text("[train]\nlora-r = ")
    for name in ("bad.toml", "none.toml", "../x.toml", "a.jsonl"):
        assert server.get(f"/train?config={name}").status == 404
    body = {"page": "chat", "form": "nothing", "values": {}}
    assert server.post("/api/toml", body).status == 422


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"page": "train", "form": "train", "values": {"data": {"a": 1}}},
        {"page": "train", "form": "nothing", "values": {}},
        {"page": "../..", "form": "train", "values": {}},
        {"page": "train", "form": "train", "values": {"preview": "x", "rm": "-rf"}},
        {"page": "train", "form": "train", "values": {"data": "a.jsonl"}},
        [],
    ],
)
def test_a_request_that_no_form_sends_starts_nothing(server: Server, body: Any) -> None:
    before = len(server.studio.jobs.all())
    answer = server.ask("POST", "/api/jobs", json.dumps(body).encode())
    assert answer.status in (400, 422) and answer.json["error"]["message"]
    assert len(server.studio.jobs.all()) == before
    assert server.ask("POST", "/api/jobs", b"{", content_type="text/plain").status == 415
    assert server.ask("POST", "/api/jobs", b"x" * 300_000).status == 413


def test_a_job_runs_and_its_page_says_what_came_of_it(server: Server) -> None:
    number = server.start("plan", "plan", base="no-such-base")
    assert server.wait(number).state == "done"
    text = server.get(f"/jobs/{number}").text
    assert "edgeft plan --base no-such-base" in text and "a library says something" in text
    assert server.post(f"/api/jobs/{number}/again").json["id"] == number + 1
    server.wait(number + 1)
    assert server.post(f"/api/jobs/{number}/delete").status == 200
    assert server.get(f"/jobs/{number}").status == 404
    assert server.post(f"/api/jobs/{number}/cancel").status == 422


def test_a_failed_job_shows_the_error_and_its_hint(server: Server) -> None:
    number = server.studio.jobs.add(["train", "--exit", "1"], "train").id
    server.wait(number)
    text = server.get(f"/jobs/{number}").text
    assert "no such file: chats.jsonl" in text and "check --data" in text
    number = server.studio.jobs.add(["train", "--sleep", "60"], "train").id
    job = server.wait(number, lambda job: job.state == "running")
    os.kill(job.pid or 0, signal.SIGKILL)
    server.wait(number)
    assert "The process was killed" in server.get(f"/jobs/{number}").text


def test_an_unfinished_run_goes_on(server: Server) -> None:
    options = {"base": "b", "data": str(server.root / "a.jsonl"), "output": "cut", "epochs": 1.0,
               "lora_r": 4, "double_quant": False, "target_modules": ["q_proj"], "method": "lora", "steps": None}  # fmt: skip
    (server.root / "cut.work/checkpoint-5").mkdir(parents=True)
    (server.root / "cut.work" / REQUEST_FILE).write_text(json.dumps({"options": options}))
    assert "cut.work" in server.get("/train").text
    number = server.post("/api/resume?path=cut.work").json["id"]
    words = server.wait(number).words
    assert words == (
        "train", "--method", "lora", "--base", "b", "--data", "a.jsonl", "--output", "cut", "--lora-r", "4",
        "--target-modules", "q_proj", "--no-double-quant", "--resume",
    )  # fmt: skip
    assert server.post("/api/resume?path=../x").status == 422


def test_what_a_job_works_with_is_not_deleted(server: Server) -> None:
    rows(server.root / "used.jsonl")
    number = server.studio.jobs.add(["train", "--data", "used.jsonl", "--sleep", "60"], "train").id
    answer = server.post("/api/delete", {"path": "used.jsonl"})
    assert answer.status == 409 and f"job {number} works with" in answer.json["error"]["message"]
    server.post(f"/api/jobs/{number}/cancel")
    server.wait(number)
    entry = server.post("/api/delete", {"path": "used.jsonl"}).json["entry"]
    assert "used.jsonl" in server.get("/runs").text and not (server.root / "used.jsonl").exists()
    assert server.post(f"/api/restore?entry={entry}").json == {"path": "used.jsonl"}
    answer = server.post("/api/rename", {"path": "used.jsonl", "name": "../new name"})
    assert answer.json == {"path": "new name.jsonl"}
    for path in ("../x", "/etc/passwd", ".studio/key", 7):
        assert server.post("/api/delete", {"path": path}).status == 422


def test_a_folder_is_opened_where_there_is_a_desktop(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    for name in desktop.SCREENS:
        monkeypatch.delenv(name, raising=False)
    rows(server.root / "talks/a b.jsonl")
    page = "/file/talks/a%20b.jsonl"
    assert f"{server.root}/talks/a b.jsonl" in server.get(page).text, "the path to be copied"
    assert "/api/open" not in server.get(page).text
    assert server.post("/api/open", {"path": "talks/a b.jsonl"}).status == 422 and opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert "/api/open" in server.get(page).text and "/api/open" in server.get("/runs").text
    for path in ("talks/a b.jsonl", "", "../.."):
        server.post("/api/open", {"path": path})
    assert opened == [(server.root / "talks").as_uri(), server.root.as_uri()]


# ── uploads ──────────────────────────────────────────────────────────────────────────────────────


def test_an_upload_gets_a_clean_name(server: Server) -> None:
    data = json.dumps(ROW).encode()
    answer = server.ask("POST", "/api/upload?name=..%2F..%2F%3Cb%3E.jsonl", data)
    assert answer.json == {"path": "data/b.jsonl", "size": len(data)}
    assert server.ask("POST", "/api/upload?name=a.sh", data).status == 422
    assert server.ask("POST", "/api/upload?name=big.csv", b"x" * (MAX_UPLOAD + 1)).status == 507
    assert [path.name for path in (server.root / "data").iterdir()] == ["b.jsonl"]
    text = server.get("/file/data/b.jsonl").text
    assert "on?" in text and "assistant" in text


def test_a_full_disk_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeft.studio.jobs.write_text", full)
    before = len(server.studio.jobs.all())
    answer = server.post("/api/jobs", {"page": "plan", "form": "plan", "values": {"base": "b"}})
    assert answer.status == 507 and "No space left" in answer.json["error"]["message"]
    assert len(server.studio.jobs.all()) == before


# ── events and the guide ─────────────────────────────────────────────────────────────────────────


def test_events_tell_the_queue_and_the_lines_of_a_job(server: Server) -> None:
    number = server.studio.jobs.add(["train", "--steps", "3"], "train").id
    server.wait(number)
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    cookie = {"cookie": f"edgeft-studio-{server.port}={server.studio.key}"}
    connection.request("GET", f"/events?job={number}", headers=cookie)
    stream = connection.getresponse()
    events: dict[str, Any] = {}
    while len(events) < 3:
        line = stream.readline().decode().strip()
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("id: "):
            events["id"] = int(line.removeprefix("id: "))
        if line.startswith("data: "):
            events[name] = json.loads(line.removeprefix("data: "))
    connection.close()
    assert events["jobs"]["text"] == "No job runs"
    assert [line["done"] for line in events["lines"] if line["event"] == "progress"] == [1, 2, 3]
    assert events["id"] == (server.studio.jobs.get(number).folder / "progress.jsonl").stat().st_size


def test_the_guide_goes_from_an_own_file_to_the_verdict(tmp_path: Path) -> None:
    with serving_studio(tmp_path / "work", jobs=False) as server:
        assert "guide-base" not in server.get("/").text
        rows(server.root / "data/mine.csv.jsonl")
        text = server.get("/?data=data/mine.csv.jsonl&size=quick").text
        assert "<option selected>json</option>" in text, "every answer is a JSON object"
        numbers = server.post("/api/guide?step=").json["jobs"]
        jobs = [server.studio.jobs.get(number) for number in numbers]
        assert [job.command for job in jobs] == [
            "data clean", "data split", "data check", "baseline", "train", "merge-export", "ab",
        ]  # fmt: skip
        assert [job.after for job in jobs] == [None, 1, 2, 2, 3, 5, 6]
        assert "mine-splits/test.jsonl" in " ".join(jobs[-1].words)
        assert "disabled" in server.get("/").text, "they are queued already"
        number = server.post("/api/guide?step=chat").json["jobs"]
        assert len(number) == 1


@pytest.mark.parametrize(
    ("count", "share", "few"), [(50, "0.3", "15"), (400, "0.2", ""), (900, "0.1", "")]
)
def test_the_guide_gives_a_small_file_a_larger_test(
    tmp_path: Path, count: int, share: str, few: str
) -> None:
    with serving_studio(tmp_path / "work", jobs=False) as server:
        lines = [json.dumps({"prompt": f"{number}?", "answer": "yes"}) for number in range(count)]
        (server.root / "mine.jsonl").write_text("\n".join(lines))
        text = server.get("/?data=mine.jsonl").text
        assert f"--test {share}" in text
        assert (f"{count} rows leave about {few} for the test" in text) == bool(few)
        assert "rows leave" not in server.get("/?data=example").text
    assert QUICK_ITEMS >= minimum_items(0.05)


def test_the_guide_asks_for_columns_that_have_other_names(tmp_path: Path) -> None:
    with serving_studio(tmp_path / "work", jobs=False) as server:
        rows(server.root / "known.jsonl")
        (server.root / "own.csv").write_text(
            "id,Customer text,Intent\n1,where is my card,card_arrival\n"
        )
        (server.root / "odd.csv").write_text(
            "No;What they wrote;Desk;Day\nT-1;two chairs are late;shipping;2026-01-14\n"
        )
        text = html.unescape(server.get("/?data=odd.csv").text)
        assert "--columns 'prompt=What they wrote' --columns answer=Desk" in text
        assert '<option value="Desk" selected>Desk (shipping)</option>' in text
        text = server.get("/?data=own.csv").text
        assert "--columns 'prompt=Customer text' --columns answer=Intent" in html.unescape(text)
        assert re.search(r'id="guide-answer".*<option value="Intent" selected>Intent \(card', text)
        text = server.get("/?answer=id").text
        assert "--columns answer=id" in text
        assert "--columns" not in server.get("/?data=known.jsonl").text
        text = server.get("/?data=../etc/passwd").text
        assert "there is no" in text and "data-step" not in text


def test_what_was_made_by_hand_appears(server: Server) -> None:
    data = rows(server.root / "hand.jsonl")
    parents = {"data": store.identity(data), "base": "0" * 64}
    options = {"base": "smollm2-135m"}
    with store.writing(
        server.root / "by-hand", kind="adapter", options=options, parents=parents
    ) as draft:
        (draft.path / "adapter_config.json").write_text("{}")
        draft.facts |= {
            "loss": [[1, 2.5]],
            "validation_loss": [],
            "steps": 1,
            "seconds": 2,
            "tokens_per_second": 3,
        }
    text = server.get("/train").text
    assert "by-hand" in text and "2.500" in text
    text = server.get("/runs").text
    assert 'href="/file/by-hand"' in text and 'class="arrow"' in text and "smollm2-135m" in text
    assert server.get("/file/by-hand").status == 200
