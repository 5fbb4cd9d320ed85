"""An adapter of `--objective reward`, or a folder with its merged weights -> scores of conversations.

model = RewardModel.open(Path("reward"))
model.scores([[1, 5, 9], [1, 5]])      # token ids of two conversations -> [0.31, -1.2]

Under an adapter the base has the values that it had in training (`edgeft.train.methods`), so a score is that of
the training. A folder is one of `merge-export`, or another's of transformers with a head of one score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.folder import WEIGHTS
from edgeft.data.encoding import encode
from edgeft.errors import AdapterError, InputError, require
from edgeft.files import read_json
from edgeft.models.text_model import names_classifier
from edgeft.progress import quiet_libraries
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode, encoder
from edgeft.train.options import TrainOptions
from edgeft.weights.text_base import open_base

BATCH_SIZE = 8


@dataclass(frozen=True)
class RewardModel:
    """A reward model in memory."""

    folder: Path
    model: Any
    chat: ChatTemplate
    tokenize: Encode

    @classmethod
    def open(cls, folder: Path) -> RewardModel:
        """AdapterError for an adapter that is no reward model of edgeft; InputError where its base is gone, or
        for a model without a head of one score."""
        if (folder / "config.json").is_file():
            return cls(
                folder, _load_folder(folder), ChatTemplate.from_folder(folder), encoder(folder)
            )
        require("trl", "align")
        options = adapter_manifest(folder).get("options", {})
        if options.get("objective") != "reward":
            raise AdapterError(
                f"{folder} is no reward model of edgeft",
                "edgeft train --objective reward makes one",
            )
        base = Path(options["base"])
        if not base.is_dir():
            raise InputError(f"{folder}: its base {base} is gone", "put it back")
        with quiet_libraries():
            model = _load(folder, options)
        return cls(folder, model, ChatTemplate.from_folder(base), encoder(base))

    def score_examples(self, examples: Sequence[Example]) -> list[float]:
        """A score of each conversation, which the chat template writes as in training."""
        return self.scores([encode(example, self.chat, self.tokenize).ids for example in examples])

    def scores(self, conversations: Sequence[list[int]]) -> list[float]:
        """A score of each conversation's token ids, read at its last token."""
        import torch

        order = sorted(range(len(conversations)), key=lambda i: len(conversations[i]))
        result = [0.0] * len(conversations)
        pad = self.model.config.pad_token_id
        for start in range(0, len(order), BATCH_SIZE):
            numbers = order[start : start + BATCH_SIZE]
            width = max(len(conversations[i]) for i in numbers)
            rows = [conversations[i] + [pad] * (width - len(conversations[i])) for i in numbers]
            mask = [
                [1] * len(conversations[i]) + [0] * (width - len(conversations[i])) for i in numbers
            ]
            with torch.no_grad():
                output = self.model(
                    input_ids=torch.tensor(rows, device=self.model.device),
                    attention_mask=torch.tensor(mask, device=self.model.device),
                    use_cache=False,
                )
            for number, score in zip(numbers, output.logits[:, 0].tolist(), strict=True):
                result[number] = score
        return result


def _load_folder(folder: Path) -> Any:
    """transformers' model of a folder, float32."""
    torch = require("torch", "train")
    transformers = require("transformers", "train")
    config = read_json(folder / "config.json")
    if not names_classifier(config):
        raise InputError(
            f"{folder} is no reward model: {config.get('architectures')} has no head that rates texts",
            "edgeft train --objective reward makes one",
        )
    try:
        with quiet_libraries():
            model, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"cannot load {folder}: {reason}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise InputError(f"{folder} has no weights for {', '.join(missing[:3])}")
    if model.config.num_labels != 1 or model.config.pad_token_id is None:
        raise InputError(
            f"{folder} has {model.config.num_labels} scores and padding token {model.config.pad_token_id}",
            "a reward model has one score, and a pad_token_id in its config.json",
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _load(adapter: Path, options: dict[str, Any]) -> Any:
    """peft's model as in the training, with the adapter's weights."""
    import peft
    import torch
    from safetensors.torch import load_file

    from edgeft.train.methods import lora, qlora
    from edgeft.train.objectives.reward import add_head

    methods: dict[str, Any] = {
        "qlora": qlora.QLoRA, "lora": lora.LoRA, "rslora": lora.RSLoRA, "dora": lora.DoRA,
        "loraplus": lora.LoRAPlus,
    }  # fmt: skip

    base = Path(options["base"])
    method = methods[options.get("method", "qlora")](
        _training_options(options, base), open_base(base).card
    )
    model = method.prepare("cuda" if torch.cuda.is_available() else "cpu")
    add_head(model, seed=0)
    loaded = peft.set_peft_model_state_dict(model, load_file(adapter / WEIGHTS))
    if loaded.unexpected_keys:
        raise AdapterError(f"{adapter}: {loaded.unexpected_keys[0]} has no place in its base")
    return model.float().eval()  # the values of the training, products in float32


def _training_options(options: dict[str, Any], base: Path) -> TrainOptions:
    """The options that decide the model, of a manifest's."""
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    shape = (
        "lora_r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "quantization",
        "double_quant", "keep_4bit", "compute_type", "seed",
    )  # fmt: skip
    values = {name: options[name] for name in shape if name in options and name in names}
    if "target_modules" in values:
        values["target_modules"] = tuple(values["target_modules"])
    return TrainOptions(base=base, data=base, output=base, **values)
