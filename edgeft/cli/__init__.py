"""The command line: one file per command, which parses options, calls one function and prints.

Results go to stdout (with --json exactly one JSON object), progress and notes to stderr. A user error
is one line with a hint and exit code 1. Wrong usage is exit code 2.
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import threading
from typing import Any

import click

from edgeft import __version__
from edgeft.cli._old_names import current_args
from edgeft.errors import EdgeftError, did_you_mean, machine_error
from edgeft.progress import emit, say, write_json_lines

COMMANDS = {
    "demo": "Everything on an embedded model and task, in some ten minutes.",
    "data": "Check, clean, split and mix data files.",
    "baseline": "Is a fine-tune needed? What prompts and examples reach on bases.",
    "plan": "Memory, disk and time of every stage, before it starts.",
    "train-qlora": "Fine-tune: chats + base model -> LoRA adapter.",
    "train": "Fine-tune by any method: LoRA and its kin, IA3, BitFit, freeze, full.",
    "sweep": "Train with several learning rates, ranks, bases or mixes, and keep the best.",
    "convert-config": "A YAML of LLaMA-Factory or Axolotl -> a TOML for --config.",
    "merge-export": "Merge and quantize: adapter -> GGUF, ONNX or GPTQ, checked.",
    "search": "The smallest artifact that fits a budget and passes the gate.",
    "score": "Rate answers by a reward model.",
    "inspect": "Metadata, tensor types, template, stops and lineage.",
    "verify": "Every hash of a result and of its parents, computed again.",
    "sign": "Sign a result with a private key, for `verify --key`.",
    "chat": "Talk to an artifact on the CPU; reads a pipe too.",
    "serve": "An OpenAI-compatible server, many answers at a time.",
    "studio": "The whole way in a browser: every button is a command.",
    "bench": "Speed, memory, fidelity and accuracy of artifacts, in tables.",
    "ab": "Release gate: candidates against a baseline on the same items.",
    "report": "The page of a release again, or of a training with its loss curves.",
    "models": "Model families x what edgeft can do with them.",
}
"""in the order of use; a command is `command` in `edgeft/cli/<name with _>.py`"""


class Group(click.Group):
    """Imports the file of the command that is called, and no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgeft.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        add_progress_option(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no command {args[0]!r}; {did_you_mean(args[0], COMMANDS)}")
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, current_args(command, rest) if command else rest


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Documentation: docs/ in the repository, and `edgeft COMMAND --help`.",
)
@click.version_option(__version__, prog_name="edgeft")
def group() -> None:
    """From a QLoRA fine-tune to a model that runs on a plain CPU, checked against the original."""


def main(args: list[str] | None = None) -> None:
    """Entry point: runs a command and exits; a user error is one line on stderr."""
    write_json_lines(False)  # of an earlier call in the same process
    if threading.current_thread() is threading.main_thread():
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # so that SIGTERM cleans up as Ctrl-C does
    try:
        code: Any = group.main(args=args, prog_name="edgeft", standalone_mode=False)
    except EdgeftError as error:
        code = _fail(error.message, error.hint, error.exit_code)
    except click.ClickException as error:
        code = error.exit_code
        if not emit("error", message=error.format_message(), hint="", exit_code=code):
            error.show()
    except (click.Abort, KeyboardInterrupt):
        say("interrupted; nothing half-written was left")
        code = 130
    except Exception as error:
        problem = machine_error(error)
        if problem is None:
            raise
        code = _report(problem)
    sys.exit(code if isinstance(code, int) else 0)


def _report(problem: OSError | MemoryError) -> int:
    """Print one line for what the machine lacks; the exit code."""
    if isinstance(problem, MemoryError):
        return _fail("out of memory", "close other programs")
    where = f": {problem.filename}" if problem.filename else ""
    full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space, or choose another output; nothing half-written was left"
    return _fail(f"{problem.strerror or problem}{where}", hint if full else "")


def _fail(message: str, hint: str, code: int = EdgeftError.exit_code) -> int:
    """Print an error as one line, or as a JSON line; its exit code."""
    if not emit("error", message=message, hint=hint, exit_code=code):
        print(f"edgeft: error: {EdgeftError(message, hint)}", file=sys.stderr)
    return code


def add_progress_option(command: click.Command) -> None:
    """Give a command, or all commands of a group, the option --progress, where they lack it."""
    if isinstance(command, click.Group):
        for one in command.commands.values():
            add_progress_option(one)
    elif not any(param.name == "progress" for param in command.params):
        at = next((i for i, p in enumerate(command.params) if p.name == "config"), None)
        command.params.insert(len(command.params) if at is None else at, _progress_option())


def _progress_option() -> click.Option:
    return click.Option(
        ["--progress"],
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        is_eager=True,
        expose_value=False,
        callback=_set_progress,
        help="Notes, progress and errors on stderr: text for people, json = one JSON object a line.",
    )


def _set_progress(ctx: click.Context, param: click.Parameter, value: str) -> None:
    """`main` begins with text. The context of another command, as of a trial, changes nothing."""
    if value == "json":
        write_json_lines(True)
