"""README.md and docs/: links resolve, lists agree with the tree, examples can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_layers import FLOORS

from edgeft.cli import COMMANDS
from edgeft.data.rows import load_examples
from helpers.docs import DOCS, anchors, blocks, links, manual, pages, spans
from helpers.paths import ROOT

pytestmark = pytest.mark.unit

README_LINES = 150


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", named(pages()))
def test_every_relative_link_resolves(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        target, _, fragment = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link}: no such file"
        assert path.is_relative_to(ROOT), f"{link} leads out of the repository"
        if fragment:
            assert fragment in anchors(path), f"{link}: no such heading"


def test_the_index_names_every_page() -> None:
    linked = {(DOCS / link).resolve() for link in links(DOCS / "README.md")}
    missing = [page.name for page in DOCS.glob("*.md") if page.resolve() not in linked]
    assert missing == ["README.md"]
    results = {link for link in links(DOCS / "results" / "README.md")}
    assert {page.name for page in (DOCS / "results").glob("2*.md")} <= results


def test_the_readme_lists_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[`edgeft ([\w-]+)`\]", text, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("page", named(sorted((DOCS / "results").glob("2*.md"))))
def test_every_result_says_when_where_and_how(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", text, re.MULTILINE))
    assert rows.keys() >= {"date", "machine", "commit", "command", "runs"}
    assert page.name.startswith(rows["date"])


def test_the_architecture_page_has_the_floors_of_the_layer_test() -> None:
    (block,) = (b for b in blocks(DOCS / "architecture.md") if b.language == "floors")
    lines = dict(line.strip().split(maxsplit=1) for line in block.text.splitlines())
    expected = {str(number): floor for number, floor in enumerate(FLOORS, start=1)}
    assert lines == expected


@pytest.mark.parametrize("page", named(pages()))
def test_make_targets_exist(page: Path) -> None:
    shell = [line for block in blocks(page) for line in block.lines if block.language == "sh"]
    targets = {
        match[1] for text in (*spans(page), *shell) if (match := re.match(r"make ([\w-]+)", text))
    }
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert not {target for target in targets if f"\n{target}:" not in makefile}


def test_hooks_of_pre_commit_run_what_make_check_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    entries = re.findall(r"entry: (.+)", hooks)
    assert len(entries) == 4
    for entry in entries:
        known = entry.replace(".venv/bin/", "$(BIN)/").replace("make ", "\n")
        assert known in makefile, entry


def test_the_rows_of_the_data_page_can_be_read(tmp_path: Path) -> None:
    rows = [block.text for block in blocks(DOCS / "data.md") if block.language == "json"]
    assert len(rows) == 6
    *chats, document, pair = [json.dumps(json.loads(row)) + "\n" for row in rows]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(chats), encoding="utf-8")
    examples = load_examples(file)
    assert len(examples) == 4 and examples[3].choices and examples[3].tags
    file.write_text(document, encoding="utf-8")
    assert len(load_examples(file, layout="documents")) == 1
    file.write_text(pair, encoding="utf-8")
    (example,) = load_examples(file, layout="pairs")
    assert (example.answer, example.rejected[-1].content) == ("56", "54")


@pytest.mark.parametrize("page", named(manual()))
def test_python_examples_compile_and_modules_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(page), "exec")
    shell = [block.text for block in blocks(page)]
    for module in re.findall(r"python -m (edgeft[\w.]*)", "\n".join([*spans(page), *shell])):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
