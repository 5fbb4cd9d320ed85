"""`--target-modules`: names, all-linear, a regular expression; what no module has is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Family

from edgeft.errors import InputError

ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_all_linear_is_every_linear_layer_but_the_head(tiny_base: Path, make: Family) -> None:
    from edgeft.train.methods.base_model import outline, target_modules

    assert target_modules(outline(tiny_base), ("all-linear",), ()) == ALL
    pythia = outline(make("pythia")[0])
    assert "embed_out" not in target_modules(pythia, ("all-linear",), ())


def test_a_pattern_may_hold_commas(tiny_base: Path) -> None:
    from edgeft.train.methods.base_model import outline, target_modules
    from edgeft.train.targets import is_target

    model = outline(tiny_base)
    pattern = target_modules(model, (r".*layers\.[0-9]{1", r"2}\.mlp\.(up|down)_proj"), ())
    assert pattern == r".*layers\.[0-9]{1,2}\.mlp\.(up|down)_proj"
    chosen = [name for name, _ in model.named_modules() if is_target(name, pattern)]
    assert len(chosen) == 4 and all(re.search("up|down", name) for name in chosen)


@pytest.mark.parametrize(("chosen", "message"), [
    ("q_prok", "no modules named q_prok"),
    ("*_proj", r"'\*_proj' is no pattern: nothing to repeat"),
    (".*q_proj.weight", "matches no module .*it must match a whole name, such as"),
])  # fmt: skip
def test_what_no_module_has_is_refused(tiny_base: Path, chosen: str, message: str) -> None:
    from edgeft.train.methods.base_model import outline, target_modules

    with pytest.raises(InputError, match=message):
        target_modules(outline(tiny_base), (chosen,), ALL)
