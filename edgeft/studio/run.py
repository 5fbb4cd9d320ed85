"""Takes `StudioOptions` and the commands, and serves the studio until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Sequence

from edgeft.errors import InputError
from edgeft.progress import say
from edgeft.studio.desktop import open_address
from edgeft.studio.forms import Commands
from edgeft.studio.options import StudioOptions
from edgeft.web.http_server import listen, require_serve_extra, uvicorn_server

PROGRAM = (sys.executable, "-P", "-m", "edgeft")
GRACE_S = 1.0
MIN_KEY_CHARS = 16


def studio(options: StudioOptions, commands: Commands, program: Sequence[str] = PROGRAM) -> None:
    """Returns after SIGTERM or SIGINT; running jobs go on.

    The current folder is the workspace meanwhile: relative paths of a form are then those of its job. `program`:
    the words before those of a job.
    """
    require_serve_extra()
    from edgeft.studio.context import Studio
    from edgeft.studio.jobs import Jobs
    from edgeft.studio.render import Renderer
    from edgeft.studio.runner import Runner
    from edgeft.studio.workspace import Workspace

    workspace = Workspace(options.workspace)
    key = _key(options) or workspace.key()
    with contextlib.closing(listen(options.host, options.port)) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        jobs = Jobs(workspace.studio / "jobs")
        shared = Studio(workspace, jobs, commands, key, options.max_upload, Renderer())
        with (
            workspace.opened(address),
            contextlib.chdir(workspace.root),
            Runner(jobs, workspace.root, program, shared.flags),
        ):
            asyncio.run(_serve(options, shared, listening, address))
    if running := sum(job.state in ("running", "stopping") for job in jobs.all()):
        say(f"{running} jobs go on without the studio; the next one finds them")


async def _serve(
    options: StudioOptions, shared: object, listening: socket.socket, address: str
) -> None:
    from edgeft.studio.app import studio_app
    from edgeft.studio.context import Studio

    assert isinstance(shared, Studio)
    names = {options.host, socket.gethostname(), *options.allow_host}
    app, events = studio_app(
        shared, listening.getsockname()[1], frozenset(name.lower() for name in names)
    )
    server = uvicorn_server(app, GRACE_S)

    def stop() -> None:
        events.ended.set()
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    page = f"{address}/?key={shared.key}"
    say(f"workspace {shared.root}")
    say(f"{page} (Ctrl-C ends the studio, not its jobs)")
    if options.browser:
        open_address(page)
    await server.serve(sockets=[listening])


def _key(options: StudioOptions) -> str:
    """The key in `key_file`, "" without one. InputError where it is too short to be one."""
    if options.key_file is None:
        return ""
    try:
        text = options.key_file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--key-file {options.key_file}: {error}", "a text file") from None
    if len(text) < MIN_KEY_CHARS or len(text.split()) != 1:
        hint = f"one line of {MIN_KEY_CHARS} characters at least"
        raise InputError(f"--key-file {options.key_file} holds no key", hint)
    return text
