"""Trials -> their evaluations and outcomes, from processes of this machine or from a Ray cluster.

    with open_workers("local") as workers:          # a Ray cluster; None: this machine
        workers.start(call)
        number, message = workers.wait()            # an Evaluation waits for its answer
        workers.answer(number, True)

A trial is one process. It asks after every evaluation whether it goes on. Nodes of a cluster need edgeft
and the same files under the same paths.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from edgeft.benchmarks.quality.workers import ray_cluster
from edgeft.child_process import ctrl_c_ignored, end_with_parent
from edgeft.sweep.trial import Call, Outcome, train_trial
from edgeft.train.protocol import Evaluation

STOP_TIMEOUT_S = 30.0
"""seconds in which a trial that is stopped must end"""
Message = Evaluation | Outcome


class Workers(Protocol):
    def start(self, call: Call) -> None:
        """Begin a trial."""

    def wait(self) -> tuple[int, Message]:
        """(number of a trial, what it says): an Evaluation, which must be answered, or its Outcome."""

    def answer(self, number: int, goes_on: bool) -> None:
        """Whether the trial goes on after its evaluation."""

    def close(self) -> None:
        """Interrupt the trials that still run, as Ctrl-C does a training, and wait for them."""


@contextlib.contextmanager
def open_workers(ray: str | None = None) -> Iterator[Workers]:
    """`ray`: address of a cluster, or `local` to start one here. ResourceError if there is none."""
    with contextlib.ExitStack() as stack:
        workers = RayWorkers(stack.enter_context(ray_cluster(ray))) if ray else LocalWorkers()
        try:
            yield workers
        finally:
            workers.close()


class LocalWorkers:
    """A process of this machine for each trial."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[Connection, BaseProcess]] = {}

    def start(self, call: Call) -> None:
        # A forked process would inherit locks of torch's threads.
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, call), daemon=True)
        with ctrl_c_ignored():  # which the process inherits: this one stops it
            process.start()
        there.close()
        self._running[call.number] = (here, process)

    def wait(self) -> tuple[int, Message]:
        by_connection = {here: number for number, (here, _) in self._running.items()}
        here = connections.wait(list(by_connection))[0]
        assert isinstance(here, Connection)
        number = by_connection[here]
        try:
            message = here.recv()
        except (EOFError, ConnectionResetError):
            message = None
        if isinstance(message, Evaluation):
            return number, message
        _, process = self._running.pop(number)
        process.join()
        here.close()
        return number, message or Outcome("failed", error=_ending(process.exitcode or 0))

    def answer(self, number: int, goes_on: bool) -> None:
        with contextlib.suppress(BrokenPipeError):  # `wait` tells how it ended
            self._running[number][0].send(goes_on)

    def close(self) -> None:
        for _, process in self._running.values():
            process.terminate()
        for here, process in self._running.values():
            process.join(STOP_TIMEOUT_S)
            process.kill()
            process.join()
            here.close()
        self._running.clear()


def _serve(connection: Connection, call: Call) -> None:
    """The program of a worker process."""
    signal.signal(signal.SIGTERM, _interrupt)
    end_with_parent()

    def ask(evaluation: Evaluation) -> bool:
        connection.send(evaluation)
        return bool(connection.recv())

    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        connection.send(train_trial(call, ask))


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: the training cleans up
    raise KeyboardInterrupt


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the system ended its process (SIGKILL): lower --jobs, or free some memory"
    return f"its process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"


class RayWorkers:
    """A task of a Ray cluster for each trial, in a process of its own."""

    def __init__(self, ray: Any) -> None:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self._ray = ray
        self._train = ray.remote(max_calls=1, max_retries=0, num_cpus=1, num_gpus=gpus)(_train_task)
        self._mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        self._next = self._mailbox.next.remote()
        self._tasks: dict[Any, int] = {}

    def start(self, call: Call) -> None:
        self._tasks[self._train.remote(call, self._mailbox)] = call.number

    def wait(self) -> tuple[int, Message]:
        (ready,), _ = self._ray.wait([self._next, *self._tasks], num_returns=1)
        if ready is self._next:
            number, evaluation = self._ray.get(ready)
            self._next = self._mailbox.next.remote()
            return number, evaluation
        number = self._tasks.pop(ready)
        try:
            return number, self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            return number, Outcome("failed", error=str(error).strip().partition("\n")[0])

    def answer(self, number: int, goes_on: bool) -> None:
        self._mailbox.answer.remote(number, goes_on)

    def close(self) -> None:
        for task in self._tasks:
            self._ray.cancel(task)  # KeyboardInterrupt in its process
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=STOP_TIMEOUT_S)
        self._tasks.clear()


class Mailbox:
    """An actor of the cluster that carries evaluations to the sweep, and its answers back."""

    def __init__(self) -> None:
        import asyncio

        self._evaluations: Any = asyncio.Queue()
        self._answers: Any = collections.defaultdict(asyncio.Queue)

    async def ask(self, number: int, evaluation: Evaluation) -> bool:
        await self._evaluations.put((number, evaluation))
        return bool(await self._answers[number].get())

    async def next(self) -> tuple[int, Evaluation]:
        number, evaluation = await self._evaluations.get()
        return number, evaluation

    async def answer(self, number: int, goes_on: bool) -> None:
        await self._answers[number].put(goes_on)


def _train_task(call: Call, mailbox: Any) -> Outcome:
    import ray

    def ask(evaluation: Evaluation) -> bool:
        return bool(ray.get(mailbox.ask.remote(call.number, evaluation)))

    return train_trial(call, ask)
