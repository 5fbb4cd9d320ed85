"""A GGUF file from anywhere -> InputError where llama.cpp would end the process that opens it.

    check_survives(Path("model.gguf"))      # once per file; 1 s and one reading of the weights

`edgeft.weights.gguf_check` knows what llama.cpp asserts of a header. What it does not foresee would still
abort a chat or a server. So a file is opened once in a process of its own, which computes one token.
That it survived is noted in the cache folder, by inode, size and time of the file.
"""

from __future__ import annotations

import contextlib
import re
from importlib.metadata import version
from pathlib import Path

from edgeft.child_process import Ended, Limits, Worker
from edgeft.errors import EdgeftError, InputError
from edgeft.files import home, is_file

CPU_S, BYTES_PER_CPU_S = 3.0, 50_000_000
"""time to load and compute one token: seconds, and bytes of the file per further second"""
MEMORY_BYTES = 1_000_000_000
"""beside as much as the file has"""
TRIAL_BATCH_TOKENS, TRIAL_CELLS = 8, 64


def check_survives(path: Path) -> None:
    """InputError where the process that opens `path` and computes a token is ended.

    What llama.cpp reports as an error is none here: whoever opens the file gets it.
    """
    mark = _mark(path)
    if is_file(mark):
        return
    size = path.stat().st_size
    worker = Worker(
        Path(__file__), "attempt", Limits(CPU_S + size / BYTES_PER_CPU_S, MEMORY_BYTES + size)
    )
    try:
        worker.ask("")
        worker.ask(str(path))
    except Ended as end:
        raise InputError(
            f"cannot load {path}: {_assertion(end.errors) or end}", "export or download it again"
        ) from None
    finally:
        worker.close(kill=True)
    remember(path)


def remember(path: Path) -> None:
    """Note that `path` was opened and computed: the next `check_survives` has nothing to do."""
    mark = _mark(path)
    with contextlib.suppress(OSError):  # a folder that cannot be written costs a trial each time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def attempt(path: str) -> None:
    """Load a file and compute one token; "" only loads the library. Runs in the process with limits."""
    from edgeft.runtimes.llama_context import LlamaContext, LlamaModel
    from edgeft.runtimes.llama_library import load_library
    from edgeft.runtimes.llama_vocabulary import LlamaVocabulary

    load_library()
    if not path:
        return
    with contextlib.suppress(EdgeftError), contextlib.ExitStack() as resources:
        model = LlamaModel(Path(path), threads=1, batch_invariant=True)
        resources.callback(model.close)
        vocabulary = LlamaVocabulary(model)
        ids = vocabulary.encode("a 1") or [0]
        params = model.context_params(TRIAL_CELLS)
        params.n_batch = params.n_ubatch = TRIAL_BATCH_TOKENS
        context = LlamaContext(model, params)
        resources.callback(context.close)
        context.decode([(token, i, 0) for i, token in enumerate(ids[:2])], outputs=1)


def _mark(path: Path) -> Path:
    stat = path.stat()
    name = f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
    return home() / "tried" / f"{name}-{version('llama-cpp-python')}"


def _assertion(errors: str) -> str:
    """What llama.cpp says of its own end, "" where it says nothing."""
    match = re.search(r"(GGML_ASSERT\(.*\) failed)|what\(\):\s+(.*)", errors)
    return f"llama.cpp ends with {match[1] or match[2]}" if match else ""
