"""Plain text beside the chats: the oracle is the same model before its weights were rounded, and torch's gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError
from edgeft.weights.text_base import open_base
from helpers.adapters import with_lora

TEXT = "The lamp on the floor is old. " * 60


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_the_gradients_are_those_of_the_divergence_from_the_first_weights(
    tiny_base: Path,
) -> None:
    import torch

    from edgeft.train.ship.text_divergence import TEXT_WEIGHT, TextDivergence
    from edgeft.train.ship.weights import ShipWeights

    model = with_lora(tiny_base, ["q_proj", "up_proj"])
    ship = ShipWeights(model, open_base(tiny_base), "q4_0", teaches=True)
    ship.start()
    first = copy.deepcopy(model)
    for module in first.modules():
        module.__dict__.pop("ship_weight", None)
    for layer in ship.layers:  # the training has moved on
        layer.module.lora_B["default"].weight.data.mul_(0.5)
    ship.update(exact=True)
    windows = [[5, 6, 7, 8], list(range(9, 20))]
    divergence = TextDivergence(ship, model, windows).backward(3)
    gradients = [weight.grad.clone() for layer in ship.layers for weight in layer.lora()]
    model.zero_grad()
    ids = torch.tensor([windows[1]])
    with torch.no_grad():
        target = first(ids).logits[0].log_softmax(-1)
    said = model(ids).logits[0].log_softmax(-1)
    expected = (target.exp() * (target - said)).sum(-1).mean()
    assert divergence == pytest.approx(expected.item(), rel=1e-5) and divergence > 0.01
    (TEXT_WEIGHT * expected).backward()
    for layer, (one, other) in zip(ship.layers, _pairs(gradients), strict=True):
        for weight, gradient in zip(layer.lora(), (one, other), strict=True):
            torch.testing.assert_close(gradient, weight.grad)


def _pairs(gradients: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(gradients[::2], gradients[1::2], strict=True))


def test_windows_are_spread_over_the_text(tiny_base: Path, text: Path) -> None:
    from edgeft.tokenizer.hf_files import encoder
    from edgeft.train.ship.text_windows import PIECE_CHARS, TEXT_TOKENS, text_windows

    words = "".join(f"{number} lamps. " for number in range(600)).strip()
    text.write_text(words)
    encode = encoder(tiny_base)
    pieces = len(words) // PIECE_CHARS
    assert pieces > 3
    (one,) = text_windows(text, tiny_base, 1)
    assert one == encode(words[:PIECE_CHARS])[:TEXT_TOKENS] and len(one) == TEXT_TOKENS
    assert len(text_windows(text, tiny_base, 1000)) == pieces
    first, second = text_windows(text, tiny_base, 2)
    assert first == one and second == encode(words[len(words) // 2 :])[:TEXT_TOKENS]
    text.write_text("Few words.")
    assert text_windows(text, tiny_base, 9) == [encode("Few words.")]


def test_what_is_no_text_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    from edgeft.train.ship import text_windows

    for name, content, message in (
        ("empty.txt", " \n", "is empty"), ("rows.jsonl", "{}", "rows, not plain text"),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            text_windows(tmp_path / name, tiny_base, 1)
