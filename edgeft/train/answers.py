"""Items and the model in training -> the accuracy of its greedy answers, by the task's own scorer.

items = AnswerItems(examples, scorer_named("json"), "json", max_tokens=64)
train(options, items=items)                 # answered whenever the validation loss is computed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.records import Example
from edgeft.tokenizer.answer_parts import with_calls_read
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import load_tokenizer
from edgeft.tokenizer.stops import stop_ids


@dataclass(frozen=True)
class AnswerItems:
    """What is asked during training."""

    examples: tuple[Example, ...]
    score: Callable[[str, str], float]
    """(reply, reference) -> 0 to 1"""
    scorer: str
    """its name"""
    max_tokens: int
    """of an answer; one that is cut off scores 0"""
    reads_calls: bool = False
    """the score is that of the answer's tool calls"""


class Answering:
    """The prompts of the items as token ids, and their answers by a model of transformers."""

    def __init__(self, items: AnswerItems, folder: Path, batch_size: int) -> None:
        """`folder`: with the tokenizer and its template. InputError where there are no items."""
        if not items.examples:
            raise InputError("there are no items to answer", "--eval-items FILE")
        self.items, self.batch_size = items, batch_size
        self._tokenizer = load_tokenizer(folder)
        chat = ChatTemplate.from_folder(folder)
        self._chat = chat
        self._stops = list(stop_ids(chat, folder))
        self._texts = [chat.render(one.prompt, tools=one.tools) for one in items.examples]
        self._prompts = [
            self._tokenizer.encode(text, add_special_tokens=False).ids for text in self._texts
        ]

    def accuracy(self, model: Any) -> float:
        """The mean score of the answers."""
        scores = [
            self.items.score(self._read(number, reply), self.items.examples[number].answer)
            if ended
            else 0.0
            for number, (reply, ended) in enumerate(self.replies(model))
        ]
        return sum(scores) / len(scores)

    def _read(self, number: int, reply: str) -> str:
        """A reply as its scorer reads it."""
        if not self.items.reads_calls:
            return reply
        tools = self.items.examples[number].tools
        return with_calls_read(self._chat, self._texts[number], tools, reply)

    def replies(self, model: Any) -> list[tuple[str, bool]]:
        """(answer, whether the model ended it) of every item, in their order."""
        order = sorted(range(len(self._prompts)), key=lambda i: len(self._prompts[i]))
        answers: dict[int, tuple[str, bool]] = {}
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            answers |= zip(numbers, self._batch(model, [self._prompts[i] for i in numbers]))  # noqa: B905
        return [answers[i] for i in range(len(order))]

    def _batch(self, model: Any, prompts: Sequence[list[int]]) -> Iterator[tuple[str, bool]]:
        import torch
        import transformers

        width = max(map(len, prompts))
        pad = self._stops[0] if self._stops else 0
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = (torch.arange(width)[None, :] >= width - lengths[:, None]).long()
        settings = transformers.GenerationConfig(
            max_new_tokens=self.items.max_tokens,
            do_sample=False,
            eos_token_id=self._stops or None,
            pad_token_id=pad,
        )
        with torch.no_grad():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
            )
        for row in output[:, width:].tolist():
            end = next((i for i, token in enumerate(row) if token in self._stops), None)
            yield self._tokenizer.decode(row[:end], skip_special_tokens=False), end is not None
