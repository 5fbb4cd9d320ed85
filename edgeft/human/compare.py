"""People compare two artifacts blindly: a local web page of answers side by side -> a result.

    result = compare(Path("q4_k_m.gguf"), Path("f16.gguf"), asking, Voting())
    print(text(result))

Both arms answer all items first. Then a rater sees pairs of answers in random order and on random
sides, without a name; votes are kept as they are made, so a later run goes on where this one ended.
"""

from __future__ import annotations

import contextlib
import os
import sys
import webbrowser
from pathlib import Path

from edgeft import store
from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality import evaluate
from edgeft.errors import InputError
from edgeft.formats import format_of
from edgeft.human.booth import Booth
from edgeft.human.options import Voting
from edgeft.human.server import serving
from edgeft.human.tally import Result, count, text
from edgeft.human.votes import Pairs, VotesFile
from edgeft.progress import say

__all__ = ["Result", "Voting", "compare", "text"]


def compare(one: Path, other: Path, asking: EvalOptions, voting: Voting) -> Result:
    """Answer, ask for votes until all are given, the rater ends it or Ctrl-C, and count.

    InputError before any work for what is no artifact, or for two that are the same.
    """
    for path in (one, other):
        format_of(path)
    identities = store.identity(one), store.identity(other)
    if identities[0] == identities[1]:
        raise InputError(f"{one} and {other} are the same model", "two different ones")
    items = evaluate.load_items(asking)
    scores = evaluate.measure(one, items, asking), evaluate.measure(other, items, asking)
    names = evaluate.names_of([one, other])
    pairs = Pairs((names[one], names[other]), identities, items.examples, scores)
    path = voting.votes or Path(f"{one.stem}-{other.stem}.votes.jsonl")
    with VotesFile(path, pairs) as file:
        if pairs.identical:
            counted = f"{len(pairs.identical)} of {len(items.examples)} answers are identical"
            say(f"{counted}: ties, without asking")
        booth = Booth(pairs, file, voting.rater)
        if booth.queue:
            _ask(booth, voting)
        return count(pairs, file.seed, file.votes)


def _ask(booth: Booth, voting: Voting) -> None:
    with serving(booth, voting.port) as url:
        say(f"{len(booth.queue)} pairs to vote on, kept in {booth.file.path}")
        with contextlib.suppress(KeyboardInterrupt):
            say(f"{url} (Ctrl-C ends with the result so far)")
            if voting.browser and _has_screen():
                webbrowser.open(url)
            booth.ended.wait()


def _has_screen() -> bool:
    """Elsewhere the default browser would be one that takes over the terminal."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform != "linux" or any(os.environ.get(name) for name in names)
