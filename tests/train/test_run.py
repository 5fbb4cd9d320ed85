"""A run: what its libraries print, which request makes it complete, what an old adapter means."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.errors import InputError, StaleError
from edgeft.train import run
from edgeft.train.options import TrainOptions


def test_libraries_are_quiet_while_it_trains(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would show a bar of its own, and advice to developers."""
    import transformers

    from edgeft.train.methods import qlora

    class Reached(Exception):
        pass

    def look(*_: Any) -> None:
        warnings.warn("advice", UserWarning, stacklevel=1)
        assert not transformers.utils.logging.is_progress_bar_enabled()
        assert logging.getLogger("peft").level == logging.ERROR
        raise Reached

    transformers.utils.logging.enable_progress_bar()
    monkeypatch.setattr(qlora, "frozen_base", look)
    options = TrainOptions(tiny_base, tiny_chats, tmp_path / "adapter", compute_type="fp32")
    before = logging.getLogger("peft").level
    with warnings.catch_warnings(), pytest.raises(Reached):
        warnings.simplefilter("error")
        run.train(options)
    assert logging.getLogger("peft").level == before
    assert not options.output.exists()


def test_only_another_pair_than_the_first_is_named_in_the_manifest(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    """Adapters from before there was a choice stay complete."""
    options = TrainOptions(tiny_base, tiny_chats, tmp_path / "adapter")
    first = run._request(options, "qlora", "sft")
    assert first["options"] == options.to_json()
    assert set(first["parents"]) == {"base", "data"}
    other = run._request(options, "bitfit", "sft")
    assert other["options"] == options.to_json() | {"method": "bitfit"}
    assert other["parents"] == first["parents"]


def test_a_complete_adapter_is_returned_and_another_is_refused(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "adapter"
    more: dict[str, Any] = {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "save_every": 0,
                            "compute_type": "fp32"}  # fmt: skip
    manifest = run.train(TrainOptions(tiny_base, tiny_chats, output, **more))
    assert not output.with_name("adapter.work").exists()
    assert run.train(TrainOptions(tiny_base, tiny_chats, output, **more)) == manifest
    assert "is complete, nothing to do" in capsys.readouterr().err
    with pytest.raises(StaleError, match="a result with other lora_r"):
        run.train(TrainOptions(tiny_base, tiny_chats, output, lora_r=2, **more))
    assert store.read_manifest(output) == manifest


def test_an_unknown_method_is_refused_before_any_work(tiny_base: Path, tmp_path: Path) -> None:
    options = TrainOptions(tiny_base, tmp_path / "nowhere.jsonl", tmp_path / "adapter")
    with pytest.raises(InputError, match="no training method 'lora'"):
        run.train(options, method="lora")
