"""The studio in a headless browser, with a fake `edgeft` behind its jobs."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.studio import pages
from helpers.studio_server import Server, serving_studio

pytest.importorskip("uvicorn")

ROW = {"messages": [{"role": "user", "content": "on?"}, {"role": "assistant", "content": "{}"}]}
ADDRESSES = ["/", *(f"/{page.name}" for page in pages.PAGES if page.name != "start")]

Opened = Callable[..., Any]
AXE = "4.11.0"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving_studio(tmp_path / "work") as running:
        (running.root / "chats.jsonl").write_text(json.dumps(ROW) + "\n")
        yield running


@pytest.fixture
def opened(browser: Any, server: Server) -> Iterator[Opened]:
    """opened("/data") -> a page of the studio, with its key; scripts that fail end the test."""
    contexts: list[Any] = []
    problems: list[str] = []

    def heard(kind: str, text: str) -> None:
        if kind == "error" and "Failed to load resource" not in text:
            problems.append(text)

    def open_page(path: str = "/", width: int = 1280, **settings: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: heard(said.type, said.text))
        page.goto(f"{server.url}/?key={server.studio.key}")
        page.goto(server.url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def test_a_form_shows_its_command_is_kept_and_becomes_a_job(opened: Opened, server: Server) -> None:
    page = opened("/train")
    line = page.locator("#form-train pre code")
    page.get_by_label("Data", exact=False).first.fill("chats.jsonl")
    page.locator("#form-train summary").click()
    page.locator("#form-train [type=search]").fill("rslora")
    page.get_by_role("checkbox", name="Use rslora").check()
    page.get_by_text(
        "edgeft train --base smollm2-135m --data chats.jsonl --output adapter --use-rslora"
    ).wait_for()
    button(page, "TOML").click()
    assert "use-rslora = true" in line.inner_text()
    page.reload()
    page.get_by_text("--use-rslora").wait_for()
    assert page.get_by_label("Data", exact=False).first.input_value() == "chats.jsonl"
    page.get_by_label("LoRA rank").fill("0")
    button(page, "Start training").click()
    page.get_by_role("alert").filter(has_text="--lora-r").wait_for()
    assert server.studio.jobs.all() == []
    page.get_by_label("LoRA rank").fill("")
    page.locator("#train-steps").fill("4")
    button(page, "Start training").click()
    page.wait_for_url("**/jobs/1")
    page.get_by_text("done", exact=True).wait_for()
    page.locator("#plot-loss svg").wait_for()
    assert "4 / 4" in page.locator("#figures").inner_text()
    page.get_by_role("link", name="Export →").click()
    assert page.locator("#form-export .others").first.input_value() == "adapter", (
        "it made no manifest"
    )
    page.goto(f"{server.url}/train")
    assert page.get_by_label("Data", exact=False).first.input_value() == "", (
        "a started form is fresh"
    )


def test_a_running_job_is_drawn_stopped_and_told_to_other_pages(
    opened: Opened, server: Server
) -> None:
    number = server.studio.jobs.add(["train", "--steps", "500", "--sleep", "0.05"], "train").id
    page, other = opened(f"/jobs/{number}"), opened("/data")
    other.get_by_text("1 running").wait_for()
    page.locator("#figures", has_text="left").wait_for()
    first = page.locator("#bars .count").inner_text()
    page.locator("#bars .count").filter(has_not_text=first).wait_for()
    page.reload()
    page.locator("#plot-loss svg").wait_for()
    button(page, "Stop").click()
    page.get_by_text("stopped", exact=True).first.wait_for()
    other.get_by_text("No job runs").wait_for()
    button(page, "Run again").click()
    page.wait_for_url(f"**/jobs/{number + 1}")


def test_the_guide_runs_what_is_chosen_also_after_its_steps_were_fetched_again(
    opened: Opened, server: Server
) -> None:
    page, other = opened("/?data=chats.jsonl"), opened("/?data=chats.jsonl")
    with page.expect_response(lambda answer: "size=full" in answer.url):
        page.get_by_label("Effort").select_option("full")
    with other.expect_response(lambda answer: "base=other" in answer.url):
        other.evaluate("document.querySelector('#guide-base').append(new Option('other'))")
        other.get_by_label("Base model").select_option("other")
    page.locator("code", has_text="--output chats/adapter").wait_for()
    button(page, "Run all that is open").click()
    page.locator(".steps li", has=page.get_by_text("Clean the rows", exact=True)).get_by_text(
        "done", exact=True
    ).wait_for()
    page.get_by_role("heading", name="Recent jobs").wait_for()
    lines = [" ".join(job.words) for job in server.studio.jobs.all()]
    assert any("--output chats/adapter" in line for line in lines)
    assert not any("other" in line for line in lines), "another page's choice"


@pytest.mark.slow
def test_the_button_of_a_server_comes_when_it_listens(opened: Opened, server: Server) -> None:
    number = server.studio.jobs.add(["serve", "a.gguf", "--port", "0"], "chat").id
    page = opened(f"/jobs/{number}")
    link = page.get_by_role("link", name="Open the chat →")
    link.wait_for()
    assert link.get_attribute("href") == "http://127.0.0.1:65000"
    page.goto(f"{server.url}/chat")
    page.get_by_role("link", name="Open the chat", exact=True).wait_for()


def test_a_delete_is_undone_and_a_file_renamed(opened: Opened, server: Server) -> None:
    page = opened("/runs")
    button(page, "Delete").click()
    button(page, "Undo").click()
    page.get_by_role("link", name="chats.jsonl").wait_for()
    assert (server.root / "chats.jsonl").is_file()
    button(page, "Rename").click()
    page.get_by_label("New name").fill("talks.jsonl")
    page.get_by_label("New name").press("Enter")
    page.get_by_role("link", name="talks.jsonl").wait_for()
    button(page, "Delete").click()
    page.get_by_text("Moved to the trash").wait_for()
    page.reload()
    button(page, "Restore").click()
    page.get_by_role("link", name="talks.jsonl").wait_for()


@pytest.mark.slow
def test_a_file_is_uploaded_and_offered(opened: Opened, server: Server, tmp_path: Path) -> None:
    page = opened("/data")
    page.locator("#file").set_input_files(
        [{"name": "new rows.csv", "mimeType": "text/csv", "buffer": b"prompt,answer\na,b\n"}]
    )
    page.wait_for_url("**/data?form=check&data=*")
    page.get_by_text("edgeft data check 'data/new rows.csv'").wait_for()
    page.get_by_role("tab", name="Split").click()
    assert "form=split" in page.url
    page.locator("#file").set_input_files(
        [{"name": "evil.exe", "mimeType": "text/csv", "buffer": b"MZ"}]
    )
    page.get_by_text("no data file by its name").wait_for()
    page.reload()


@pytest.mark.slow
def test_runs_are_compared_in_one_plot(opened: Opened, server: Server) -> None:
    for name in ("one", "</script><b>two"):
        facts = {"loss": [[step, 3 / step] for step in range(1, 60)], "validation_loss": [[59, 1.0]],
                 "steps": 59, "seconds": 9.0, "tokens_per_second": 100.0}  # fmt: skip
        with store.writing(
            server.root / name.replace("/", ""), kind="adapter", options={}, parents={}
        ) as draft:
            (draft.path / "adapter_config.json").write_text("{}")
            draft.facts |= facts
    page = opened("/train")
    curves = page.locator("#compare-loss path.curve:not(.faint)")
    curves.nth(1).wait_for()
    page.get_by_role("checkbox", name="Show one").uncheck()
    assert curves.count() == 1 and page.locator("#compare-validation circle").count() == 1


@pytest.mark.slow
def test_the_keyboard_alone_suffices(opened: Opened) -> None:
    page = opened("/data")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.get_by_role("tab", name="Check").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-preview"
    assert (
        page.locator("#panel-preview").is_visible()
        and not page.locator("#panel-check").is_visible()
    )
    page.keyboard.press("Tab")
    assert page.evaluate(
        "document.querySelector('#panel-preview').contains(document.activeElement)"
    )


@pytest.mark.slow
def test_language_and_colours_are_kept(opened: Opened) -> None:
    page = opened("/train")
    page.get_by_label("Colours").select_option("dark")
    page.get_by_label("Language").select_option("zh")
    page.get_by_role("heading", name="训练").wait_for()
    page.reload()
    page.get_by_role("button", name="开始训练").wait_for()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 18, 22)"


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_the_window(
    opened: Opened, server: Server, width: int, language: str
) -> None:
    server.wait(server.studio.jobs.add(["train", "--data", "x" * 300], "train").id)
    page = opened("/", width, locale=language)
    for address in [*ADDRESSES, "/jobs/1", "/file/chats.jsonl", "/?data=example"]:
        page.goto(server.url + address)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{address}: {wide}"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core (MPL-2.0), from the package index and in no commit."""
    folder = tmp_path_factory.mktemp("axe")
    try:
        subprocess.run(
            ["npm", "pack", "--silent", f"axe-core@{AXE}"], cwd=folder, check=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError):
        pytest.skip("there is no npm, or no axe-core")
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        script = package.extractfile("package/axe.min.js")
        assert script
        return script.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_finding(
    opened: Opened, server: Server, axe: str, scheme: str, width: int
) -> None:
    server.wait(server.studio.jobs.add(["train", "--steps", "40"], "train").id)
    server.wait(server.studio.jobs.add(["train", "--exit", "1"], "train").id)
    page = opened("/", width, bypass_csp=True, color_scheme=scheme)
    addresses = [*ADDRESSES, "/jobs/1", "/jobs/2", "/jobs/9", "/file/chats.jsonl", "/?data=example"]
    found = []
    for address in addresses:
        page.goto(server.url + address)
        for details in page.locator("details").all():
            details.evaluate("e => e.open = true")
        page.evaluate(axe)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [
            f"{address}: {one['id']}: {one['help']}: {[node['html'][:150] for node in one['nodes'][:3]]}"
            for one in result["violations"]
            if one["impact"] in ("serious", "critical")
        ]
    assert not found, "\n".join(found)
