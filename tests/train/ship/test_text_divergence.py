"""Plain text beside the chats: the oracle is the same model before its weights were rounded, and torch's gradients."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.errors import InputError
from edgeft.weights.text_base import open_base
from helpers.adapters import with_lora
from helpers.shipping import move_on


def test_the_gradients_are_those_of_the_divergence_from_the_first_weights(
    tiny_base: Path,
) -> None:
    import torch

    from edgeft.train.ship.text_divergence import TEXT_WEIGHT, TextDivergence
    from edgeft.train.ship.weights import ShipWeights

    model = with_lora(tiny_base, ["q_proj", "up_proj"])
    ship = ShipWeights(model, open_base(tiny_base), "q4_0", teaches=True)
    ship.start()
    first = move_on(model, ship)
    windows = [[5, 6, 7, 8], list(range(9, 20))]
    divergence = TextDivergence(ship, model, windows).backward(3)
    weights = [weight for layer in ship.layers for weight in layer.lora()]
    gradients = [weight.grad.clone() for weight in weights]
    model.zero_grad()
    ids = torch.tensor([windows[1]])
    with torch.no_grad():
        target = first(ids).logits[0].log_softmax(-1)
    said = model(ids).logits[0].log_softmax(-1)
    expected = (target.exp() * (target - said)).sum(-1).mean()
    assert divergence == pytest.approx(expected.item(), rel=1e-5) and divergence > 0.01
    (TEXT_WEIGHT * expected).backward()
    for weight, gradient in zip(weights, gradients, strict=True):
        torch.testing.assert_close(gradient, weight.grad)


def test_windows_are_spread_over_the_text(tiny_base: Path, tmp_path: Path) -> None:
    from edgeft.tokenizer.hf_files import encoder
    from edgeft.train.ship.text_windows import PIECE_CHARS, TEXT_TOKENS, text_windows

    text = tmp_path / "text.txt"
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
