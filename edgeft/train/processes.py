"""A prepared run -> its facts, trained by several processes, of this machine or of several (torch.distributed).

    facts = train_together(Together(options, method, objective, …))

Each process, a rank, trains on its share of every batch, and accelerate sums the gradients (gloo on a CPU,
nccl on GPUs). Rank 0 writes checkpoints and result and shows the progress. This process trains nothing: it
starts the ranks, and where one ends early it ends the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from edgeft import machine
from edgeft.child_process import ctrl_c_ignored, end_with_parent
from edgeft.errors import EdgeftError, InputError, ResourceError, machine_error
from edgeft.progress import Progress, quiet_libraries, write_json_lines, writes_json_lines
from edgeft.train.answers import Answering
from edgeft.train.checkpoints import Request
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method, Objective
from edgeft.train.zero import processes_config

PATHS = ("base", "data", "output", "validation_data", "adapter")
"""options that may differ from machine to machine: their contents are compared"""
START_METHOD = "spawn"
"""of multiprocessing: a forked process would inherit locks of torch's threads"""
GRACE_S = 2.0
"""seconds in which other ranks may say why they ended, once one has: the first to be seen need not be the cause"""


@dataclass(frozen=True)
class Together:
    """What every rank gets: the arguments of `loop.fit`."""

    options: TrainOptions
    method: Method
    objective: Objective
    title: str
    """of the progress bar"""
    steps: int
    work_folder: Path
    checkpoint: Path | None
    output: Path
    """an empty folder, where rank 0 writes the result"""
    answering: Answering | None
    request: Request
    """what the run was asked for: the same on every machine, but for its paths"""


@dataclass(frozen=True)
class Ended:
    """How a rank ended."""

    facts: dict[str, Any] | None = None
    """of rank 0"""
    error: Exception | None = None
    """what a user or this machine can mend"""
    defect: str = ""
    """the traceback of any other exception"""
    lost: str = ""
    """why it lost the others"""
    signal: int = 0
    """the number of the signal that ended it from outside"""

    @property
    def failed(self) -> bool:
        return bool(self.error or self.defect or self.lost or self.signal)


def train_together(run: Together) -> dict[str, Any]:
    """The facts of `loop.fit`, from rank 0; {} on a machine that has not rank 0.

    Raises what a rank raised, and ResourceError where one was ended from outside.
    """
    count = run.options.processes
    _check_gpus(count)
    budget = machine.budget().shared_by(count)
    payload = pickle.dumps(run)  # unpickled in a rank once its threads are limited
    with tempfile.TemporaryDirectory(prefix="edgeft-ranks-") as folder:
        address = f"tcp://{run.options.main_address}"
        if run.options.nodes == 1:
            address = (Path(folder) / "rendezvous").as_uri()  # torch's FileStore opens no port
        place = Place(count, run.options.nodes, run.options.node_rank, address)
        with _ranks(place, payload, budget) as ranks:
            ends = _wait(ranks)
    if failures := {rank: end for rank, end in ends.items() if end.failed}:
        raise _failure(failures, count)
    facts = ends[0].facts
    if facts is None:
        return {}
    return facts | {"processes": processes_config(run.options)}


def _check_gpus(count: int) -> None:
    """ResourceError where the machine has GPUs, but fewer than processes."""
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < count:
        raise ResourceError(
            f"--processes {count} needs as many GPUs, this machine has {gpus}",
            f"--processes {gpus}, or CUDA_VISIBLE_DEVICES= for the CPU",
        )


@dataclass(frozen=True)
class Place:
    """Where the ranks of a run meet."""

    count: int
    """of this machine"""
    nodes: int
    node: int
    address: str
    """URL for `init_process_group`"""

    def rank(self, local_rank: int) -> int:
        """Number of a process among those of all machines."""
        return self.node * self.count + local_rank

    @property
    def world_size(self) -> int:
        return self.nodes * self.count


@contextlib.contextmanager
def _ranks(
    place: Place, payload: bytes, budget: machine.Budget
) -> Iterator[dict[Connection, tuple[int, BaseProcess]]]:
    """{connection: (rank, process)}; at the end of the block no process is left."""
    context: Any = multiprocessing.get_context(START_METHOD)
    ranks: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        for rank in range(place.count):
            here, there = context.Pipe(duplex=False)
            arguments = (rank, place, there, payload, budget, writes_json_lines())
            process = context.Process(target=_rank, args=arguments, daemon=True)
            with ctrl_c_ignored():  # which the process inherits: this one ends it
                process.start()
            there.close()
            ranks[here] = rank, process
        yield ranks
    finally:
        for here, (_, process) in ranks.items():
            process.kill()  # the result is whole or absent, a checkpoint whole or ignored
            process.join()
            here.close()


