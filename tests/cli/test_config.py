"""`--config run.toml`: whose folder relative paths belong to, and what goes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from edgeft.cli import group

pytestmark = pytest.mark.unit


def parsed(name: str, *args: object) -> dict[str, Any]:
    """The parameters of a command as its function gets them."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    parent = click.Context(group, info_name="edgeft")
    return command.make_context(name, [str(arg) for arg in args], parent=parent).params


def test_relative_paths_of_a_file_belong_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "model").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    config = tmp_path / "runs" / "run.toml"
    config.write_text(
        "base = 'model'\ndata = '../chats.jsonl'\noutput = '/absolute/out'\nvalidation-data = '~/v.jsonl'\n"
    )
    for folder in (tmp_path, tmp_path / "runs", tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        params = parsed("train-qlora", "--config", config)
        assert Path(params["base"]).resolve() == tmp_path / "runs" / "model"
        assert params["data"].resolve() == tmp_path / "chats.jsonl"
        assert params["output"] == Path("/absolute/out")
        assert params["validation_data"] == Path.home() / "v.jsonl"


def test_a_base_that_is_no_path_beside_the_file_stays_a_name(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    for name in ("smollm2-135m", "owner/name", "x" * 5000):
        config.write_text(f"base = '{name}'\ndata = 'd.jsonl'\noutput = 'a'\n")
        assert parsed("train-qlora", "--config", config)["base"] == name


def test_paths_with_weights_and_words_like_auto(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("adapter = ['one:0.5', '/two']\nimatrix = 'auto'\nout = 'o'\n")
    params = parsed("merge-export", "--config", config)
    assert [(str(item.path), item.weight) for item in params["adapter"]] == [
        (f"{tmp_path}/one", 0.5),
        ("/two", 1.0),
    ]
    assert params["imatrix"] == "auto"
    (tmp_path / "auto").touch()  # as on the command line, the word is meant
    assert parsed("merge-export", "--config", config)["imatrix"] == "auto"
    config.write_text("adapter = 'one'\nimatrix = 'm.gguf'\nout = 'o'\n")
    (tmp_path / "m.gguf").touch()
    assert parsed("merge-export", "--config", config)["imatrix"] == str(tmp_path / "m.gguf")


def test_a_typed_option_goes_before_the_file_and_stays_relative_to_the_current_folder(
    tmp_path: Path,
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        "learning_rate = 1e-4\nlora-r = 4\ndata = 'a.jsonl'\nbase = 'b'\noutput = 'o'\n"
    )
    params = parsed("train-qlora", "--config", config, "--data", "typed.jsonl", "--lora-r", 8)
    assert params["data"] == Path("typed.jsonl")
    assert (params["lora_r"], params["learning_rate"]) == (8, 1e-4)
