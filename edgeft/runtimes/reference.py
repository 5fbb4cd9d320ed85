"""Run a Hugging Face folder by transformers, in float32 on the CPU: the reference of every artifact.

    with ReferenceRuntime(Path("merged")) as model: ...
    with ReferenceRuntime(base, adapters=[(Path("adapter"), 1.0)]) as live:
        live.logits(ids)
        with live.without_adapter(): live.logits(ids)

The second form is the live model: peft runs the adapter beside the base, nothing is merged.
`weights` replaces the values of the files, for example by their values in NF4, or by those of a
Merged view (with its `config` and `tokenizer`) that was never written to disk. A quantized folder
runs on its dequantized values, a multimodal one on its text model.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgeft import models
from edgeft.adapter.config import CHANGED_CONFIG_KEYS
from edgeft.adapter.folder import open_adapter
from edgeft.errors import FormatError, InputError, require
from edgeft.progress import quiet_libraries
from edgeft.records import Limits, Reply, Token
from edgeft.runtimes.protocol import DEFAULT_CONTEXT_TOKENS
from edgeft.runtimes.sampling import choose, in_turn
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, load_tokenizer
from edgeft.tokenizer.stops import stop_ids
from edgeft.tokenizer.training_settings import config_overrides
from edgeft.weights.text_base import open_base

Weights = Iterable[tuple[str, npt.NDArray[np.float32]]]
"""(tensor name, values)"""


class ReferenceRuntime:
    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        context: int | None = None,
        weights: Weights | None = None,
        adapters: Sequence[tuple[Path, float]] = (),
        config: dict[str, Any] | None = None,
        tokenizer: Path | None = None,
        vocabulary: int | None = None,
    ) -> None:
        """`config`: settings that differ from the base's. `tokenizer`: its folder, default `path`.
        `adapters`: (folder, weight in their sum). `vocabulary`: rows of the embedding that the
        adapters were trained on. `threads`: default torch's. `context`: tokens, default what the
        model allows up to 4096."""
        with quiet_libraries():
            self._torch = torch = require("torch", "train")
            transformers = require("transformers", "train")
            transformers.utils.logging.disable_progress_bar()
            base = open_base(path)
            architecture = models.transformers_class(base.config)
            if threads:
                torch.set_num_threads(threads)
            overrides = config_overrides(path)
            if weights is None and not base.plain:
                weights = base.tensors()
            if weights is None:
                self._model = transformers.AutoModelForCausalLM.from_pretrained(
                    path,
                    dtype=torch.float32,
                    local_files_only=True,
                    use_safetensors=True,
                    # That of the base may be one that transformers refuses.
                    generation_config=transformers.GenerationConfig(),
                    **overrides,
                )
            else:
                changed = {
                    key: value
                    for key, value in (config or {}).items()
                    if key in CHANGED_CONFIG_KEYS
                }
                model_config = models.transformers_config(base.config | overrides | changed)
                model_config.dtype = torch.float32
                self._model = self._with_weights(architecture, model_config, weights)
            if vocabulary and vocabulary != self._model.get_input_embeddings().weight.shape[0]:
                self._model.resize_token_embeddings(vocabulary, mean_resizing=False)
            self.adapted = bool(adapters)
            if adapters:
                self._load_adapters(path, adapters)
            self._model.eval()
        folder = tokenizer or path
        self._tokenizer = load_tokenizer(folder)
        self.encode = encoder(folder)
        self.chat = ChatTemplate.from_folder(folder)
        self.eos_ids = frozenset(stop_ids(self.chat, folder))
        self.vocab_size = int(self._model.config.vocab_size)
        self.context = min(
            int(self._model.config.max_position_embeddings), context or DEFAULT_CONTEXT_TOKENS
        )

    @property
    def model(self) -> Any:
        """transformers' model, in float32."""
        return self._model

    def logits(self, ids: Sequence[int], last: int | None = None) -> npt.NDArray[np.float32]:
        if len(ids) > self.context:
            raise InputError(f"{len(ids)} tokens are more than the context of {self.context}")
        with self._torch.inference_mode():
            # logits_to_keep: 0 = all
            rows = self._model(self._torch.tensor([list(ids)]), logits_to_keep=last or 0).logits[0]
        return np.asarray(rows.numpy(), np.float32)

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        torch = self._torch
        start = time.perf_counter()
        input_ids, new_ids, shown = torch.tensor([list(ids)]), [], ""
        cache: Any = None
        rng = np.random.default_rng(limits.seed & 0xFFFFFFFF)
        for _ in range(min(limits.max_tokens, self.context - len(ids))):
            with torch.inference_mode():
                out = self._model(input_ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = choose(out.logits[0, -1].numpy(), limits, rng)
            if token in self.eos_ids and not limits.ignore_eos:
                return
            new_ids.append(token)
            text = self._tokenizer.decode(new_ids, skip_special_tokens=False)
            complete = text.removesuffix("\ufffd")  # which stands for an unfinished character
            yield Token(token, complete[len(shown) :], time.perf_counter() - start)
            shown = complete
            input_ids = torch.tensor([[token]])

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        return in_turn(self.stream, prompts, limits, lambda _: limits.max_tokens, progress)

    def close(self) -> None:
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def without_adapter(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the base runs alone."""
        if not self.adapted:
            return contextlib.nullcontext()
        manager: contextlib.AbstractContextManager[None] = self._model.disable_adapter()
        return manager

    def _load_adapters(self, base: Path, adapters: Sequence[tuple[Path, float]]) -> None:
        peft = require("peft", "train")
        names = [f"adapter_{i}" for i in range(len(adapters))]
        weights = [weight for _, weight in adapters]
        loading = ""
        try:
            for name, (path, _) in zip(names, adapters, strict=True):
                loading, folder = str(path), open_adapter(path, base).folder
                if name == names[0]:
                    self._model = peft.PeftModel.from_pretrained(self._model, folder, name)
                else:
                    self._model.load_adapter(folder, name)
            if weights != [1.0]:
                loading = f"the sum of {', '.join(str(path) for path, _ in adapters)}"
                self._model.add_weighted_adapter(names, weights, "sum", combination_type="cat")
                self._model.set_adapter("sum")
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Adapters of another version of peft, mostly of experts; sums that peft cannot build.
            reason = str(error).strip().partition("\n")[0]
            raise FormatError(f"peft cannot load {loading}: {reason}") from None

    def _with_weights(self, architecture: Any, config: Any, weights: Weights) -> Any:
        """A model with `weights`, which have the names of the checkpoint. InputError where a parameter
        gets none."""
        state_dict = {name: self._torch.from_numpy(values) for name, values in weights}
        model, info = architecture.from_pretrained(
            None, config=config, state_dict=state_dict, output_loading_info=True
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise InputError(f"the model has no weights for {', '.join(missing[:3])}")
        return model
