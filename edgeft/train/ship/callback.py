"""The steps of a training -> when its layers take the values of the file to ship."""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from typing import Any

import transformers

from edgeft.progress import say
from edgeft.train.ship.text_divergence import TextDivergence
from edgeft.train.ship.weights import ShipWeights

DIVERGENCE = "text_divergence"
"""key of the log: of --ship-text, nats a token"""


class ShipCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Starts at a step, and gives the layers their values after each step from there on.

    They are exact wherever they are measured, and at every checkpoint, so that a resumed run has the
    same steps as one that was not interrupted.
    """

    def __init__(self, ship: ShipWeights, first: int, text: TextDivergence | None = None) -> None:
        """`first`: steps before the first one with the file's values. `text`: is read in each from there on."""
        self.ship, self.first, self.text = ship, first, text

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.text and self.ship.started:
            # The trainer does it after this; an evaluation, and the start, leave the other mode.
            kwargs["model"].train()
            getattr(kwargs["optimizer"], "train", lambda: None)()
            divergence = self.text.backward(state.global_step - self.first)
            state.log_history.append({"step": state.global_step + 1, DIVERGENCE: divergence})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.ship.started:
            self._start(state.global_step)
            return
        since = state.global_step - self.first
        measured = control.should_evaluate or control.should_save
        self.ship.update(exact=measured or since % self.ship.exact_steps == 0)

    def _start(self, step: int) -> None:
        if step >= self.first:
            say(
                f"from step {step + 1} on the layers compute with the values of a {self.ship.quant} file"
            )
            self.ship.start()
