"""The tokens of a conversation -> those that probably follow, which the model then verifies in one batch.

    draft = NgramDraft(prompt_ids)
    draft.append(token)            # each token of the answer
    draft.propose(most=7)          # [] where nothing is repeated
    draft.verified(7, accepted=5)  # how many of them the model chose, too

`NgramDraft` proposes what followed the same tokens before, which is prompt lookup decoding
(https://github.com/apoorvumang/prompt-lookup-decoding). `edgeft.runtimes.draft_model` asks a smaller model
(https://arxiv.org/abs/2211.17192). An answer keeps the tokens that its model would have chosen anyway. A
batch of several tokens takes longer than one token, so there is no proposal where proposals were wrong
lately.
"""

from __future__ import annotations

from collections.abc import Iterable

NGRAM_TOKENS = (4, 3)
"""lengths of the endings that are looked up, the longest first"""
FIRST_PROPOSAL_TOKENS = 3
PAUSE_TOKENS = 8
"""of an answer, without a proposal after one of which less than half was right; doubled each time"""
MAX_PAUSE_TOKENS = 64


class Draft:
    """The tokens of one conversation; a subclass guesses those that follow."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids: list[int] = []
        self._width, self._pause, self._paused = FIRST_PROPOSAL_TOKENS, PAUSE_TOKENS, 0
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        self.ids.append(token)
        self._paused -= self._paused > 0

    def propose(self, most: int) -> list[int]:
        """At most so many tokens."""
        return [] if self._paused or most < 1 else self.guess(min(most, self._width))

    def guess(self, most: int) -> list[int]:
        raise NotImplementedError

    def verified(self, proposed: int, accepted: int) -> None:
        """Longer proposals after one that was right, a pause after one that was mostly wrong."""
        if accepted == proposed:
            self._width, self._pause = 2 * self._width, PAUSE_TOKENS
        elif 2 * accepted >= proposed:
            self._width = max(accepted, FIRST_PROPOSAL_TOKENS)
        else:
            self._width, self._paused = FIRST_PROPOSAL_TOKENS, self._pause
            self._pause = min(2 * self._pause, MAX_PAUSE_TOKENS)


class NgramDraft(Draft):
    def __init__(self, ids: Iterable[int]) -> None:
        self._next: dict[tuple[int, ...], int] = {}
        """n-gram -> where the token after its last occurrence stands"""
        self._before: list[int] = []
        """where the token after an earlier occurrence of the present endings stands"""
        super().__init__(ids)

    def append(self, token: int) -> None:
        super().append(token)
        self._before = []
        for length in NGRAM_TOKENS:
            ending = tuple(self.ids[-length:])
            if len(ending) == length:
                if (at := self._next.get(ending)) is not None:
                    self._before.append(at)
                self._next[ending] = len(self.ids)

    def guess(self, most: int) -> list[int]:
        return self.ids[self._before[0] :][:most] if self._before else []
