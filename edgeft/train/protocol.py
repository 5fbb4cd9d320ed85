"""What a training run is made of: a `Method` (which weights train) and an `Objective` (the loss).

A new method is one file in `methods/`, a new objective one file in `objectives/`, each with a class
that implements its protocol here and a row in `registry.py`. Every method trains every objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from edgeft.models import Card
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode
from edgeft.train.options import TrainOptions


@dataclass(frozen=True)
class Evaluation:
    """One point of a run's validation curve, while the run goes on."""

    measure: Literal["loss", "accuracy"]
    step: int
    value: float
    """nats per token, or a share"""
    last: bool
    """no other evaluation follows"""


Watch = Callable[[Evaluation], None]
"""called at every evaluation; what it raises ends the run, and its checkpoints stay"""


class Method(Protocol):
    """Which weights train, how the other weights are held, and what the result is on disk."""

    def __init__(self, options: TrainOptions, card: Card) -> None:
        """Check what can be checked without the weights. InputError for what cannot train."""

    def prepare(self, device: str) -> Any:
        """The model on `device` ("cpu" or "cuda"); the weights that train have `requires_grad`."""

    def parameter_groups(self, model: Any, learning_rate: float) -> list[dict[str, Any]] | None:
        """torch's parameter groups, with learning rates of their own; None for one rate for all."""
        return None

    def facts(self) -> dict[str, Any]:
        """Manifest entries: what a merge must know about the base as it was during training."""

    def save(self, model: Any, folder: Path) -> None:
        """Write the trained weights into an empty folder."""


class Objective(Protocol):
    """What is learned: rows of data -> batches and their loss."""

    train: Sequence[Any]
    """encoded training examples"""
    validation: Sequence[Any]
    """encoded validation examples, may be empty"""
    answers_per_row: int = 1
    """examples of a batch that one row makes: the answers that the model writes to a prompt, times the steps that
    read them"""

    def __init__(
        self,
        options: TrainOptions,
        train: Sequence[Example],
        validation: Sequence[Example],
        chat: ChatTemplate,
        tokenize: Encode,
    ) -> None:
        """Encode the examples. InputError where none remains to train on."""

    def facts(self) -> dict[str, Any]:
        """Manifest entries about the examples."""

    def curves(self, log_history: list[dict[str, Any]]) -> dict[str, Any]:
        """Manifest entries from the trainer's log, beside the losses."""
        return {}

    def trainer(self, model: Any, arguments: dict[str, Any]) -> Any:
        """A `transformers.Trainer` with this loss; `arguments`: of its `TrainingArguments`."""


def without_peft(model: Any) -> Any:
    """transformers' model, whether peft wraps it (a method that adds weights) or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