def _wait(ranks: dict[Connection, tuple[int, BaseProcess]]) -> dict[int, Ended]:
    """Rank -> how it ended; of all ranks, or, where one failed, of those that ended soon after it."""
    ends: dict[int, Ended] = {}
    until: float | None = None
    while len(ends) < len(ranks):
        waiting = [here for here, (rank, _) in ranks.items() if rank not in ends]
        left = None if until is None else max(0.0, until - time.monotonic())
        ready = connections.wait(waiting, left)
        if not ready:
            break
        for here in ready:
            assert isinstance(here, Connection)
            rank, process = ranks[here]
            try:
                ends[rank] = here.recv()
            except (EOFError, ConnectionResetError):
                process.join()
                code = process.exitcode or 0
                ends[rank] = Ended(signal=-code) if code < 0 else Ended(defect=f"exit code {code}")
            if ends[rank].failed and until is None:
                until = time.monotonic() + GRACE_S
    return ends


def _failure(failures: dict[int, Ended], count: int) -> Exception:
    """The exception for the likeliest cause: a rank that was ended makes the others fail, too."""
    for rank, end in failures.items():
        if end.signal:
            name = signal.Signals(end.signal).name
            memory = "free some memory, then " if end.signal == signal.SIGKILL else ""
            return ResourceError(
                f"process {rank} of {count} was ended by {name}, which ended the others",
                f"{memory}--resume goes on from the last checkpoint",
            )
    for end in failures.values():
        if end.error:
            return end.error
    for rank, end in failures.items():
        if end.defect:
            return RuntimeError(f"process {rank} of {count}:\n{end.defect}")
    lost = next(end.lost for end in failures.values())
    return ResourceError(
        f"the processes of another node ended, or are not reached: {lost}",
        "what they say; then --resume on every node goes on from the last checkpoint",
    )


def _rank(
    rank: int,
    place: Place,
    connection: Connection,
    payload: bytes,
    budget: machine.Budget,
    json_lines: bool,
) -> None:
    """The program of a rank."""
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _keep_output(place.rank(rank))
    write_json_lines(json_lines and place.rank(rank) == 0)
    names = {
        "RANK": place.rank(rank), "LOCAL_RANK": rank, "WORLD_SIZE": place.world_size,
        "LOCAL_WORLD_SIZE": place.count,
    }  # fmt: skip
    os.environ |= {name: str(value) for name, value in names.items()}
    host = place.address.removeprefix("tcp://").rpartition(":")[0]
    if place.nodes > 1:
        os.environ["MASTER_ADDR"] = host
    if place.nodes == 1 or host in ("127.0.0.1", "localhost"):
        # gloo asks the host's name for an address: the ranks of one machine meet on its loopback alone.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        with machine.limited(budget), quiet_libraries():
            facts = _train(rank, place, payload)
        end = Ended(facts=facts if place.rank(rank) == 0 else None)
    except EdgeftError as error:
        end = Ended(error=EdgeftError(error.message, error.hint))  # not every class can be pickled
    except Exception as error:  # noqa: BLE001 - the parent raises it
        end = _end_of(error)
    connection.send(end)


def _keep_output(rank: int) -> None:
    """stdout belongs to the result. Only rank 0 speaks, on stderr."""
    if rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def _end_of(error: Exception) -> Ended:
    """A failed exchange with another process is no defect: that process says what happened."""
    import torch

    text = str(error)
    if isinstance(error, torch.distributed.DistError) or "/gloo/" in text:
        return Ended(lost=text.partition("\n")[0])
    return Ended(error=machine_error(error), defect=traceback.format_exc())


def _agree(run: Together) -> Path | None:
    """The checkpoint that rank 0 goes on from. InputError where this machine trains something else."""
    import torch

    request = {
        **run.request["parents"],
        **{key: value for key, value in run.request["options"].items() if key not in PATHS},
    }
    name = run.checkpoint.name if run.checkpoint else ""
    first: list[Any] = [(request, name)]
    torch.distributed.broadcast_object_list(first, src=0)
    others, name = first[0]
    if differing := sorted(
        key for key in {*request, *others} if request.get(key) != others.get(key)
    ):
        raise InputError(
            f"node 0 trains with other {', '.join(differing)}",
            "the same command and files on every node",
        )
    checkpoint = run.work_folder / name
    if name and not checkpoint.is_dir():
        raise InputError(
            f"node 0 goes on from {name}, which is not in {run.work_folder}",
            "--output in a folder that all nodes share",
        )
    return checkpoint if name else None


def _train(rank: int, place: Place, payload: bytes) -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    threads = max(1, len(os.sched_getaffinity(0)) // place.count)
    torch.set_num_threads(threads)
    if cuda:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=place.address,
        rank=place.rank(rank),
        world_size=place.world_size,
    )
    from edgeft.train.loop import fit

    run: Together = pickle.loads(payload)
    bar = Progress(run.title, run.steps)
    checkpoint = _agree(run)
    facts = fit(
        run.options, run.method, run.objective, bar, run.work_folder, checkpoint, run.output,
        run.answering,
    )  # fmt: skip
    torch.distributed.destroy_process_group()
    return facts
