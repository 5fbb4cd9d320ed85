"""A folder that is no adapter of peft -> the adapter in it, or the name of the program that wrote it.

adapter = converted(path, card, config)   # of MLX or llama.cpp; None for any other
raise other_program(path, path)           # what the folder is, and how it becomes an adapter
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeft import models
from edgeft.adapter.deltas import LazyTensor
from edgeft.adapter.names import PREFIX
from edgeft.errors import AdapterError
from edgeft.files import read_json
from edgeft.models.transforms import Transform
from edgeft.progress import say
from edgeft.weights import gguf_reader
from edgeft.weights.checkpoint import Array, Checkpoint

MAX_SCALE = 1e6
"""of MLX"""


@dataclass(frozen=True)
class Values:
    """A tensor that is read when it is written."""

    shape: tuple[int, ...]
    dtype: str
    """F32, F16 or BF16"""
    read: Callable[[], Array]


class AdapterSource(NamedTuple):
    """An adapter as peft would write it."""

    config: dict[str, Any]
    """adapter_config.json"""
    tensors: dict[str, Values]
    """peft's name -> values"""


class Program(NamedTuple):
    """How another program's files are recognised, and what becomes of them."""

    files: tuple[str, ...]
    """patterns of names, of which one is enough"""
    text: str
    hint: str


PROGRAMS = (
    Program(
        ("zero_to_fp32.py", "global_step*/*", "*mp_rank_*_model_states.pt", "bf16_zero_pp_rank_*"),
        "a checkpoint of DeepSpeed",
        "python zero_to_fp32.py . out in that folder, then model.save_pretrained of peft; or give "
        "the adapter that the trainer saved at its end",
    ),
    Program(
        ("pytorch_model_fsdp*/*", "pytorch_model_fsdp.bin", "optimizer_*/*.distcp"),
        "a sharded checkpoint of FSDP",
        "accelerate merge-weights FOLDER/pytorch_model_fsdp_0 out, then save it with peft",
    ),
    Program(
        ("*.distcp", "*/*.distcp", ".metadata"),
        "a distributed checkpoint of torch",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER out.pt, then save "
        "it with peft",
    ),
    Program(
        ("lit_model.pth*", "lit_config.json", "hyperparameters.yaml"),
        "a checkpoint of LitGPT",
        "litgpt merge_lora FOLDER, then litgpt convert_from_litgpt FOLDER out, and give the result "
        "as --base",
    ),
    Program(
        ("adapter_[0-9]*.pt", "adapter_model.pt", "recipe_state*.pt", "recipe_state/*"),
        "an adapter in torchtune's own format",
        "torchtune saves it for peft as well: give the folder of the epoch with "
        "adapter_model.safetensors and adapter_config.json",
    ),
    Program(
        ("*.nemo", "model_config.yaml", "weights/metadata.json", "context/*"),
        "a checkpoint of NeMo",
        "nemo.collections.llm.export_ckpt(path, target='hf-peft', output_path='adapter')",
    ),
    Program(
        ("adapters.npz",),
        "an adapter of an early MLX",
        "mlx_lm.fuse --adapter-path FOLDER, and give the result as --base",
    ),
    Program(
        ("pytorch_lora_weights.*",),
        "a LoRA of an image model (diffusers)",
        "edgeft deploys language models",
    ),
    Program(
        ("model.safetensors", "model.safetensors.index.json", "pytorch_model*.bin"),
        "a whole model, and no adapter",
        "give it as --base, without --adapter",
    ),
)
"""in the order of the search"""


def other_program(path: Path, home: Path) -> AdapterError:
    """The error for a folder that is no adapter of peft. `path`: as the user named it."""
    config = read_json(home / "adapter_config.json")
    if "swift_type" in config or "tuner_backend" in config:
        return AdapterError(
            f"{path} is an adapter of ms-swift's own tuners",
            "swift export --adapters FOLDER --to_peft_format true",
        )
    for program in PROGRAMS:
        if any(next(home.glob(pattern), None) for pattern in program.files):
            return AdapterError(f"{path} is {program.text}", program.hint)
    for file in sorted(home.glob("*.safetensors"))[:1]:
        names = list(Checkpoint(file).tensors)
        if any(re.match(r"lora_(unet|te\d?)_|.*\.lora_(down|up)\.weight$", name) for name in names):
            return AdapterError(
                f"{path} is a LoRA of an image model (kohya's sd-scripts)",
                "edgeft deploys language models",
            )
    lacks = "adapter_model.safetensors" if config else "adapter_config.json"
    return AdapterError(
        f"{path} is not an adapter: no {lacks}", "a folder in peft's format is needed"
    )


def converted(path: Path, card: models.Card, config: dict[str, Any]) -> AdapterSource | None:
    """The adapter of MLX or llama.cpp at `path`, as peft would write it; None for anything else.

    `config`: config.json of the base.
    """
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(path, card, config)
    if (path / "adapter_config.json").is_file():
        settings = read_json(path / "adapter_config.json")
        if "peft_type" not in settings and (path / "adapters.safetensors").is_file():
            return _from_mlx(path, settings)
    elif len(files := list(path.glob("*.gguf"))) == 1:
        return _from_gguf(files[0], card, config)
    return None


