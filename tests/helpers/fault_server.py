"""A process that has imported everything -> runs of edgeft in forks of it, each with a fault.

    python fault_server.py core < requests          # or: all, with torch; one JSON object on each line

It runs with the shim (fault_shim.c) preloaded. A fork costs no imports: 0.02 s in place of 1 to 8 s of a core.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any

CORE = ("edgeft.cli", "llama_cpp", "numpy", "jinja2", "tokenizers", "safetensors.numpy", "gguf")
TORCH = ("torch", "transformers.trainer", "peft", "accelerate", "bitsandbytes", "safetensors.torch",
         "onnxruntime", "onnx_ir", "onnxruntime_genai.models.builder")  # fmt: skip
SHIM = ctypes.CDLL(None)


def main(kind: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in (*CORE, *(TORCH if kind == "all" else ())):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        for name in request.get("modules", ()):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        answers.write(json.dumps(run(request)) + "\n")
        answers.flush()


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Exit code (negative: the signal), number of calls and seconds of a processor of a fork."""
    child = os.fork()
    if not child:
        work(request)
    killed_at = time.monotonic() + request["timeout"]
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() > killed_at:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"code": "timeout", "count": SHIM.shim_count(), "cpu_s": 0.0}
        time.sleep(0.002)
    cpu_s = ended[2].ru_utime + ended[2].ru_stime
    code = os.waitstatus_to_exitcode(ended[1])
    return {"code": code, "count": SHIM.shim_count(), "cpu_s": cpu_s}


def work(request: dict[str, Any]) -> None:
    """The command, in the fork; never returns."""
    code = 99
    try:
        out = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ |= request["env"]
        for name, value in request.get("limits", {}).items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if name := request.get("modules_to"):
            atexit.register(write_modules, name, set(sys.modules))
        SHIM.shim_arm(
            os.fsencode(":".join(request["folders"])), ctypes.c_long(request["number"]),
            request["effect"], request["error"], os.fsencode(request["log"]),
        )  # fmt: skip
        from edgeft.cli import main as command

        for arguments in request["commands"]:
            try:
                command(arguments)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
            if code:
                break
    finally:
        if sys.exc_info()[0]:
            traceback.print_exc()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            atexit._run_exitfuncs()  # temporary folders
        os._exit(code)


def write_modules(path: str, before: set[str]) -> None:
    names = [name for name in sys.modules if name not in before and not name.startswith("__")]
    with open(path, "w") as file:
        json.dump(names, file)


main(sys.argv[1])
