"""config.json + options of a run -> bytes of memory at its peak, part by part, without weights.

    base = read_base(Path("model"))                     # a folder, or a config.json alone
    memory = estimate(base, options, METHODS["qlora"].trains, Batch(8, 60, 120))
    memory.peak, memory.activations

The activations are counted as autograd keeps them: which inputs and outputs of a layer a backward
pass needs follows from what trains. A test holds the count to the tensors that autograd saves in
real models of every family.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeft import machine, models
from edgeft.errors import InputError, MissingExtra, ResourceError
from edgeft.files import read_json
from edgeft.train.optimizers import optimizer_row
from edgeft.train.options import TrainOptions
from edgeft.weights.text_base import open_base

LIBRARY_BYTES = 575_000_000
"""resident memory of a run on a tiny model: Python, torch, transformers, peft, datasets"""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""of a packed weight: 4 bits, a byte of scale for each 64, a float32 for each 256 of these"""
HEAP_LIMIT_BYTES = 32 << 20
"""larger blocks are mapped one by one (glibc's DEFAULT_MMAP_THRESHOLD_MAX)"""
HEAP_HOLES = 0.5
"""bytes that stay unused in the heap for each byte of smaller blocks on a CPU: glibc 2.36 does not reuse
the place of an aligned block for a block of the same size (docs/results/2026-11-29-plan.md)"""
CHECKPOINTED_HOLES = 0.65
"""the same for each byte that checkpointed activations do not keep"""

Part = Literal["", "norms", "biases", "layers", "all"]


@dataclass(frozen=True)
class Trains:
    """What a method trains: all that its memory follows from."""

    beside: Literal["", "lora", "dora", "scales"] = ""
    """what is added to each target module"""
    base: Part = ""
    """which weights of the base train: its norms, its biases (its norms, where it has none), its last
    layers (`freeze_trainable_layers`), all"""
    quantized: bool = False
    """whether --keep-4bit keeps the base packed"""


QLORA = Trains(beside="lora", quantized=True)
LORA = Trains(beside="lora")
DORA = Trains(beside="dora")
SCALES = Trains(beside="scales")
NORMS = Trains(base="norms")
BIASES = Trains(base="biases")
LAYERS = Trains(base="layers")
ALL = Trains(base="all")


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch of a run."""

    examples: int
    length: int
    """tokens of the longest example, to which the others are padded"""
    learned: int
    """tokens of all its examples that are learned: rows of logits"""
    padded: bool = True
    """whether the examples differ in length, so that attention has a mask"""
    shared: int = 0
    """tokens that all examples begin with, where these are computed once"""

    @property
    def tokens(self) -> int:
        return self.examples * (self.length - self.shared) + self.shared

    def of(self, examples: int) -> Batch:
        """A batch of fewer examples."""
        learned = math.ceil(self.learned * examples / self.examples)
        return Batch(examples, self.length, learned, self.padded and examples > 1, self.shared)


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block."""

    name: str
    """the module's name in the checkpoint"""
    part: str
    """GGUF name, such as attn_q"""
    rows: int
    columns: int


