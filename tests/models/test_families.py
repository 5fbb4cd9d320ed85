"""Every family: a tiny random model with a live adapter, held to transformers' logits.

The oracle is peft's live adapter on transformers' model in float32 (`families.py`, for ChatGLM
`chatglm.py`); what is held to it is the float32 GGUF of edgeft's single pass, run by llama.cpp.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Family

from edgeft import models
from edgeft.merge.view import open_merged
from edgeft.records import Limits
from edgeft.runtimes.gguf import GGUFRuntime
from helpers.converting import convert
from helpers.families import (
    CHATGLM,
    TEXT,
    TINY,
    architecture_of,
    by_family,
    exact_gelu,
    half_gelu,
    make_tiny,
)


@pytest.mark.parametrize("case", TINY)
def test_gguf_has_the_logits_of_the_live_adapter(make: Family, case: str, tmp_path: Path) -> None:
    import torch

    base, adapter, live = make(case)
    merged = open_merged(base, adapter)
    converted = convert(merged, tmp_path / "x.gguf", "f32")
    assert converted.proof().beta == pytest.approx(1, abs=1e-4)
    with GGUFRuntime(tmp_path / "x.gguf", context=128, exact=True) as model:
        ids = model.encode(TEXT)
        got = model.logits(ids)
        chosen = [token.id for token in model.stream(ids, Limits(max_tokens=8, ignore_eos=True))]
    with torch.inference_mode():
        wanted = live(torch.tensor([ids])).logits[0].numpy()
        with live.disable_adapter():
            base_logits = live(torch.tensor([ids])).logits[0].numpy()
        greedy = live.generate(
            torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False
        )[0, len(ids) :]
    size = got.shape[1]
    assert np.abs(base_logits - wanted).max() > 1, "an adapter that changes nothing proves nothing"
    assert np.abs(got - wanted[:, :size]).max() < 1e-3 * wanted.std()
    assert chosen == greedy.tolist()


@pytest.mark.parametrize(
    "case",
    by_family([case for case, tiny in TINY.items() if tiny.config != CHATGLM], "llama-linear"),
)
def test_the_merged_folder_has_the_logits_of_the_live_adapter(
    make: Family, case: str, tmp_path: Path
) -> None:
    import torch
    import transformers

    base, adapter, live = make(case)
    merged = open_merged(base, adapter)
    assert "hf" in merged.card.formats
    assert convert(merged, tmp_path, "f32", format="hf").proof().tensors
    folder = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.inference_mode(), exact_gelu(live):  # the table of float16 makes steps
        got, wanted = folder.eval()(ids).logits, live(ids).logits
    assert (got - wanted).abs().max() < 1e-3 * wanted.std()


@pytest.mark.parametrize("case", [case for case, tiny in TINY.items() if tiny.half_gelu])
def test_the_gelu_of_llama_cpp_is_close_to_transformers(case: str, tmp_path: Path) -> None:
    import torch

    # It is the 11 bits of float16: the tanh form and the one by erf are equally far.
    _, _, live = make_tiny(tmp_path, dataclasses.replace(TINY[case], half_gelu=False))
    ids = torch.arange(200).reshape(4, 50)
    with torch.inference_mode():
        exact = live(ids).logits.numpy()
        half_gelu(live)
        table = live(ids).logits.numpy()
    off = np.abs(table - exact).max() / exact.std()
    assert 0 < off < 1e-2


@pytest.mark.parametrize("case", TINY)
def test_default_targets_are_every_linear_layer(make: Family, case: str) -> None:
    import torch

    left = {
        name.rpartition(".")[2]
        for name, module in make(case)[2].named_modules()
        if type(module) is torch.nn.Linear and not re.search(r"\.(base_layer|lora_.*)$", name)
    }
    # without `experts`, peft takes the names of a dense layer's linears for those of the experts
    missed = set() if TINY[case].experts else set(TINY[case].linears)
    assert left <= {"lm_head", "output_layer"} | missed


def test_every_card_is_held_to_a_model() -> None:
    import transformers

    tested = set()
    for tiny in TINY.values():
        architecture = architecture_of(tiny)
        assert tiny.config == CHATGLM or hasattr(transformers, architecture)
        tested.add(models.card_for({"architectures": [architecture]}).family)
    assert {card.family for card in models.cards()} == tested
