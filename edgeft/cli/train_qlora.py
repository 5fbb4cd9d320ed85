"""`edgeft train-qlora`: conversations + base model -> LoRA adapter."""

from __future__ import annotations

from typing import Any

import click

from edgeft.cli._training import run_training, training_options


@click.command("train-qlora")
@training_options(
    skip=("freeze_trainable_layers",),
    learning_rate={"default": None, "show_default": "0.001, with --ship-from 0.0006"},
)
def command(**options: Any) -> None:
    """Fine-tune a base model by QLoRA: NF4 base, LoRA on every linear layer, loss on the answers.

    \b
    edgeft train-qlora --base smollm2-135m --data chats.jsonl --output adapter
    edgeft train-qlora --base smollm2-135m --data chats.jsonl --output adapter --preview
    """
    run_training("qlora", "sft", **options)
