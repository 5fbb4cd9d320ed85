"""Two artifacts and items -> a `Result`: people compare the answers blindly on a local web page.

    result = run_voting(Path("q4_k_m.gguf"), Path("f16.gguf"), eval_options, VotingOptions())
    print(result_text(result))

Both arms answer all items first. Then a rater sees pairs of answers, in random order and on random
sides, without names. Every vote is kept at once, so a later run continues where this one ended.
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
from edgeft.human.options import VotingOptions
from edgeft.human.session import RaterSession
from edgeft.human.tally import Result, count_votes
from edgeft.human.votes import Pairs, VotesFile
from edgeft.progress import say
from edgeft.web.http_server import require_serve_extra


def run_voting(one: Path, other: Path, eval_options: EvalOptions, options: VotingOptions) -> Result:
    """Answer, collect votes, and count them.

    Voting ends when every pair has a vote, when the rater ends it, or at Ctrl-C. Before any model
    answers: MissingExtra without the extra `serve`, InputError for a path that is no artifact or for
    two artifacts that are the same model.
    """
    require_serve_extra()
    for path in (one, other):
        format_of(path)
    identities = store.identity(one), store.identity(other)
    if identities[0] == identities[1]:
        raise InputError(f"{one} and {other} are the same model", "two different ones")
    items = evaluate.load_items(eval_options)
    scores = (
        evaluate.measure(one, items, eval_options),
        evaluate.measure(other, items, eval_options),
    )
    names = evaluate.names_of([one, other])
    pairs = Pairs((names[one], names[other]), identities, items.examples, scores)
    path = options.votes or Path(f"{one.stem}-{other.stem}.votes.jsonl")
    with VotesFile(path, pairs) as file:
        if pairs.identical:
            counts = f"{len(pairs.identical)} of {len(items.examples)} answers are identical"
            say(f"{counts}: ties, without asking")
        session = RaterSession(pairs, file, options.rater)
        if session.queue:
            _collect_votes(session, options)
        return count_votes(pairs, file.seed, file.votes)


def _collect_votes(session: RaterSession, options: VotingOptions) -> None:
    from edgeft.human.server import serving  # needs the extra `serve`

    with serving(session, options.port) as url:
        say(f"{len(session.queue)} pairs to vote on, kept in {session.file.path}")
        with contextlib.suppress(KeyboardInterrupt):
            say(f"{url} (Ctrl-C ends with the result so far)")
            if options.browser and _has_screen():
                webbrowser.open(url)
            session.ended.wait()


def _has_screen() -> bool:
    """Whether a browser has a window. Without one it would be a text browser in this terminal."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform != "linux" or any(os.environ.get(name) for name in names)
