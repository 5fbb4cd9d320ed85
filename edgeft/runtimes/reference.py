"""The reference: transformers in float32 on the CPU, the model that every artifact is held to.

    with ReferenceRuntime(Path("merged")) as model: ...
    ReferenceRuntime(base, weights=((name, merged.tensor(name)) for name in merged.shapes))

The second form runs a Merged view without writing it to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgeft import models
from edgeft.errors import InputError, require
from edgeft.records import Limits, Reply, Token
from edgeft.template import ChatTemplate, encoder, eos_ids, load_tokenizer, read_json

Weights = Iterable[tuple[str, npt.NDArray[np.float32]]]


class ReferenceRuntime:
    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        context: int | None = None,
        weights: Weights | None = None,
    ) -> None:
        self._torch = torch = require("torch", "train")
        transformers = require("transformers", "train")
        transformers.utils.logging.disable_progress_bar()
        architecture = models.transformers_class(read_json(path / "config.json"))
        if threads:
            torch.set_num_threads(threads)
        if weights is None:
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        else:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            config.dtype = torch.float32
            self._model = self._filled(architecture, config, weights)
        self._model.eval()
        self._tokenizer = load_tokenizer(path)
        self._stops = set(eos_ids(path))
        self.encode = encoder(path)
        self.chat = ChatTemplate.from_folder(path)
        self.vocab_size = int(self._model.config.vocab_size)
        self.context = min(int(self._model.config.max_position_embeddings), context or 4096)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        if len(ids) > self.context:
            raise InputError(f"{len(ids)} tokens are more than the context of {self.context}")
        with self._torch.inference_mode():
            out: npt.NDArray[np.float32] = self._model(self._torch.tensor([list(ids)])).logits[0]
        return np.asarray(out, np.float32)

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        torch = self._torch
        started = time.perf_counter()
        pending, shown, produced = torch.tensor([list(ids)]), "", []
        cache: Any = None
        draw = np.random.default_rng(limits.seed)
        for _ in range(min(limits.max_tokens, self.context - len(ids))):
            with torch.inference_mode():
                out = self._model(pending, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = _choose(out.logits[0, -1].numpy(), limits, draw)
            if token in self._stops and not limits.past_stops:
                return
            produced.append(token)
            text = self._tokenizer.decode(produced, skip_special_tokens=False)
            whole = text.removesuffix("\ufffd")
            yield Token(token, whole[len(shown) :], time.perf_counter() - started)
            shown = whole
            pending = torch.tensor([[token]])

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        replies = []
        for prompt in prompts:
            tokens = list(self.stream(prompt, limits))
            text = "".join(token.text for token in tokens)
            ids = tuple(token.id for token in tokens)
            replies.append(Reply(text, ids, stopped=len(ids) < limits.max_tokens))
            if progress:
                progress(len(replies))
        return replies

    def close(self) -> None:
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _filled(self, model: Any, config: Any, weights: Weights) -> Any:
        """A model of these weights under the checkpoint's names; every parameter must get one."""
        named = {name: self._torch.from_numpy(values) for name, values in weights}
        made, facts = model.from_pretrained(
            None, config=config, state_dict=named, output_loading_info=True
        )
        left = sorted(facts["missing_keys"])
        if left:
            raise InputError(f"the model has no weights for {', '.join(left[:3])}")
        return made


def _choose(logits: npt.NDArray[np.float32], limits: Limits, draw: np.random.Generator) -> int:
    """Greedy, or nucleus sampling (arXiv 1904.09751)."""
    if limits.temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)
    scaled = (logits[order] - logits[order[0]]) / limits.temperature
    share = np.exp(scaled) / np.exp(scaled).sum()
    keep = int(np.searchsorted(np.cumsum(share), limits.top_p)) + 1
    return int(draw.choice(order[:keep], p=share[:keep] / share[:keep].sum()))
