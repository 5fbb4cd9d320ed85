"""The options of a training run. The string after a field is the help of its option."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from edgeft.errors import InputError

FIRST_FIELDS = frozenset((
    "base", "data", "output", "validation_data", "validation_size", "epochs", "steps", "batch_size",
    "micro_batch_size", "learning_rate", "warmup", "cutoff_length", "lora_r", "lora_alpha",
    "lora_dropout", "target_modules", "train_on_inputs", "group_by_length", "compute_type",
    "keep_4bit", "seed", "eval_every", "save_every",
))  # fmt: skip
"""fields of edgeft 0.1.0, which every manifest names"""
Scheduler = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt",
    "cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
    "warmup_stable_decay", "reduce_lr_on_plateau", "greedy",
]  # fmt: skip
"""names of transformers' `SchedulerType`"""
Parallel = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
NOT_OF_RESULT = (
    "report_to", "processes", "parallel", "offload", "nodes", "node_rank", "main_address",
)  # fmt: skip
"""fields that change nothing of the result, or only the last bits"""
NOT_WITH_SHIP = (
    "lora_dropout", "use_dora", "keep_4bit", "add_tokens", "offload_weights", "offload_activations",
)  # fmt: skip
"""options whose layers --ship does not compute"""
AUTO = Path("auto")
"""--ship-text that `edgeft train` lets the base write first"""


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, on what and how: the options of `edgeft train`."""

    base: Path
    """Base model: a Hugging Face folder; on the command line also a .gguf, a hub id or an embedded base
    such as smollm2-135m."""
    data: Path
    """Chats to learn, in the shape of alpaca, chat messages, sharegpt, or prompt and completion: a file of
    JSON, JSONL, CSV or Parquet, a folder of them, or a data set of the hub as owner/name:config. Plain
    texts for --objective pretrain; pairs of a better and a worse answer for dpo; labelled answers for kto; prompts for grpo."""
    output: Path
    """Folder of the adapter, or of the model where the method trains all of it."""
    validation_data: Path | None = None
    """Chats for validation: a file, a folder or a data set of the hub. Without one, --validation-size is split off --data."""
    validation_size: float = 0.05
    """Part of --data that is held out for validation: a share below 1, a count from 1, 0 = none."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row that cannot be learned does: stop = the run ends with an error that lists the first ten,
    skip = it is left out and counted."""
    columns: tuple[str, ...] = ()
    """Columns of the data files to read, comma-separated, as prompt=question,answer=reply."""
    epochs: float = 1.0
    """Passes over the training examples, unless --steps is given."""
    steps: int | None = None
    """Optimizer steps."""
    batch_size: int = 8
    """Examples per optimizer step."""
    micro_batch_size: int | Literal["auto"] = 8
    """Examples per forward pass; gradients are accumulated up to --batch-size. auto = the largest that
    fits the free memory, halved where memory runs out all the same."""
    processes: int = 1
    """Processes on this machine that train together, each on its share of every batch and, where there are
    GPUs, on one of its own; --micro-batch-size is that of each."""
    parallel: Parallel = "ddp"
    """What the processes divide: ddp = the batch, fsdp2 = also weights, gradients and the optimizer's state;
    by DeepSpeed zero1 = also the optimizer's state, zero2 = and gradients, zero3 = and weights."""
    offload: str | None = None
    """Where DeepSpeed keeps what is divided: cpu, or with zero3 nvme:FOLDER. For GPUs."""
    nodes: int = 1
    """Machines that train together, each with --processes; the same command runs on all, with another
    --node-rank."""
    node_rank: int = 0
    """Number of this machine, from 0; machine 0 writes the result."""
    main_address: str | None = None
    """HOST:PORT of machine 0, a free port that the others reach."""
    learning_rate: float = 1e-3
    """Peak of the learning rate, after the warm-up and before the cosine decay."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    optimizer: str = "adamw"
    """Optimizer: adamw, adamw-8bit, adafactor, lion, muon, galore, apollo, apollo-mini, lomo, badam,
    schedule-free, sgd; on a GPU also paged-adamw-8bit and adalomo."""
    optimizer_args: tuple[str, ...] = ()
    """Arguments of the optimizer's class as KEY=VALUE, such as rank=64 for galore."""
    scheduler: Scheduler = "cosine"
    """Course of the learning rate after the warm-up, by transformers' names."""
    scheduler_args: tuple[str, ...] = ()
    """Arguments of the scheduler as KEY=VALUE, such as min_lr_rate=0.1 for cosine_with_min_lr."""
    weight_decay: float = 0.0
    """Decoupled weight decay, not of biases and norms."""
    max_grad_norm: float = 1.0
    """Norm to which the gradients of a step are clipped; 0 = they are not."""
    beta: float | None = None
    """Preferences: strength with which the model is held to the one it began as; in ipo its tau. Default: the
    objective's."""
    loss_type: str | None = None
    """Preferences: form of the loss, by trl's names. Default: the objective's first one in --list."""
    desirable_weight: float | None = None
    """KTO: weight of the good answers. Default: 1."""
    undesirable_weight: float | None = None
    """KTO: weight of the bad answers. Default: 1."""
    simpo_gamma: float | None = None
    """SimPO: margin by which the better answer is to lead, divided by --beta. Default: 0.5."""
    label_smoothing: float = 0.0
    """Preferences: share of the pairs that are taken to be labelled the wrong way round."""
    reward: tuple[str, ...] = ()
    """Rewards of written answers, comma-separated, their sum counts: json (valid JSON), exact (the row's
    answer), fields (share of the fields of the row's JSON answer), length:TOKENS, schema:FILE (a JSON schema),
    FILE.py:function, or the folder of a reward model."""
    generations: int = 8
    """Answers that the model writes to each prompt; --batch-size counts answers. ppo: may be 1."""
    max_new_tokens: int = 128
    """Tokens of a written answer at most."""
    temperature: float = 1.0
    """Temperature at which answers are written."""
    ppo_epochs: int = 4
    """PPO: steps that learn from the same answers."""
    gamma: float = 1.0
    """PPO: factor of a reward for each token that it lies ahead."""
    gae_lambda: float = 0.95
    """PPO: between the value head's next word (0) and the rewards alone (1), in the advantages."""
    value_coef: float = 0.1
    """PPO: weight of the value head's loss."""
    cliprange: float = 0.2
    """PPO: change of a token's probability in --ppo-epochs steps, as a share, beyond which nothing more is
    learned; the same number bounds the change of a value."""
    neftune_alpha: float = 0.0
    """NEFTune: noise of this strength on the embeddings, 5 is usual; 0 = none."""
    cutoff_length: int = 512
    """Tokens of an example at most; longer ones are left out and counted."""
    lora_r: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: int = 32
    """LoRA's scale is alpha / r."""
    lora_dropout: float = 0.0
    """Share of LoRA's inputs that is dropped."""
    target_modules: tuple[str, ...] = ()
    """Modules that train: names, comma-separated, all-linear (every linear layer but the head), or a
    regular expression for a module's whole name. Default: the model card's for the method, for LoRA
    every linear layer of a block."""
    use_rslora: bool = False
    """rsLoRA: LoRA's scale is alpha / sqrt(r)."""
    use_dora: bool = False
    """DoRA: also learn the length of each row of a weight, apart from its direction."""
    lora_plus_ratio: float | None = None
    """LoRA+: learning rate of the matrices B over that of A. 1 = the same."""
    quantization: Literal["nf4", "fp4", "int8"] = "nf4"
    """Values at which QLoRA freezes the base's linear layers."""
    double_quant: bool = True
    """Quantize the scales of nf4 and fp4, too."""
    freeze_trainable_layers: int = 2
    """Layers that --method freeze trains: the last n, the first n where it is negative, 0 = all."""
    train_on_inputs: bool = False
    """Learn the prompt's tokens too, not only the answer's."""
    packing: bool = False
    """Put several examples into a row of --cutoff-length tokens; none sees another one. --batch-size then
    counts rows."""
    group_by_length: bool = True
    """Make batches of examples of similar length: less padding."""
    shared_prefix: bool = True
    """Compute the common beginning of a micro-batch's examples, such as a system prompt, once."""
    compute_type: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the computation; auto measures which is faster here."""
    keep_4bit: bool = False
    """Keep QLoRA's base packed in 4 bits (bitsandbytes): least memory, slower on a CPU."""
    threads: str = "all"
    """CPU threads of a process: a number, all = the cores / --processes, or auto = measured at the start and whenever the steps become slow,
    for a machine that others use. The number decides the last bits of the result."""
    checkpoint_activations: bool = False
    """Keep only the inputs of each block and compute the rest again in the backward pass: a fraction of
    the memory for activations, about 1.4 times the time."""
    offload_activations: bool = False
    """Move what the backward pass needs into a file beside the output until it is needed, on a GPU into
    the host's memory: the same losses, more time."""
    offload_weights: bool = False
    """Map the frozen weights from a file, so that the kernel can drop them where memory is short: the
    same losses. For a CPU."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Implementation of attention, by transformers' names; auto = transformers' choice for the model.
    flash_attention_2 needs a GPU and the package flash-attn."""
    seed: int = 0
    """Seed of the split, the order and the initialization."""
    eval_every: int = 0
    """Steps between points of the validation curve; 0 = five points, fewer where they would take more than
    a tenth of the time."""
    save_every: int = 50
    """Steps between checkpoints; 0 = none."""
    early_stopping: int = 0
    """Stop after so many evaluations in a row without a lower validation loss; 0 = never."""
    keep_best: bool = False
    """Keep the weights of the evaluation with the lowest validation loss in place of the last step's. A
    checkpoint is then written at every evaluation."""
    report_to: tuple[str, ...] = ()
    """Report losses to tensorboard (into OUTPUT.logs), wandb, mlflow, trackio and others, by transformers'
    names."""
    add_tokens: tuple[str, ...] = ()
    """New tokens, comma-separated, or a file with one on each line: they enter the tokenizer, and their
    rows of the embedding train."""
    adapter: Path | None = None
    """Adapter to train on from. Base, data, method, rank, alpha and modules are by default those of its
    training; a larger --lora-r begins with the same change of the weights."""
    ship: str | None = None
    """Type of the file to ship, such as q4_0 (gguf), int4 (onnx) or 4bit (gptq): at the end of the training the
    forward pass computes with that file's values, so that its rounding costs less. gptq-q4_0 and its like, with
    --adapter: export it so first, and train from that file (--ship-from)."""
    ship_steps: float | None = None
    """Steps at the end of the training that --ship takes: a share up to 1, a count above. Default: 0.25;
    with --adapter all."""
    ship_from: Path | None = None
    """A GGUF file of --ship's type that was exported from --adapter, such as gptq-q4_0.gguf: the training
    begins with its values and moves its codes, the scales stay."""
    ship_distill: float = 0.0
    """Share of the loss in these steps that is the Kullback-Leibler divergence from --adapter before its
    weights are rounded, 0 to 1."""
    ship_text: Path | None = None
    """A file with plain text, or auto for a text that the base writes itself, into OUTPUT.file: each of these
    steps reads 256 tokens of it, too, and learns the probabilities that --adapter gives them before its
    weights are rounded."""

    def __post_init__(self) -> None:
        """InputError for values outside their range, and for values that contradict each other."""
        self._check_numbers()
        self._check_combinations()

    def _check_numbers(self) -> None:
        if self.processes < 1 or not 0 <= self.node_rank < self.nodes:
            raise InputError(
                "--processes and --nodes are at least 1, --node-rank is from 0 to --nodes - 1"
            )
        if (self.nodes > 1) is not bool(self.main_address):
            raise InputError("--nodes and --main-address go together", "--main-address HOST:PORT")
        host, _, port = (self.main_address or "host:1").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"--main-address {self.main_address} is not HOST:PORT")
        if self.steps is not None and self.steps < 1 or not 0 < self.epochs < math.inf:
            raise InputError("--steps and --epochs must be positive")
        if self.threads not in ("all", "auto") and (
            not self.threads.isdecimal() or self.threads == "0"
        ):
            raise InputError(f"--threads {self.threads} is no number, nor all or auto")
        if not 0 <= self.validation_size < math.inf:
            raise InputError(f"--validation-size {self.validation_size} is no share and no count")
        if self.lora_plus_ratio is not None and not 0 < self.lora_plus_ratio < math.inf:
            raise InputError(f"--lora-plus-ratio {self.lora_plus_ratio} is not positive")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(f"--label-smoothing {self.label_smoothing} is no share below 0.5")
        for name in ("beta", "simpo_gamma", "desirable_weight", "undesirable_weight"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {value} is not positive")
        for name in ("generations", "max_new_tokens", "ppo_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is at least 1")
        for name in ("temperature", "cliprange"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name} {getattr(self, name)} is not above 0")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is not from 0 to 1"
                )
        for name in (
            "weight_decay",
            "max_grad_norm",
            "neftune_alpha",
            "early_stopping",
            "value_coef",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} is negative")

    def _check_combinations(self) -> None:
        count = self.world_size
        if count > 1 and self.micro_batch_size == "auto":
            raise InputError(
                "--micro-batch-size auto is for one process",
                f"such as --micro-batch-size {max(1, self.batch_size // count)}",
            )
        if self.micro_batch_size != "auto" and self.batch_size % (self.micro_batch_size * count):
            times = f" x {count} processes" if count > 1 else ""
            raise InputError(
                f"--batch-size {self.batch_size} is no multiple of "
                f"--micro-batch-size {self.micro_batch_size}{times}"
            )
        validates = self.validation_size or self.validation_data
        for name in ("keep_best", "early_stopping"):
            if getattr(self, name) and not validates:
                raise InputError(
                    f"--{name.replace('_', '-')} needs a validation loss", "--validation-size 0.05"
                )
        if self.keep_best and not self.save_every:
            raise InputError("--keep-best needs checkpoints", "leave --save-every 0 out")
        if self.offload_weights and self.keep_4bit:
            raise InputError(
                "--offload-weights maps weights in the type of the computation, not packed ones",
                "leave --keep-4bit or --offload-weights out",
            )
        if self.adapter and self.add_tokens:
            raise InputError(
                "--adapter and --add-tokens do not go together", "merge the adapter first"
            )
        self._check_ship()

    def _check_ship(self) -> None:
        """InputError for what --ship does not compute."""
        if self.ship_steps is not None and not (self.ship and self.ship_steps > 0):
            raise InputError("--ship-steps needs --ship and is above 0", "such as --ship q4_0")
        if not 0 <= self.ship_distill <= 1:
            raise InputError(f"--ship-distill {self.ship_distill} is no share", "such as 0.5")
        for name in ("ship_distill", "ship_text"):
            if getattr(self, name) and not (self.ship and self.adapter):
                raise InputError(
                    f"--{name.replace('_', '-')} needs --ship, and the --adapter that it learns from",
                    "--ship q4_0 --adapter FOLDER",
                )
        if self.ship_from and not (self.ship and self.adapter):
            raise InputError(
                "--ship-from needs --ship, and the --adapter that the file was exported from",
                "--ship q4_0 --adapter FOLDER",
            )
        if self.ship_from and self.ship_share != 1:
            raise InputError(
                "--ship-from computes with the file's values in every step",
                "leave --ship-steps out",
            )
        if not self.ship:
            return
        if self.neftune_alpha and (self.ship_distill or self.ship_text):
            raise InputError(
                "--neftune-alpha would also disturb the teacher of --ship-distill and --ship-text",
                "leave --neftune-alpha out",
            )
        for name in NOT_WITH_SHIP:
            if getattr(self, name):
                raise InputError(f"--ship and --{name.replace('_', '-')} do not go together")
        if self.compute_type == "bf16":
            raise InputError("--ship computes in float32", "leave --compute-type out")
        if (self.keep_best or self.early_stopping) and self.ship_share != 1:
            raise InputError(
                "validation losses before and after the first step of --ship do not compare",
                "--ship-steps 1, or neither --keep-best nor --early-stopping",
            )

    @property
    def ship_share(self) -> float:
        """`ship_steps` with its default."""
        return self.ship_steps or (1 if self.adapter else 0.25)

    def first_ship_step(self, steps: int) -> int:
        """Steps of a run of `steps` before those of --ship."""
        count = math.ceil(self.ship_share * steps) if self.ship_share <= 1 else int(self.ship_share)
        return max(0, steps - count)

    @property
    def work_folder(self) -> Path:
        """Where a run keeps its checkpoints, and files that memory was moved to."""
        return work_folder_of(self.output)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of each process in a step."""
        return self.batch_size // (int(self.micro_batch_size) * self.world_size)

    @property
    def world_size(self) -> int:
        """Processes of all machines."""
        return self.nodes * self.processes

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of a run over so many training examples."""
        return self.steps or math.ceil(self.epochs * math.ceil(examples / self.batch_size))

    def to_json(self) -> dict[str, Any]:
        """Fields as the manifest keeps them, paths as text and tuples as lists.

        A field that is younger than FIRST_FIELDS is left out at its default: adapters from before there
        was a choice stay complete. NOT_OF_RESULT is left out.
        """
        raw = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in FIRST_FIELDS
            or (getattr(self, field.name) != field.default and field.name not in NOT_OF_RESULT)
        }
        texts = {k: str(v) if isinstance(v, Path) else v for k, v in raw.items()}
        return cast(dict[str, Any], json.loads(json.dumps(texts)))


WORK_SUFFIX = ".work"


def work_folder_of(output: Path) -> Path:
    """The folder beside a result that holds the checkpoints of an unfinished run."""
    return output.with_name(output.name + WORK_SUFFIX)