def _from_mlx(path: Path, config: dict[str, Any]) -> AdapterSource:
    """y + scale * (x @ a) @ b. https://github.com/ml-explore/mlx-lm/blob/v0.24.0/mlx_lm/tuner/lora.py"""
    file = Checkpoint(path / "adapters.safetensors")
    options = config.get("lora_parameters")
    scale = options.get("scale") if isinstance(options, dict) else None
    if not any(name.endswith(".lora_a") for name in file.tensors):
        raise AdapterError(
            f"{path} holds whole weights of MLX (fine_tune_type full)",
            "mlx_lm.fuse --adapter-path FOLDER, and give the result as --base",
        )
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not abs(scale) < MAX_SCALE:
        raise AdapterError(
            f"{path / 'adapter_config.json'} has no lora_parameters.scale",
            "is it the one that mlx_lm.lora wrote?",
        )
    tensors: dict[str, Values] = {}
    ranks: dict[str, int] = {}
    for name, info in file.tensors.items():
        module, _, part = name.rpartition(".")
        tensor = LazyTensor.open(file, name)
        embedding = "embedding_" if module.endswith(("embed_tokens", "wte")) else ""
        leaf = "" if embedding else ".weight"
        if part == "m":
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = _values(tensor, info.dtype)
        elif part in ("lora_a", "lora_b") and len(info.shape) == 2:
            peft_name = f"{PREFIX}{module}.lora_{embedding}{part[-1].upper()}{leaf}"
            tensors[peft_name] = _values(tensor.transposed(), info.dtype)
            ranks[module] = info.shape[1] if part == "lora_a" else info.shape[0]
        else:
            raise AdapterError(
                f"{path}: {name} {info.shape} is no LoRA of a linear layer",
                "mlx_lm.fuse --adapter-path FOLDER, and give the result as --base",
            )
    if config.get("model") and "bit" in str(config["model"]):
        say(f"{path} was trained on the quantized {config['model']}: --base is the model before it")
    dora = any(name.endswith(".m") for name in file.tensors)
    alphas = {module: scale * rank for module, rank in ranks.items()}
    return AdapterSource(lora_config(ranks, alphas, use_dora=dora), tensors)


def _from_gguf(file: Path, card: models.Card, config: dict[str, Any]) -> AdapterSource:
    """A file of llama.cpp's convert_lora_to_gguf.py.

    A scale of alpha / rank, or 1 for alpha 0:
    https://github.com/ggml-org/llama.cpp/blob/b5000/src/llama-adapter.h
    """
    from gguf import dequantize

    header = gguf_reader.read(file)
    if header.meta.get("general.type") != "adapter":
        raise AdapterError(
            f"{file} is no adapter (general.type)", "give a model as --base, without --adapter"
        )
    alpha = header.meta.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise AdapterError(f"{file}: adapter.lora.alpha is no number", "write it again")
    if "adapter.alora.invocation_tokens" in header.meta:
        raise AdapterError(f"{file} acts from some token on, so it is no change of a weight")
    tensors: dict[str, Values] = {}
    ranks: dict[str, int] = {}
    for name, tensor in header.tensors.items():
        gguf_name, _, part = name.rpartition(".")
        hf_name = card.hf_name(gguf_name)
        if part not in ("lora_a", "lora_b") or hf_name is None or len(tensor.shape) != 2:
            raise AdapterError(
                f"{file}: {name[:80]!r} {tensor.shape} is no LoRA of a weight of {card.family}",
                "is it of this base? else give the adapter from which it was converted",
            )
        module = hf_name.removesuffix(".weight")
        transform = card.transform(gguf_name)
        embedding = gguf_name == "token_embd.weight"

        def read(
            tensor: gguf_reader.Tensor = tensor,
            transform: Transform | None = transform if part == "lora_b" else None,
        ) -> Array:
            values = dequantize(gguf_reader.data(header, tensor), tensor.type)
            values = np.asarray(values, np.float32).reshape(tensor.shape)
            return transform.inverse(values, config) if transform else values

        leaf = f"lora_{'embedding_' if embedding else ''}{part[-1].upper()}"
        tensors[f"{PREFIX}{module}.{leaf}{'' if embedding else '.weight'}"] = Values(
            tensor.shape, "F32", read
        )
        ranks[module] = tensor.shape[0] if part == "lora_a" else tensor.shape[1]
    alphas = {module: alpha or float(rank) for module, rank in ranks.items()}
    return AdapterSource(lora_config(ranks, alphas), tensors)


def lora_config(ranks: dict[str, int], alphas: dict[str, float], **more: Any) -> dict[str, Any]:
    """adapter_config.json of a LoRA. `ranks`, `alphas`: module -> its rank and alpha."""
    rank, alpha = _most(ranks.values()), _most(alphas.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_exact(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {_exact(m): a for m, a in alphas.items() if a != alpha},
        "target_modules": sorted(ranks),
        "bias": "none",
        **more,
    }


def _most(values: Iterable[Any]) -> Any:
    """The most frequent value; 1 where there is none."""
    values = list(values)
    return max(values, key=values.count, default=1)


def _exact(module: str) -> str:
    return f"^{re.escape(module)}"


def _values(tensor: LazyTensor, dtype: str) -> Values:
    return Values(tensor.shape, dtype if dtype in ("F16", "BF16") else "F32", lambda: tensor[:])
