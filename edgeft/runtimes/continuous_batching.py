"""Answer many prompts side by side, greedily: prompts -> replies, in the order in which they end.

When an answer ends, the next prompt takes its place. The scheduler of the server, which takes
requests at any time, is `edgeft.server.batching_engine`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from edgeft.records import Limits, Reply
from edgeft.runtimes.llama_vocabulary import LlamaVocabulary
from edgeft.runtimes.sampling import common_prefix
from edgeft.runtimes.sequences import Sequences


class _Answer:
    def __init__(self, index: int, prompt: Sequence[int]) -> None:
        self.index, self.prompt = index, prompt
        self.ids: list[int] = []
        self.seconds: list[float] = []
        self.stopped = False


def greedy_replies(
    sequences: Sequences,
    vocabulary: LlamaVocabulary,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    context: int,
) -> Iterator[tuple[int, Reply]]:
    """(index of the prompt, its reply). All but the last of `sequences` are for answers; the last one
    keeps the beginning that all prompts share. `context`: tokens that a conversation may have.

    Prompts are read one by one, and the sequences in use stay without gaps: llama.cpp computes only
    sequences with neighbouring numbers together, and only the same number of tokens of each.
    """
    start = time.perf_counter()
    slots = sequences.count - 1

    def ends(answer: _Answer, token: int) -> bool:
        """Add a token to an answer. Is that its end?"""
        if token in vocabulary.eos_ids and not limits.ignore_eos:
            answer.stopped = True
            return True
        answer.ids.append(token)
        answer.seconds.append(time.perf_counter() - start)
        full = len(answer.prompt) + len(answer.ids) > context
        return full or len(answer.ids) == limits.max_tokens

    def reply(answer: _Answer) -> tuple[int, Reply]:
        text = "".join(map(vocabulary.decoder(), answer.ids))
        ids, seconds = tuple(answer.ids), tuple(answer.seconds)
        return answer.index, Reply(text, ids, answer.stopped, seconds)

    shared = min(common_prefix(prompts[0], prompt[:-1]) for prompt in prompts)
    sequences.read(slots, prompts[0][:shared])
    waiting = [_Answer(index, prompt) for index, prompt in enumerate(prompts)][::-1]
    running: list[_Answer] = []
    """the answer of each sequence"""
    while waiting or running:
        while waiting and len(running) < slots:
            answer, number = waiting.pop(), len(running)
            if shared:
                sequences.copy(slots, number)
            else:
                sequences.truncate(number, 0)
            sequences.read(number, answer.prompt[shared:])
            if ends(answer, int(sequences.row(0).argmax())):
                yield reply(answer)
            else:
                running.append(answer)
        if not running:
            break
        sequences.step([(number, answer.ids[-1]) for number, answer in enumerate(running)])
        tokens = sequences.rows.argmax(axis=1).tolist()
        for number, answer in reversed(list(enumerate(running))):
            if ends(answer, tokens[number]):
                yield reply(answer)
                last = running.pop()
                if number < len(running):
                    running[number] = last
                    sequences.copy(len(running), number)
