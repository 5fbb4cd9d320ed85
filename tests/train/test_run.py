"""A run: what its libraries print, which request makes it complete, what an old adapter means."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.data.splits import fingerprint, validation_examples
from edgeft.errors import DataError, InputError, StaleError
from edgeft.export.fine_tune_data import fine_tune_data
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.train import run
from edgeft.train.options import FIRST_FIELDS, TrainOptions


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
    assert set(first["options"]) == FIRST_FIELDS
    assert "use_dora" in dataclasses.replace(options, use_dora=True).to_json()
    assert set(first["parents"]) == {"base", "data"}
    other = run._request(options, "bitfit", "sft")
    assert other["options"] == options.to_json() | {"method": "bitfit"}
    assert other["parents"] == first["parents"]


def test_options_younger_than_the_first_adapters_are_recorded_where_they_are_chosen(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    plain = TrainOptions(tiny_base, tiny_chats, tmp_path / "adapter")
    assert set(plain.to_json()) == FIRST_FIELDS
    chosen = TrainOptions(
        tiny_base, tiny_chats, tmp_path / "adapter", optimizer="lion", optimizer_args=("a=1",)
    )
    assert chosen.to_json() == plain.to_json() | {"optimizer": "lion", "optimizer_args": ["a=1"]}


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
    with pytest.raises(InputError, match="no training method 'lor'"):
        run.train(options, method="lor")


def test_bad_rows_are_skipped_and_recorded(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "chats.jsonl"
    rows = tiny_chats.read_text().splitlines()
    rows[3:3] = ['{"instruction": "q", "output": ""}', '{"text": "x"}']
    rows[9] = json.dumps(json.loads(rows[9]) | {"id": 7})
    data.write_text("\n".join(rows))
    more: dict[str, Any] = {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "save_every": 0,
                            "compute_type": "fp32", "validation_size": 4}  # fmt: skip
    with pytest.raises(DataError, match="chats.jsonl:4: .*; line 5: .*2 of 42 rows are bad"):
        run.train(TrainOptions(tiny_base, data, tmp_path / "adapter", **more))
    options = TrainOptions(tiny_base, data, tmp_path / "adapter", bad_rows="skip", **more)
    manifest = run.train(options)
    notes = capsys.readouterr().err
    assert "2 of 42 rows" in notes and "not used: id (1 row)" in notes
    shown = r"the first example, line \d+, with what is learned in ⟦ ⟧:\n<\|im_start\|>user\n"
    assert re.search(shown, notes)
    assert "<|im_start|>assistant\n⟦{" in notes and "<|im_end|>⟧\n" in notes
    assert manifest.facts["rows"]["data"]["skipped"]["count"] == 2
    assert manifest.facts["rows"]["data"]["ignored"] == {"id": 1}
    assert manifest.options["bad_rows"] == "skip"
    validation = validation_examples(manifest.options)
    assert fingerprint(validation) == manifest.facts["validation_items"] and len(validation) == 4
    plain = TrainOptions(tiny_base, data, tmp_path / "adapter", **more)
    assert "bad_rows" not in plain.to_json(), "adapters of earlier versions stay complete"


def test_a_row_that_the_template_refuses_stops_the_run_or_is_skipped(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    refuse = "{% if 'lamp c' in messages[0].content %}{{ raise_exception('no c') }}{% endif %}"
    config["chat_template"] = refuse + config["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    more: dict[str, Any] = {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "save_every": 0,
                            "compute_type": "fp32", "validation_size": 0}  # fmt: skip
    with pytest.raises(DataError, match=r"chats.jsonl:3: .*no c \(also line 29\); 2 of 40 rows"):
        run.train(TrainOptions(base, tiny_chats, tmp_path / "adapter", **more))
    assert not (tmp_path / "adapter").exists()
    options = TrainOptions(base, tiny_chats, tmp_path / "adapter", bad_rows="skip", **more)
    facts = run.train(options).facts
    assert facts["examples"]["train"] == 38 and facts["left_out"]["refused"] == 2
    data = fine_tune_data((Weighted(tmp_path / "adapter"),), None, None)
    assert len(data.training) == 40 and data.bad_rows == "skip"
    assert len(data.renderable(ChatTemplate.from_folder(base)).training) == 38


def test_the_validation_curve_takes_a_tenth_of_the_time(tmp_path: Path) -> None:
    from edgeft.train.loop import evaluation_steps

    options = TrainOptions(tmp_path, tmp_path, tmp_path, batch_size=8)
    # 320 steps of 8; a forward pass is half of a step.
    assert evaluation_steps(options, steps=320, examples=40) == 64, "five points"
    assert evaluation_steps(options, steps=320, examples=256) == 160, "two of 5 % each"
    assert evaluation_steps(options, steps=3, examples=5000) == 3, "one at least"
    every = dataclasses.replace(options, eval_every=7)
    assert evaluation_steps(every, steps=3, examples=5000) == 7


@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_threads_is_a_number(tmp_path: Path, threads: str) -> None:
    with pytest.raises(InputError, match=f"--threads {threads} is no number, nor all or auto"):
        TrainOptions(tmp_path, tmp_path, tmp_path, threads=threads)
