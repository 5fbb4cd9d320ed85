"""A training that is interrupted after some of its steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from edgeft.progress import Progress


@contextlib.contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """The training in the block ends with KeyboardInterrupt after its step number `step`."""
    update = Progress.update

    def interrupted(self: Progress, done: int, **kwargs: Any) -> None:
        update(self, done, **kwargs)
        if self.done == step and done:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "update", interrupted)
        yield
