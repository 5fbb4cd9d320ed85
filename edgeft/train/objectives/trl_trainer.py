"""What edgeft changes in every trainer of trl.

    class PairTrainer(Quiet, trl.DPOTrainer): ...
    trainer = PairTrainer(args=trl_arguments(trl.DPOConfig, arguments, beta=0.1), …)

The rows are already encoded, by the same code as for SFT. Nothing is sent to anyone, and no model card is
written.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers

from edgeft.errors import InputError
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import load_tokenizer
from edgeft.train.batches import GroupedSampler
from edgeft.train.protocol import without_peft

REFERENCE = "ref"
"""trl's name of the adapter as it was when the training began"""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Silent:
    """Sends no telemetry and writes no model card. The first base class of a trainer of trl."""

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass


class Quiet(Silent):
    """Takes rows that are already encoded, and groups them by length."""

    row_lengths: Sequence[int] = ()
    """tokens of each training row"""
    group_by_length = True

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        arguments: Any = self.args  # type: ignore[attr-defined]
        size = arguments.train_batch_size
        return GroupedSampler(list(self.row_lengths), size, arguments.seed, self.group_by_length)


def trl_arguments(config: Any, arguments: dict[str, Any], **more: Any) -> Any:
    """trl's configuration; its own defaults are for GPUs: bfloat16 and gradient checkpointing."""
    return config(**{"bf16": False, **arguments, **more})


def tokenizer_of(folder: Path) -> Any:
    """The base's tokenizer as trl wants it; edgeft encodes with its own."""
    chat, tokenizer = ChatTemplate.from_folder(folder), load_tokenizer(folder)
    end = chat.eos_token or next(iter(tokenizer.get_vocab()))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end
    )


def check_head(model: Any) -> None:
    """InputError for an adapter on the output layer, which trl's losses would not train."""
    head = without_peft(model).get_output_embeddings()
    if isinstance(head, peft.tuners.tuners_utils.BaseTunerLayer):
        raise InputError(
            "the loss multiplies by the head's weights, so that an adapter on them never trains",
            "leave the head out of --target-modules",
        )


@contextlib.contextmanager
def kept_as_it_is(model: Any) -> Iterator[None]:
    """What trl's constructors change in a model, and what the result on disk would then have:

    token ids of the configuration, the type of a packed base's adapter, autocast of a method's own, and,
    for the copy of an adapter that begins as a part of the base (PiSSA), the base itself.
    """
    causal_lm = without_peft(model)
    config = causal_lm.config.get_text_config()
    ids = {name: getattr(config, name, None) for name in TOKEN_IDS}
    dtypes = {weight: weight.dtype for weight in model.parameters() if weight.requires_grad}
    forward = causal_lm.__dict__.get("forward")
    adapter: Any = getattr(model, "peft_config", {}).get("default")
    start = getattr(adapter, "init_lora_weights", None)
    if start is not None:
        adapter.init_lora_weights = True
    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if bars is None:
            del os.environ["TQDM_DISABLE"]
    if start is not None:
        adapter.init_lora_weights = start
    for name, value in ids.items():
        setattr(config, name, value)
    for weight, dtype in dtypes.items():
        weight.data = weight.data.to(dtype)
    if forward is not None and causal_lm.forward is not forward:
        dtype = causal_lm.computes_in
        causal_lm.forward = torch.autocast(causal_lm.device.type, dtype=dtype)(causal_lm.forward)


def curves(log_history: list[dict[str, Any]], names: Mapping[str, str]) -> dict[str, Any]:
    """{entry: {"train": [[step, value], …], "validation": …}} of keys of trl's log."""
    entries: dict[str, dict[str, Any]] = {}
    for entry, key in names.items():
        for part, logged in (("train", key), ("validation", f"eval_{key}")):
            points = [[row["step"], round(row[logged], 4)] for row in log_history if logged in row]
            if points:
                entries.setdefault(entry, {})[part] = points
    return entries


def copy_to_reference(model: Any) -> None:
    """Give trl's adapter of the reference all values of the one that trains; trl copies only LoRA's matrices."""
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    peft.set_peft_model_state_dict(model, state, adapter_name=REFERENCE)
    for name, weight in model.named_parameters():
        if f".{REFERENCE}" in name:
            weight.requires_grad_(False)