@dataclass(frozen=True)
class BaseModel:
    """What memory needs to know of a base model."""

    card: models.Card
    config: dict[str, Any]
    sizes: models.Sizes
    shapes: dict[str, models.Shape]
    stored_bytes: int
    """of the files with the weights; of 16 bits for each weight where there are none"""
    stored_in: dict[str, int] = dataclasses.field(default_factory=dict)
    """safetensors type -> bytes of the tensors that are stored in it"""

    @property
    def weights(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @functools.cached_property
    def packed(self) -> int:
        """Weights that QLoRA holds in 4 bits."""
        return sum(
            math.prod(shape)
            for name, shape in self.shapes.items()
            if self.card.in_4bit(name, shape)
        )

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Tensor -> its GGUF name without layer and kind, "" where the card has none."""
        named = {name: self.card.gguf_names(name)[0] for name in self.shapes}
        return {
            name: gguf[0].rpartition(".")[0].rpartition(".")[2] if gguf else ""
            for name, gguf in named.items()
        }

    @functools.cached_property
    def layers(self) -> dict[int, list[tuple[str, models.Shape]]]:
        """Block -> (name, shape) of its tensors."""
        found: dict[int, list[tuple[str, models.Shape]]] = {}
        for name, shape in self.shapes.items():
            for layer in models.generalize(name)[1][:1]:
                found.setdefault(layer, []).append((name, shape))
        return found

    @functools.cached_property
    def has_biases(self) -> bool:
        return any(name.endswith(".bias") for name in self.shapes)

    def part(self, name: str) -> str:
        """As `parts`."""
        return self.parts[name]

    def linears(self, layer: int) -> list[Linear]:
        """Linear layers of a block, without the router and the experts."""
        return [
            Linear(name.removesuffix(".weight"), self.part(name), *shape)
            for name, shape in self.layer(layer)
            if len(shape) == 2 and self.card.in_4bit(name, shape)
        ]

    def layer(self, layer: int) -> list[tuple[str, models.Shape]]:
        """(name, shape) of the tensors of a block."""
        return self.layers.get(layer, [])


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a training process at its peak."""

    libraries: int
    files: int
    """pages of the files with the weights, which the kernel drops where memory is short"""
    files_stay: bool
    """whether the files stay mapped after loading: a tensor of the model's type is used where it lies"""
    base: int
    """the base's weights as training holds them"""
    trained: int
    """weights that train and are not the base's"""
    gradients: int
    optimizer: int
    activations: int
    """what the forward pass keeps for the backward pass"""
    temporary: int
    """logits, and what a layer needs while it computes"""

    @property
    def peak(self) -> int:
        """Largest resident set, as VmHWM in /proc/self/status and `time -v` report it."""
        if self.files_stay:
            return self.needed + self.files
        return max(self.needed, self.libraries + self.base + self.files)

    @property
    def needed(self) -> int:
        """Bytes that must be free: without pages that the kernel can drop."""
        return (self.libraries + self.base + self.trained + self.gradients + self.optimizer
                + self.activations + self.temporary)  # fmt: skip

    def to_json(self) -> dict[str, int]:
        return dataclasses.asdict(self) | {"peak": self.peak, "needed": self.needed}


@dataclass(frozen=True)
class Request:
    """A run whose memory is asked for, on this machine."""

    base: BaseModel
    options: TrainOptions
    trains: Trains
    batch: Batch

    @property
    def memory(self) -> Memory:
        value_bytes = 2 if self.options.compute_type == "bf16" else 4
        return estimate(self.base, self.options, self.trains, self.batch, value_bytes)

    @property
    def needed(self) -> int:
        """Bytes of memory that must be free. With a GPU, its memory is not counted here."""
        memory = self.memory
        return memory.libraries + memory.base if has_gpu() else memory.needed

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint: float32 weights that train, or the whole model, and the optimizer."""
        beside, of_base = _trained(self.base, self.options, self.trains)
        model = self.base.weights if of_base else beside
        return int(4 * model + optimizer_state_bytes(self.options) * (beside + of_base))

    @property
    def result_bytes(self) -> int:
        """Size of the result: float32 weights that train, or the whole model."""
        return 4 * (self.base.weights if self.trains.base == "all" else self.trained)

    @property
    def trained(self) -> int:
        """How many values train."""
        return trained_weights(self.base, self.options, self.trains)

    def largest_micro_batch(self, free: int | None = None) -> int:
        """The largest divisor of --batch-size whose memory is free, 1 where none is."""
        free = machine.available_memory() if free is None else free
        sizes = [
            n for n in range(1, self.options.batch_size + 1) if self.options.batch_size % n == 0
        ]
        fitting = [n for n in sizes if self.of(n).needed <= free]
        return max(fitting, default=1)

    def of(self, examples: int) -> Request:
        """The same run with micro-batches of so many examples."""
        options = dataclasses.replace(self.options, micro_batch_size=examples)
        return dataclasses.replace(self, options=options, batch=self.batch.of(examples))

    def nearest_fit(self, free: int | None = None) -> str:
        """The fewest changes of options with which the run fits; "" where none is enough.

        Fewer examples in a forward pass cost least time, then checkpointed activations, then a base
        that stays packed.
        """
        free = machine.available_memory() if free is None else free
        packable = self.trains.quantized and self.options.quantization != "int8"
        packings = (False, True) if packable else (False,)
        for keep_4bit, checkpoint in itertools.product(packings, (False, True)):
            changes: dict[str, Any] = {}
            if checkpoint and not self.options.checkpoint_activations:
                changes["checkpoint_activations"] = True
            if keep_4bit and not self.options.keep_4bit:
                changes["keep_4bit"] = True
            changed = dataclasses.replace(
                self, options=dataclasses.replace(self.options, **changes)
            )
            for examples in range(self.batch.examples, 0, -1):
                if self.options.batch_size % examples or changed.of(examples).needed > free:
                    continue
                flags = [f"--{name.replace('_', '-')}" for name in changes]
                if examples != self.batch.examples:
                    flags.insert(0, f"--micro-batch-size {examples}")
                return " ".join(flags)
        return ""


def has_gpu() -> bool:
    """Whether the driver of an Nvidia GPU is loaded; torch is not imported for it."""
    return Path("/proc/driver/nvidia/version").exists()


def check_attention(options: TrainOptions) -> None:
    """ResourceError or MissingExtra for --attention flash_attention_2 where it cannot run."""
    if options.attention != "flash_attention_2":
        return
    if not has_gpu():
        raise ResourceError("--attention flash_attention_2 needs a GPU", "--attention sdpa")
    if importlib.util.find_spec("flash_attn") is None:
        raise MissingExtra("flash-attn is not installed", "pip install flash-attn")


def read_base(path: Path) -> BaseModel:
    """The base of a folder, or of a config.json alone. Reads no weights.

    InputError where there is no config.json, FormatError for a family without a card.
    """
    folder = path if path.is_dir() else path.parent
    patterns = ("*.safetensors", "pytorch_model*.bin") if path.is_dir() else ()
    if any(file for pattern in patterns for file in folder.glob(pattern)):
        base = open_base(folder)
        weights = base.weights.tensors
        shapes = {n: info.shape for n, info in weights.items() if not base.card.ignores(n)}
        files = {info.file for info in weights.values()}
        size = sum(file.stat().st_size for file in files)
        sizes, stored_in = models.sizes_of(base.card, base.config), Counter[str]()
        for info in weights.values():
            stored_in[info.dtype] += math.prod(info.shape) * (4 if info.dtype == "F32" else 2)
        return BaseModel(base.card, base.config, sizes, shapes, size, stored_in)
    text = models.text_model(read_json(folder / "config.json" if path.is_dir() else path))
    sizes, shapes = models.sizes_of(text.card, text.config), models.tensor_shapes(*text[:2])
    if not sizes.vocabulary:
        raise InputError(f"{path} has no vocab_size", "take the model's own config.json")
    stored = 2 * sum(map(math.prod, shapes.values()))
    return BaseModel(text.card, text.config, sizes, shapes, stored)


def is_target(module: str, targets: Sequence[str]) -> bool:
    """Whether --target-modules names a linear layer: a name, "all-linear" or a regular expression."""
    if list(targets) == ["all-linear"]:
        return True
    pattern = ",".join(targets)
    if re.search(r"[\\^$*+?()\[\]{}|]", pattern):
        return bool(re.fullmatch(pattern, module))
    return any(module == target or module.endswith(f".{target}") for target in targets)


def estimate(
    base: BaseModel,
    options: TrainOptions,
    trains: Trains,
    batch: Batch,
    value_bytes: int = 4,
    device: str = "cpu",
) -> Memory:
    """The memory of a run.

    `value_bytes`: 4 where it computes in float32, 2 in bfloat16.
    """
    if options.use_dora and trains.beside == "lora":
        trains = dataclasses.replace(trains, beside="dora")
    beside, of_base = _trained(base, options, trains)
    count = beside + of_base
    state = optimizer_state_bytes(options)
    held = value_bytes if not of_base else 4  # weights that train are held in float32
    weights = base.weights * held
    if trains.quantized and options.keep_4bit:
        packed = base.packed
        weights = int((base.weights - packed) * held + packed * NF4_BYTES)
    same_type = "F32" if held == 4 else "BF16"
    kept, temporary = activations(base, options, trains, batch, value_bytes)
    holes = _holes(base, options, trains, batch, value_bytes) if device == "cpu" else 0
    return Memory(
        libraries=LIBRARY_BYTES,
        files=max(0, base.stored_bytes - base.stored_in.get(same_type, 0)),
        files_stay=same_type in base.stored_in,
        base=weights,
        trained=4 * beside,
        gradients=0 if optimizer_row(options.optimizer).fused_backward else 4 * count,
        optimizer=int(state * count),
        activations=kept + holes,
        temporary=temporary,
    )


def optimizer_state_bytes(options: TrainOptions) -> float:
    """Bytes of the optimizer's state for each weight that trains."""
    return optimizer_row(options.optimizer).state_bytes


def trained_weights(base: BaseModel, options: TrainOptions, trains: Trains) -> int:
    """How many values train."""
    return sum(_trained(base, options, trains))


def _trained(base: BaseModel, options: TrainOptions, trains: Trains) -> tuple[int, int]:
    """(values beside the base, values of the base) that train."""
    beside = sum(
        _beside(options, trains, linear)
        for layer in range(base.sizes.layers)
        for linear in _targets(base, options, trains, layer)
    )
    of_base = sum(
        math.prod(shape)
        for name, shape in base.shapes.items()
        if trains_weight(base, options, trains, name)
    )
    return beside, of_base


def _targets(base: BaseModel, options: TrainOptions, trains: Trains, layer: int) -> list[Linear]:
    """The linear layers of a block that something is added to."""
    if not trains.beside:
        return []
    linears = base.linears(layer)
    if trains.beside == "scales" and not options.target_modules:
        return [linear for linear in linears if linear.part in SCALED]
    chosen = options.target_modules or base.card.lora_targets
    return [linear for linear in linears if is_target(linear.name, chosen)]


SCALED = ("attn_k", "attn_v", "attn_qkv", "ffn_down")
"""linear layers that IA3 scales: the output, of ffn_down the input"""


def _beside(options: TrainOptions, trains: Trains, linear: Linear) -> int:
    """Values that are added to one linear layer."""
    if trains.beside == "scales":
        return linear.columns if linear.part == "ffn_down" else linear.rows
    lora = options.lora_r * (linear.rows + linear.columns)
    return lora + (linear.rows if trains.beside == "dora" else 0)


def trains_weight(base: BaseModel, options: TrainOptions, trains: Trains, name: str) -> bool:
    """Whether a weight of the base trains."""
    match trains.base:
        case "all":
            return True
        case "norms":
            return base.part(name).endswith("norm") and name.endswith("weight")
        case "biases":
            if not base.has_biases:
                return base.part(name).endswith("norm")
            return name.endswith(".bias")
        case "layers":
            layer = models.generalize(name)[1][:1]
            count = options.freeze_trainable_layers
            first = 0 if count < 0 else base.sizes.layers - count
            last = -count if count < 0 else base.sizes.layers
            return bool(layer) and (not count or first <= layer[0] < last)
        case _:
            return False


def activations(
    base: BaseModel, options: TrainOptions, trains: Trains, batch: Batch, value_bytes: int
) -> tuple[int, int]:
    """(bytes that are kept for the backward pass, bytes that are needed for a moment beside them)."""
    sizes, tokens, v = base.sizes, batch.tokens, value_bytes
    if not trained_weights(base, options, trains):
        return 0, 0
    layers = [sum(blocks) for blocks in _layers(base, options, trains, batch, v)]
    inputs = sizes.hidden * 4
    logits = batch.learned * sizes.vocabulary * 4
    final = tokens * (inputs + 4) + logits
    if trains.base == "all":
        final += batch.learned * sizes.hidden * v + tokens * sizes.hidden * v
    rotary = 2 * sizes.head_dim * v * batch.length
    working = tokens * 4 * (2 * sizes.ffn + 2 * sizes.hidden)
    head = 2 * logits + (logits // 2 if v == 2 else 0)
    if options.checkpoint_activations:
        kept = tokens * sizes.layers * sizes.hidden * v + final + rotary
        return kept, max(tokens * max(layers) + working, head)
    return tokens * sum(layers) + final + rotary, max(working, head)


def _holes(
    base: BaseModel, options: TrainOptions, trains: Trains, batch: Batch, value_bytes: int
) -> int:
    """Bytes of the heap that activations leave unused."""
    small = sum(
        block * batch.tokens
        for blocks in _layers(base, options, trains, batch, value_bytes)
        for block in blocks
        if block * batch.tokens < HEAP_LIMIT_BYTES
    )
    return int(small * (CHECKPOINTED_HOLES if options.checkpoint_activations else HEAP_HOLES))


def _layers(
    base: BaseModel, options: TrainOptions, trains: Trains, batch: Batch, v: int
) -> list[list[int]]:
    """For each block of the model the sizes of what it keeps for the backward pass, bytes a token."""
    reached = _first_reached(base, options, trains)
    layers = [
        _layer(base, options, trains, batch, v, layer) if layer >= reached else [0]
        for layer in range(base.sizes.layers)
    ]
    if reached < len(layers) and not _embedding_trains(base, options, trains):
        layers[reached].append(-4 * base.sizes.hidden)  # of the first norm: no gradient passes on
    return layers


def _first_reached(base: BaseModel, options: TrainOptions, trains: Trains) -> int:
    """The first block with something that trains: the backward pass ends there."""
    if _embedding_trains(base, options, trains):
        return 0
    for layer in range(base.sizes.layers):
        if _targets(base, options, trains, layer):
            return layer
        if any(trains_weight(base, options, trains, name) for name, _ in base.layer(layer)):
            return layer
    return base.sizes.layers


def _embedding_trains(base: BaseModel, options: TrainOptions, trains: Trains) -> bool:
    return any(
        base.part(name) == "token_embd" and trains_weight(base, options, trains, name)
        for name in base.shapes
    )


def _layer(
    base: BaseModel, options: TrainOptions, trains: Trains, batch: Batch, v: int, layer: int
) -> list[int]:
    """Bytes for each token of every tensor that one block keeps; `v`: bytes of a value."""
    s = base.sizes
    tensors = {base.part(n): shape for n, shape in base.layer(layer) if n.endswith("weight")}
    targets = _targets(base, options, trains, layer)
    trained = {
        base.part(name)
        for name, shape in base.layer(layer)
        if trains_weight(base, options, trains, name) and name.endswith("weight")
    }
    kept = _norms(base, tensors, trained, v) + _attention(base, options, batch, v)
    kept += _inputs(targets, trained, tensors, trains, v)
    if "attn_qkv" in tensors and (s.heads == s.kv_heads or not batch.padded):
        kept += [2 * s.kv_heads * s.head_dim * v]  # values are a view of all three
    if trains.beside in ("lora", "dora"):
        kept += [4 * options.lora_r] * len(targets)
    if trains.beside == "dora":  # the output before it is scaled
        kept += [v * linear.rows for linear in targets]
    if "ffn_down" in tensors:
        kept += [s.ffn * v] * (3 if s.gated else 1)
    if "ffn_down_exps" in tensors:
        kept += [s.experts_used * s.expert_ffn * v] * 3
        kept += [s.experts_used * s.hidden * v, 4 * s.experts]
        if "ffn_down_exps" in trained:
            kept += [s.experts_used * s.hidden * v, s.experts_used * s.expert_ffn * v]
    if "ffn_down_shexp" in tensors:
        kept += [s.shared_ffn * v] * 3
    if s.kv_lora:
        kept += [s.heads * s.head_dim * v, s.heads * s.value_dim * v]
    return kept


def _norms(
    base: BaseModel, tensors: dict[str, models.Shape], trained: set[str], v: int
) -> list[int]:
    """Inputs of the norms, in float32, and their factors; the normed values where weights train."""
    s = base.sizes
    widths = {"attn_q_norm": s.heads * s.head_dim, "attn_k_norm": s.kv_heads * s.head_dim,
              "attn_q_a_norm": s.q_lora, "attn_kv_a_norm": s.kv_lora}  # fmt: skip
    plain = base.card.family in LAYER_NORMS
    names = ["attn_norm", "ffn_norm"] if plain else [n for n in tensors if n.endswith("_norm")]
    kept = []
    for name in names:
        width = widths.get(name, s.hidden)
        kept += [width * (v if base.card.family == "pythia" else 4), 8 if plain else 4]
        if name in trained and not plain:
            kept.append(width * (4 if base.card.family in FLOAT32_NORMS else v))
    return kept


LAYER_NORMS = ("pythia", "olmo")
"""families with torch's layer_norm in place of RMS norms; OLMo's has no weights"""
FLOAT32_NORMS = ("gemma", "gemma2", "gemma3", "olmo2", "olmo3")
"""families whose norms multiply by their weights before they round to the type of the computation"""


def _attention(base: BaseModel, options: TrainOptions, batch: Batch, v: int) -> list[int]:
    """Queries, keys, values and outputs of the attention, for each token."""
    s = base.sizes
    kv_heads = s.heads if batch.padded else s.kv_heads
    kept = [width * v for heads in (s.heads, kv_heads)
            for width in (heads * s.head_dim, heads * s.value_dim)]  # fmt: skip
    soft_cap = bool(base.card.value(base.config, "attn_logit_softcapping"))
    if options.attention == "eager" or soft_cap:  # transformers computes soft caps in eager mode
        probabilities = s.heads * batch.length
        return [*kept, probabilities * 4, probabilities * v * ((v == 2) + soft_cap)]
    return [*kept, 4 * s.heads, batch.length * v if batch.padded else 0]


def _inputs(
    targets: list[Linear],
    trained: set[str],
    tensors: dict[str, models.Shape],
    trains: Trains,
    v: int,
) -> list[int]:
    """Inputs of linear layers that the gradient of a weight needs, each once.

    In bfloat16 peft casts the input of each of its layers to float32.
    """
    if trains.beside == "scales":
        return [
            v * (linear.columns if linear.part == "ffn_down" else linear.rows) for linear in targets
        ]
    if trains.beside and v == 2:
        return [4 * linear.columns for linear in targets]
    parts = {linear.part: linear.columns for linear in targets}
    for part in trained & set(tensors):
        if len(tensors[part]) == 2 and not part.endswith("_exps"):
            parts[part] = tensors[part][1]
    distinct = {_SOURCES.get(part, part): width for part, width in parts.items()}
    distinct.pop("attn_output", None)  # attention keeps its output in any case
    return [v * width for width in distinct.values()]


_SOURCES = {
    "attn_k": "attn_q", "attn_v": "attn_q", "attn_qkv": "attn_q", "attn_q_a": "attn_q",
    "attn_kv_a_mqa": "attn_q", "ffn_gate": "ffn_up", "ffn_gate_shexp": "ffn_up",
    "ffn_up_shexp": "ffn_up", "ffn_gate_inp": "ffn_up", "ffn_gate_inp_shexp": "ffn_up",
    "ffn_gate_exps": "ffn_up_exps",
}  # fmt: skip
"""linear layer -> the one that has the same input"""
