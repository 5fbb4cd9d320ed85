"""The options of an export. The string after a field is the help of its option."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgeft.adapter.read import Weighted


@dataclass(frozen=True)
class ExportOptions:
    """Inputs, formats and output folder of an export: the options of `edgeft merge-export`."""

    out: Path
    """Folder for the artifacts; it is created."""
    adapter: tuple[Weighted, ...] = ()
    """Adapter in peft's format; repeatable, summed by weight (default 1). Without an adapter the base
    is exported unchanged."""
    base: str | None = None
    """Base model: a Hugging Face folder, a .gguf, a hub id or an embedded one such as smollm2-135m.
    Default: the one that the adapter was trained on."""
    formats: tuple[str, ...] = ()
    """gguf (for llama.cpp), onnx (for ONNX Runtime), gptq (4-bit codes for transformers, vLLM and
    GPTQModel) or hf (a merged Hugging Face folder); repeatable. Default: gguf, or without --quant the
    format of the training's --ship; of a reward model hf."""
    quants: tuple[str, ...] = ()
    """Types of the weights, from exact to small; repeatable. gguf: such as f16, q8_0, q4_k_m;
    those that begin with gptq- are calibrated, auto fits --max-size. onnx: f32, int8, int4-mixed, gptq-int4, int4. gptq:
    8bit, 4bit, 3bit, 2bit. Default: the type of the training's --ship in its format, else gguf q4_k_m, onnx
    int4, gptq 4bit, hf f32."""
    base_precision: Literal["auto", "stored", "nf4", "fp4", "int8"] = "auto"
    """Weights that the adapter is added to: as they are stored, or the values in 4 or 8 bits that a
    QLoRA was trained on. auto: for a QLoRA the one with the smaller loss on the validation split, of a reward
    model the one of its training, else as they are stored."""
    double_quant: bool = True
    """Whether the 4-bit base of the training was quantized twice (bnb_4bit_use_double_quant), for an
    adapter that edgeft did not train."""
    validation_data: Path | None = None
    """Chats that the training did not see, to choose the base precision by. Default: the split that the
    training held out."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row of --validation-data or --calibration that cannot be used does: stop = an error that
    lists the first ten, skip = it is left out and counted."""
    imatrix: str | None = None
    """Importance matrix, with which coarse types lose less: a file of llama-imatrix, or auto = measured
    on the chats of the training and kept as imatrix.gguf."""
    calibration: Path | None = None
    """Chats (.jsonl, .json, .csv, .parquet) or plain text that GPTQ, --imatrix auto and --quant auto learn from. auto:
    the chats of the training."""
    calibration_text: Path | None = None
    """Plain text that a quarter of the calibration tokens come from, beside the chats, so that the file
    keeps more of what the fine-tune did not train."""
    calibration_tokens: int | None = None
    """Tokens of the calibration text that are used at most. Default: 8,192, or twice the columns of the
    widest layer where that is more."""
    group_size: int | None = None
    """Columns that share a scale, for --format gptq and onnx; -1 = a whole row (gptq). auto: for gptq
    the largest that divides every layer, for onnx 32."""
    symmetric: bool = True
    """Whether zero lies in the middle of the codes, for --format gptq."""
    dampening_frac: float = 0.01
    """GPTQ: share of the Hessian's mean diagonal that is added to its diagonal. It grows by itself
    where that is not enough."""
    offload_activations: bool = False
    """GPTQ keeps its activations on disk, not in memory."""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """Another type for the tensors whose GGUF name matches, such as ffn_down=q6_k; repeatable, the
    first match counts."""
    max_size: int | None = None
    """Size of the file of --quant auto at most, such as 80M: each tensor gets the type that loses least for
    its bytes, measured on the calibration text."""
    compare_live: bool = True
    """Compare the artifact's answers with the unmerged base and adapter in float32. Needs the train
    extra and the memory; without either it is left out, with a note."""
    threads: int = len(os.sched_getaffinity(0))
    """CPU threads."""
    overwrite: bool = False
    """Replace the artifacts of another run."""

    @property
    def format_names(self) -> tuple[str, ...]:
        """`formats` with the default."""
        return self.formats or ("gguf",)
