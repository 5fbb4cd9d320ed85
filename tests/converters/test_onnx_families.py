"""ONNX graphs of every family, run by plain ONNX Runtime and held to transformers' logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from families import TINY, _randomize

from edgeft.converters._onnx_families import builder_class
from edgeft.errors import FormatError

VOCABULARY, LENGTH, STEPS = 96, 44, 4


def model_of(case: str) -> Any:
    import torch
    import transformers

    tiny = TINY[case]
    config = getattr(transformers, tiny.config)(
        vocab_size=VOCABULARY, eos_token_id=2, bos_token_id=1, pad_token_id=2,
        **copy.deepcopy(tiny.options),
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    _randomize(model, tiny.std)
    model.config.architectures = [type(model).__name__]
    return model.eval()


def built(model: Any, folder: Any) -> Any:
    import onnx_ir as ir

    build = builder_class(model.config)
    builder = build(
        model.config, ir.DataType.FLOAT, ir.DataType.FLOAT, "cpu", str(folder / "cache"), {"windowed_kv_cache": False}
    )
    builder.load_weights = lambda _: model
    builder.make_model("")
    return builder


def session_of(builder: Any, folder: Any) -> Any:
    import onnxruntime

    builder.save_model(str(folder))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / "model.onnx", options)


def runner(session: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Logits of the next tokens, with the cache of those before."""
    names = [value.name for value in session.get_inputs()]
    past = {
        value.name: np.zeros((1, value.shape[1], 0, 16), np.float32)
        for value in session.get_inputs() if "past" in value.name
    }  # fmt: skip
    done = 0

    def run(ids: np.ndarray) -> np.ndarray:
        nonlocal done
        total = done + len(ids)
        feed = {
            "input_ids": ids[None], "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(done, total)[None],
        }  # fmt: skip
        feed = {name: feed[name] for name in names if name in feed} | past
        outputs = dict(
            zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True)
        )
        for name in past:
            past[name] = outputs[name.replace("past_key_values", "present")]
        done = total
        return outputs["logits"][0]

    return run
