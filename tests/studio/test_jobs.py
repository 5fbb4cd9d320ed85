"""Jobs on disk, their processes, and what ends them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeft.errors import InputError, StaleError
from edgeft.studio import job_process
from edgeft.studio import runner as runner_module
from edgeft.studio.jobs import Job, Jobs
from edgeft.studio.runner import Runner
from helpers import fake_edgeft

pytestmark = pytest.mark.unit

PROGRAM = [sys.executable, "-IS", str(fake_edgeft.__file__)]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / ".studio" / "jobs")


@pytest.fixture
def running(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setattr(runner_module, "INTERVAL_S", 0.02)
    with Runner(jobs, tmp_path, PROGRAM):
        yield jobs


def wait(jobs: Jobs, number: int, until: Callable[[Job], bool] = lambda job: job.has_ended) -> Job:
    for _ in range(400):
        if until(job := jobs.get(number)):
            return job
        time.sleep(0.02)
    raise AssertionError(f"job {number} is still {job.state}: {job.text('log.txt')}")


def test_a_job_keeps_its_output_its_progress_and_its_log(running: Jobs, tmp_path: Path) -> None:
    job = wait(running, running.add(["train", "--output", "adapter"], page="train").id)
    assert (job.state, job.exit_code, job.command, job.page) == ("done", 0, "train", "train")
    assert job.result() == {"words": ["train", "--output", "adapter"]}
    assert job.text("log.txt") == "a library says something\n"
    lines, offset = job.lines()
    assert lines[0]["text"] == f"in {tmp_path}" and (tmp_path / "adapter").is_dir()
    assert [line["values"]["loss"] for line in lines[1:]] == [1, 1 / 2, 1 / 3]
    assert job.lines(offset) == ([], offset)
    assert job.ended and job.started and job.created <= job.started <= job.ended


def test_an_error_has_its_hint_and_a_killed_child_has_failed(running: Jobs) -> None:
    job = wait(running, running.add(["train", "--exit", "1"], page="train").id)
    assert job.state == "failed"
    assert job.problem() == ("no such file: chats.jsonl", "check --data")
    job = wait(running, running.add(["train", "--kill"], page="train").id)
    assert (job.state, job.exit_code) == ("failed", -signal.SIGKILL)
    assert wait(running, running.add(["ab", "--exit", "3"], page="measure").id).state == "done"


def test_work_runs_in_turn_and_what_is_quick_beside_it(running: Jobs) -> None:
    first, second = (running.add(["train", "--sleep", "0.2"], page="train").id for _ in range(2))
    quick = running.add(["data", "check"], page="data").id
    assert wait(running, quick).state == "done"
    assert running.get(first).state == "running" and running.get(second).state == "waiting"
    done = wait(running, second)
    assert (done.started or 0) >= (running.get(first).ended or 0)


def test_a_job_after_a_failed_one_is_skipped(running: Jobs) -> None:
    first = running.add(["train", "--exit", "1"], page="train")
    second = running.add(["ab"], page="measure", after=first.id)
    third = running.add(["serve"], page="chat", after=second.id)
    assert wait(running, first.id).state == "failed"
    assert (wait(running, second.id).state, wait(running, third.id).state) == ("skipped", "skipped")


def test_cancelling_interrupts_and_a_waiting_job_never_starts(running: Jobs) -> None:
    first = running.add(["train", "--sleep", "0.05", "--steps", "1000"], page="train").id
    second = running.add(["train"], page="train").id
    assert running.cancel(second).state == "cancelled"
    wait(running, first, lambda job: len(job.lines()[0]) > 3)
    assert running.get(first).memory() > 1_000_000
    assert running.cancel(first).state == "stopping"
    job = wait(running, first)
    assert (job.state, job.exit_code) == ("cancelled", 130)
    assert job.last_lines()[-1]["text"] == "stopped"
    assert running.get(second).state == "cancelled" and not running.get(second).started


def test_a_job_that_ignores_the_interrupt_is_terminated(
    running: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "PATIENCE_S", 0.2)
    number = running.add(["train", "--stubborn"], page="train").id
    wait(running, number, lambda job: len(job.lines()[0]) > 3)
    running.cancel(number)
    job = wait(running, number)
    assert (job.state, job.exit_code) == ("cancelled", -signal.SIGTERM)


def test_a_job_survives_the_studio(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "INTERVAL_S", 0.02)
    with Runner(jobs, tmp_path, PROGRAM):
        number = jobs.add(["train", "--sleep", "0.2"], page="train").id
        waiting = jobs.add(["train"], page="train").id
        wait(jobs, number, lambda job: job.state == "running")
    again = Jobs(jobs.folder)
    assert again.get(number).state == "running" and again.get(waiting).state == "waiting"
    with Runner(again, tmp_path, PROGRAM):
        assert wait(again, number).exit_code == 0
        assert wait(again, waiting).state == "done"


def test_a_job_whose_processes_were_killed_has_failed(running: Jobs) -> None:
    number = running.add(["train", "--sleep", "60"], page="train").id
    job = wait(running, number, lambda job: job.state == "running" and bool(job.lines()[0]))
    assert job.pid
    os.kill(job.pid, signal.SIGKILL)
    job = wait(running, number)
    assert (job.state, job.exit_code) == ("failed", None)


def test_a_job_that_was_cancelled_while_its_process_starts_does_nothing(
    jobs: Jobs, tmp_path: Path
) -> None:
    job = jobs.add(["train", "--output", str(tmp_path / "adapter")], page="train")
    assert jobs.cancel(job.id).state == "cancelled"
    command = [sys.executable, "-IS", job_process.__file__, str(job.folder), *PROGRAM, *job.words]
    subprocess.run(command, check=True)
    assert not (tmp_path / "adapter").exists()
    assert Jobs(jobs.folder).get(job.id).state == "cancelled"


def test_the_end_is_written_down_on_a_full_disk(jobs: Jobs) -> None:
    """A limit on the size of files stands for the disk: nothing grows beyond it."""
    job = jobs.add(["train", "--steps", "50"], page="train")
    command = [sys.executable, "-IS", job_process.__file__, str(job.folder), *PROGRAM, *job.words]
    limit = job_process.END_BYTES + 50
    subprocess.run(
        command,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    job = jobs.get(job.id)
    assert (job.state, job.exit_code) == ("done", 0)
    assert (job.folder / "progress.jsonl").stat().st_size <= limit


def test_a_workspace_that_is_gone_has_no_jobs(jobs: Jobs, tmp_path: Path) -> None:
    jobs.add(["train"], "train")
    shutil.rmtree(jobs.folder)
    assert jobs.all() == []
    Runner(jobs, tmp_path, PROGRAM).look()
    with pytest.raises(InputError, match="no job 1"):
        jobs.get(1)


def test_a_number_is_given_once_and_only_ended_jobs_are_deleted(jobs: Jobs) -> None:
    first, second = jobs.add(["train", "--data", "a.jsonl"], "train"), jobs.add(["ab"], "measure")
    assert (first.id, second.id) == (1, 2) and [job.id for job in jobs.all()] == [2, 1]
    with pytest.raises(StaleError, match="has not ended"):
        jobs.delete(1)
    assert jobs.using("a.jsonl") == first and jobs.using("b.jsonl") is None
    jobs.cancel(1)
    jobs.delete(1)
    with pytest.raises(InputError, match="no job 1"):
        jobs.get(1)
    (jobs.folder / "0007").mkdir()  # made by hand
    (jobs.folder / "0007" / "command.json").write_text("{")
    assert [job.id for job in jobs.all()] == [2]
    assert jobs.add(["ab"], "measure").id == 8
