"""The page and the picture of a training, from its manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeft import store
from edgeft.errors import InputError, StaleError
from edgeft.report import training
from helpers.releases import HOSTILE

pytestmark = pytest.mark.unit

LOSS = [[step, round(4.0 - 0.01 * step, 4)] for step in range(1, 101)]
VALIDATION = [[50, 3.6], [100, 3.1]]
RATES = [[step, 1e-5 * step] for step in range(1, 101)]


def adapter(folder: Path, **facts: Any) -> Path:
    """A folder with a manifest as a training writes it."""
    found = {"steps": 100, "tokens": 1234, "seconds": 9.5, "tokens_per_second": 129.9,
             "examples": {"train": 8, "validation": 2}, "loss": LOSS, "validation_loss": VALIDATION,
             "learning_rate": RATES} | facts  # fmt: skip
    with store.writing(
        folder / "adapter",
        kind="adapter",
        options={"base": "b", "lora_r": 16},
        parents={"base": "x"},
    ) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
        draft.facts.update(found)
    return folder / "adapter"


class Texts(HTMLParser):
    """The text of a page without its style sheet, and its elements' attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.attributes, self.styled = "", [], False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.styled = tag == "style"
        self.attributes.append(dict(attrs) | {"tag": tag})

    def handle_data(self, data: str) -> None:
        self.text += "" if self.styled else data


