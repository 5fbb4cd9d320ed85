"""Latency: what a child process measures, who takes turns, and what is compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeft.benchmarks.performance import latency, memory, roofline
from edgeft.benchmarks.performance.http import ServerProcess
from edgeft.benchmarks.performance.latency import Effort
from edgeft.benchmarks.performance.process import Run, RuntimeProcess, Workload, run_once
from edgeft.errors import EdgeftError
from edgeft.records import Limits, Memory
from edgeft.runtimes.protocol import open_runtime

SHORT = Workload(prompt=24, new=6)
TWO = Workload(prompt=24, new=6, clients=2)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    from edgeft.export.pipeline import ExportOptions, export

    out = tmp_path_factory.mktemp("speed")
    options = ExportOptions(out=out, base=str(tiny_base), quants=("f16",), compare_live=False)
    return export(options)[0].path


def test_a_use_has_its_tokens_and_prompts_of_its_own(artifact: Path) -> None:
    asked: list[list[int]] = []
    with open_runtime(artifact, threads=1, context=128) as model:
        stream = model.stream

        def seen(ids: Any, limits: Limits) -> Any:
            asked.append(list(ids))
            return stream(ids, limits)

        model.stream = seen  # type: ignore[method-assign]
        one, other = run_once(model, SHORT, 1), run_once(model, SHORT, 2)
        both = run_once(model, TWO, 3)
    assert [len(ids) for ids in asked] == [24, 24] and asked[0] != asked[1]
    for run in (one, other):
        assert len(run.ttft) == len(run.e2e) == 1 and len(run.gaps[0]) == SHORT.new - 1
        assert run.e2e[0] == pytest.approx(run.ttft[0] + sum(run.gaps[0]))
    assert len(both.ttft) == 2 and both.tokens == 12
    assert both.ttft[1] > both.ttft[0], "the second prompt is read after the first"


def test_a_child_measures_and_says_what_is_wrong(artifact: Path, tmp_path: Path) -> None:
    with RuntimeProcess(artifact, threads=1, context=128) as model:
        assert model.loaded() > 0
        assert model.run(TWO, 0).tokens == 12
        with pytest.raises(EdgeftError, match="the context only 128"):
            model.run(Workload(prompt=200, new=1), 1)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 64)
    with (
        RuntimeProcess(broken) as model,
        pytest.raises(EdgeftError, match=r"cannot measure .*broken.gguf"),
    ):
        model.loaded()


class Turns:
    """Children whose runs take given times; who was asked is written down."""

    def __init__(self, name: str, seconds: list[float], log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def run(self, use: Workload, number: int) -> Run:
        self.log.append(self.name)
        pace = self.seconds[number % len(self.seconds)]
        return Run.of([[2 * pace, 3 * pace, 4 * pace]], [3])


def test_models_take_turns_forth_and_back() -> None:
    log: list[str] = []
    models: Any = [Turns(name, [0.1], log) for name in "ab"]
    runs = latency._rounds(models, SHORT, Effort(runs=2, min_runs=2, warmup=1, seconds=100))
    assert "".join(log) == "ba" + "ab" + "ba"
    assert [len(one) for one in runs] == [2, 2]


def test_time_ends_the_runs_but_not_the_least() -> None:
    models: Any = [Turns("a", [0.1], [])]
    runs = latency._rounds(models, SHORT, Effort(runs=50, min_runs=7, warmup=0, seconds=0))
    assert len(runs[0]) == 7


def test_ratio_and_interval_are_of_paired_rounds() -> None:
    base = [1.0, 1.2, 1.1, 5.0, 1.3, 1.05, 1.15, 1.25]
    ratio = latency.ratio_of_medians([2 * value for value in base], base)
    assert ratio == {"ratio": 2.0, "low": 2.0, "high": 2.0}, "both were slow in the same rounds"
    other = latency.ratio_of_medians([3.0, 2.1, 2.2, 2.0, 2.4, 2.3, 2.6, 1.9], base)
    assert other["low"] < other["ratio"] < other["high"]


def test_noise_forbids_a_comparison() -> None:
    effort = Effort(noise=0.05)
    calm = [Run.of([[0.2, 0.3, 0.4]], [3]) for _ in range(6)]
    wild = [Run.of([[0.2, 0.2 + p, 0.2 + 2 * p]], [3]) for p in (0.1, 0.2, 0.1, 0.3, 0.1, 0.2)]
    cell = latency._latency_point(SHORT, calm, wild, effort)
    assert cell.against["ttft"]["ratio"] == 1 and cell.against["decode"] == {}
    assert cell.against["e2e"] == {}
    assert latency._latency_point(SHORT, wild, calm, effort).against["decode"] == {}
    assert latency._latency_point(SHORT, wild, calm, effort).noise["decode"] > 0.3
    assert all(latency._latency_point(SHORT, calm, calm, effort).against.values())
    assert not latency._latency_point(SHORT, calm, None, effort).against


def test_percentiles_and_rates_by_hand() -> None:
    runs = [Run.of([[0.5, 0.6, 0.7], [1.0, 1.2, 1.4]], [3, 3])] * 3
    cell = latency._latency_point(TWO, runs, None, Effort())
    assert cell.ttft[0] == 0.75 and cell.e2e[2] == 1.4
    assert cell.tpot_ms == 150 and cell.decode_tps == 6.7
    assert cell.aggregate_tps == round(6 / 1.4, 1)
    assert cell.prefill_tps == 24 / 0.75


def test_one_artifact_quickly(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "QUICK", (SHORT,))
    monkeypatch.setattr(memory, "WORKLOAD", SHORT)
    speed, used = latency.measure(artifact, threads=1)
    assert speed.load_cold_s and speed.load_s > 0 and speed.decode_tps > 0
    assert (speed.prompt_tokens, speed.new_tokens, speed.runs) == (24, 6, 5)
    assert 0 < len(speed.itl_ms) <= 200 and list(speed.itl_ms) == sorted(speed.itl_ms)
    assert speed.roofline and speed.roofline["share"] > 0
    assert used.peak >= used.anonymous > 10**6 and used.file > 0 and used.pss > 0


def test_bytes_that_a_token_reads(artifact: Path) -> None:
    """All of the file but its header: the embedding is the head, too."""
    size = artifact.stat().st_size
    without = roofline._gguf(artifact, context=0)
    assert 0.5 * size < without < size
    layers, heads, width = 2, 2, 16
    assert roofline._gguf(artifact, context=10) - without == 10 * layers * heads * width * 2 * 2
    assert roofline.bandwidth(1) > 1e8


def test_the_last_caches_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sockets with a level 3 each, which four cores see."""
    for core in range(4):
        for index, (level, size) in enumerate((("1", "48K"), ("3", "1024K"))):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            shared = str(core) if level == "1" else ("0-1", "2-3")[core // 2]
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(text)
    monkeypatch.setattr(roofline, "CACHES", tmp_path)
    assert roofline._last_cache() == 2 * 1024 * 1024


def test_bytes_of_experts_and_of_a_table_that_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tensor(size: int) -> Any:
        return SimpleNamespace(size=size, row_bytes=10)

    header = SimpleNamespace(
        meta={"general.architecture": "x", "x.expert_count": 8, "x.expert_used_count": 2},
        tensors={"token_embd.weight": tensor(1000), "output.weight": tensor(1000),
                 "blk.0.ffn_up_exps.weight": tensor(800)},
    )  # fmt: skip
    monkeypatch.setattr(roofline.gguf_reader, "read", lambda _: header)
    assert roofline._gguf(tmp_path, context=0) == 10 + 1000 + 200


@pytest.mark.skipif(
    not (os.geteuid() == 0 and any((root / "cgroup.procs").exists() and os.access(root, os.W_OK)
                                   for root, *_ in memory.CGROUP_ROOTS)),
    reason="needs the right to make cgroups",
)  # fmt: skip
def test_a_limit_that_is_too_small_is_seen(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "WORKLOAD", SHORT)
    used = memory.measure(artifact, threads=1)[1]
    assert memory._decode_tps(artifact, 2 * used.peak + 10**8, 1) > 0
    assert memory._decode_tps(artifact, used.anonymous // 4, 1) == 0


@pytest.mark.parametrize(("drift", "asked"), [(0.9, 3), (0.6, 1), (1.0, 1)])
def test_a_near_miss_is_measured_again_beside_the_free_one(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, drift: float, asked: int
) -> None:
    """On a machine that has become slower: to .9 counts as noise, to .6 as too little memory."""
    limits: list[int | None] = []

    def decode(_: Path, limit: int | None, threads: int | None) -> float:
        limits.append(limit)
        return 40 * drift

    monkeypatch.setattr(memory, "_decode_tps", decode)
    share = memory._speed_share(artifact, 100, 1, full=40)
    assert limits == [100, None, 100][:asked]
    assert share == pytest.approx(1 if asked == 3 else drift)


def test_the_smallest_limit_is_found_to_a_step(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        memory, "_decode_tps", lambda _, limit, __: 9 if (limit or 1e9) > 777 else 2
    )
    used = Memory(peak=1000, anonymous=400, file=600, pss=0)
    limit = memory.smallest_limit(artifact, used)
    assert limit is not None and 777 < limit < 777 * 1.06


def test_bench_command(
    artifact: Path, edgeft: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.setattr(latency, "QUICK", (SHORT,))
    monkeypatch.setattr("edgeft.benchmarks.bench.QUICK", (SHORT, TWO))
    monkeypatch.setattr(memory, "WORKLOAD", SHORT)
    again = tmp_path / "again.gguf"
    again.write_bytes(artifact.read_bytes())
    words = ("bench", again, "--baseline", artifact, "--runs", 5, "--threads", 1)
    done = edgeft(*words, "--max-noise", 9, "--json")
    assert done.code == 0, done.err
    base, own = json.loads(done.out)["rows"]
    assert base["path"] == str(artifact) and not base["speed"]["cells"][0]["against"]
    assert [cell["clients"] for cell in own["speed"]["cells"]] == [1, 2]
    ratio = own["speed"]["cells"][0]["against"]["decode"]
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    shown = edgeft(*words, "--max-noise", 0.000001)
    assert "too noisy" in shown.out and "24 + 6, 2 clients" in shown.out
    assert "anonymous" in shown.out and "of the ceiling" in shown.out


def test_through_the_server(artifact: Path) -> None:
    with ServerProcess(artifact, threads=1, context=128) as model:
        assert model.loaded() > 0
        run = model.run(TWO, 0)
        assert len(run.ttft) == 2 and run.counts == (6, 6)
        assert all(0 < first < last for first, last in zip(run.ttft, run.e2e, strict=True))
        with pytest.raises(EdgeftError, match="400"):
            model.run(Workload(prompt=200, new=1), 1)


@pytest.mark.parametrize(
    "words",
    [("--sweep", "--no-speed"), ("--scorer", "json"), ("--limit", 3), ("--max-noise", "nan"),
     ("--seconds", "nan"), ("--threads", 100_000), ("--save-baseline", "x.txt")],
)  # fmt: skip
def test_what_would_be_ignored_is_wrong_usage(
    artifact: Path, edgeft: Callable[..., Any], words: tuple[Any, ...]
) -> None:
    assert edgeft("bench", artifact, *words).code == 2


def test_what_bench_cannot_do(artifact: Path, edgeft: Callable[..., Any], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words " * 10)
    for words, says in (
        ((artifact, "--text", text, "--no-speed"), "nothing to compare"),
        ((artifact, "--save-baseline", tmp_path / "x.logprobs"), "nothing to keep"),
        ((artifact, "--text", text, "--baseline", artifact), "has 0 pieces of 512 tokens"),
        ((artifact, "--text", tmp_path / "none", "--baseline", artifact), "cannot read"),
        ((tmp_path / "none.gguf",), "no such artifact"),
        ((artifact, "--baseline", tmp_path / "none.logprobs"), "is for --text and --chats"),
    ):
        done = edgeft("bench", *words)
        assert done.code == 1 and says in done.err and done.err.count("\n") <= 2, done.err