def points(svg: str, look: str) -> list[tuple[float, float]]:
    """The corners of a curve, in units of the figure."""
    (found,) = re.findall(rf'class="curve {look}" points="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]


def test_the_curves_of_the_page_are_those_of_the_manifest(tmp_path: Path) -> None:
    run = training.read(adapter(tmp_path))
    svg = str(training.loss_plot(run))
    train, validation = points(svg, "training"), points(svg, "validation")
    assert len(train) == 100 and len(validation) == 2
    # both share the axes: a straight line of losses stays straight, and equal steps lie above each other
    assert validation[1][0] == train[99][0] and validation[0][0] == train[49][0]
    slope = (train[99][1] - train[0][1]) / (LOSS[99][1] - LOSS[0][1])
    expected = train[0][1] + slope * (VALIDATION[0][1] - LOSS[0][1])
    assert validation[0][1] == pytest.approx(expected, abs=0.15)
    assert train[0][1] < train[99][1]  # a lower loss lies lower


def test_the_page_names_the_lowest_validation_loss(tmp_path: Path) -> None:
    run = training.read(adapter(tmp_path, validation_loss=[[10, 2.5], [20, 2.25], [30, 2.75]]))
    assert run.summary() == {
        "steps": 100, "loss": 3.0, "validation_loss": 2.75, "lowest_validation_loss": 2.25,
        "lowest_at_step": 20.0,
    }  # fmt: skip
    text = " ".join(Texts(training.html(run)).text.split())
    assert "lowest 2.25 at step 20" in text and "1,234" in text and "lora_r = 16" in text


def test_long_runs_are_drawn_as_means(tmp_path: Path) -> None:
    steps = 10 * training.MAX_DRAWN_POINTS + 3
    curve = [[step, float(step % 2)] for step in range(steps)]
    whole_axis = [[0, 0.0], [steps, 1.0]]
    folder = adapter(tmp_path, loss=curve, validation_loss=whole_axis)
    svg = str(training.loss_plot(training.read(folder)))
    drawn = points(svg, "training")
    assert len(drawn) <= training.MAX_DRAWN_POINTS
    heights = [y for _, y in drawn[:-1]]
    assert max(heights) - min(heights) < 0.2 * 200  # noise of single steps is gone


def test_a_manifest_without_rates_or_validation_has_a_page(tmp_path: Path) -> None:
    run = training.read(adapter(tmp_path, validation_loss=[], learning_rate=None))
    page = training.html(run)
    assert "Learning rate</h3>" not in page and "validation loss" not in Texts(page).text
    one = training.read(adapter(tmp_path / "one", loss=[[1, 2.0]], validation_loss=[]))
    assert 'class="training"' in str(training.loss_plot(one))


def test_hostile_manifests_are_shown_as_text_and_numbers(tmp_path: Path) -> None:
    folder = adapter(tmp_path, device=HOSTILE, steps=HOSTILE, tokens=[1], examples=7,
                     loss=[[1, 2.0], [2, "x"], "y", [3], [4, True], [5, 1e999], [6, 3.0]])  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["options"] = {HOSTILE: HOSTILE}
    manifest["parents"] = {HOSTILE: HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run = training.read(folder)
    assert run.losses["training loss"] == ((1, 2.0), (6, 3.0))
    page = Texts(training.html(run))
    assert HOSTILE in page.text
    tags = {item["tag"] for item in page.attributes}
    assert not tags & {"script", "img", "iframe"}
    hrefs = {str(item["href"]) for item in page.attributes if "href" in item}
    assert all(href.startswith("#") or href == "data:," for href in hrefs)
    assert not [key for item in page.attributes for key in item if str(key).startswith("on")]


def test_what_is_no_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no manifest"):
        training.read(tmp_path)
    with pytest.raises(InputError, match="no result of a training"):
        training.read(adapter(tmp_path, loss=None, validation_loss="x"))


def test_the_page_replaces_itself_and_nothing_else(tmp_path: Path) -> None:
    run = training.read(adapter(tmp_path))
    page = tmp_path / "adapter.html"
    training.write_page(run, page)
    training.write_page(run, page)
    page.write_text("<p>mine</p>")
    with pytest.raises(StaleError, match="no page of a training"):
        training.write_page(run, page)
    assert page.read_text() == "<p>mine</p>"


def test_a_plot_is_a_whole_svg_or_png(tmp_path: Path) -> None:
    run = training.read(adapter(tmp_path))
    training.write_plot(run, tmp_path / "plots" / "loss.svg")
    root = ElementTree.fromstring((tmp_path / "plots" / "loss.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    with pytest.raises(InputError, match="ends in none of .png, .svg"):
        training.write_plot(run, tmp_path / "loss.pdf")
    pytest.importorskip("matplotlib")
    training.write_plot(run, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob(".*partial*"))


def test_the_command_leaves_the_adapter_as_it_is(
    edgeft: Callable[..., Any], tmp_path: Path
) -> None:
    folder = adapter(tmp_path)
    identity, before = store.identity(folder), sorted(folder.iterdir())
    ran = edgeft("report", folder, "--plot", tmp_path / "loss.svg")
    assert ran.out.splitlines() == [str(tmp_path / "adapter.html"), str(tmp_path / "loss.svg")]
    assert sorted(folder.iterdir()) == before and store.identity(folder) == identity
    result = json.loads(edgeft("report", folder, "--out", tmp_path / "page", "--json").out)
    assert result["page"] == str(tmp_path / "page" / "adapter.html")
    assert (result["loss"], result["lowest_at_step"]) == (3.0, 100.0)


def test_a_plot_without_its_package_is_refused_before_the_page(
    edgeft: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    ran = edgeft("report", adapter(tmp_path), "--plot", tmp_path / "loss.png")
    assert ran.code == 1 and "pip install 'edgeft[plot]'" in ran.err
    assert not (tmp_path / "adapter.html").exists()
    assert edgeft("report", tmp_path / "report.json", "--plot", "x.svg").code == 2


def test_the_curves_of_an_alignment_are_drawn(tmp_path: Path) -> None:
    accuracy = {"train": [[1, 0.5], [2, 0.9]], "validation": [[2, 0.8]]}
    folder = adapter(
        tmp_path, reward_accuracy=accuracy, kl={"train": [[1, 0.0], [2, 0.1]], "validation": []},
        **{"reward_length:200": {"train": [[1, 0.25], [2, 1.0]]}}, reward_margin={"train": [["1", None]]},
        left_out={"longer": 0}, **{"reward_<script>": accuracy},
    )  # fmt: skip
    run = training.read(folder)
    assert list(run.measures) == ["reward_accuracy", "kl", "reward_<script>", "reward_length:200"]
    assert run.measures["reward_accuracy"]["validation"] == ((2.0, 0.8),)
    page = training.html(run)
    for name in ("reward_accuracy", "kl", "reward_length:200"):
        assert f"<h3>{name}</h3>" in page
    assert "reward_margin</h3>" not in page and "<script>" not in page
    assert "share of pairs whose better answer has the larger reward".capitalize() in page
    assert "reward_length:200 against step. training: from 0.25 to 1." in page
