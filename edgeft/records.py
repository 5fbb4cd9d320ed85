"""The nouns as frozen records, and JSON in and out.

Every noun on disk is a directory, or a file with a manifest beside it. The manifest is written
last: where it is, the noun is complete. It holds the options that made it, the sha256 of every
file and the identity of its parents (`edgeft.store.identity`), so that an artifact's history can
be followed back to the base model and the data.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
EXIT_CODES = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
"""outcome of a gate -> exit code"""
SAMPLES = 200
"""of a distribution that a report shows"""


@dataclass(frozen=True)
class Message:
    role: str
    """system, user or assistant"""
    content: str


@dataclass(frozen=True)
class Example:
    """One conversation that ends with the answer to learn or to compare with."""

    messages: tuple[Message, ...]
    tags: tuple[str, ...] = ()
    line: int = 0
    """line (or item number) in its file, from 1"""
    choices: tuple[str, ...] = ()
    """answers to choose from, of which one is the right one"""

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True)
class FileRecord:
    sha256: str
    size: int
    """bytes"""


@dataclass(frozen=True)
class Manifest:
    kind: str
    """base, adapter, artifact or measurement"""
    options: dict[str, Any]
    files: dict[str, FileRecord]
    parents: dict[str, str] = field(default_factory=dict)
    """role -> identity of that parent"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what was measured while it was made"""
    edgeft: str = ""
    created: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        raw = json.loads(text)
        raw["files"] = {name: FileRecord(**record) for name, record in raw["files"].items()}
        for key in ("options", "parents", "facts"):
            if not isinstance(raw.get(key, {}), dict):
                raise TypeError(f"{key} is {raw[key]!r}")
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in raw.items() if key in known})


@dataclass(frozen=True)
class Artifact:
    """A model in a format that a runtime opens."""

    path: Path
    format: str
    quant: str
    manifest: Manifest


@dataclass(frozen=True)
class Limits:
    """When a reply ends and how its tokens are chosen."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0 = greedy"""
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    """go on after an eos token, for timing a fixed number of tokens"""
    top_k: int = 0
    """choose among so many; 0 = among all"""
    min_p: float = 0.0
    """choose among those that have at least this share of the likeliest one's probability"""
    grammar: str = ""
    """that the answer follows, as `edgeft.runtimes.grammar.json_schema_grammar` writes it; "" = none"""

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            self.temperature,
            self.top_p,
            self.top_k,
            self.min_p,
            seed=self.seed,
            grammar=self.grammar,
        )


@dataclass(frozen=True)
class Sampling:
    """How one token is chosen from what the model says of all; the defaults choose the likeliest."""

    temperature: float = 0.0
    """0 = greedy"""
    top_p: float = 1.0
    top_k: int = 0
    """choose among so many; 0 = among all"""
    min_p: float = 0.0
    """choose among those that have at least this share of the likeliest one's probability"""
    repeat_penalty: float = 1.0
    """divides the logits of tokens that were there before; 1 = none"""
    frequency_penalty: float = 0.0
    """subtracted from a token's logit for each time that it was there"""
    presence_penalty: float = 0.0
    """subtracted once"""
    seed: int = 0
    bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)"""
    grammar: str = ""
    """that the answer follows, as `edgeft.runtimes.grammar.json_schema_grammar` writes it; "" = none"""


@dataclass(frozen=True)
class Token:
    """One streamed token; every command that times a reply reads these."""

    id: int
    text: str
    """text that became complete with this token ("" while a character is still partial)"""
    seconds: float
    """since the request was made"""


@dataclass(frozen=True)
class Reply:
    """A finished answer to one prompt."""

    text: str
    ids: tuple[int, ...]
    stopped: bool
    """True when the model ended its turn, False when max_tokens cut it off"""
    seconds: tuple[float, ...] = field(default=(), compare=False)
    """of each token, since all the prompts were given"""


@dataclass(frozen=True)
class LatencyPoint:
    """Latency of one way of use: `clients` prompts given at the same moment, in each of `runs` runs.

    Three numbers are the 50th, 95th and 99th percentile over all answers.
    """

    prompt: int
    """tokens"""
    new: int
    """tokens of each answer"""
    clients: int
    runs: int
    ttft: tuple[float, float, float]
    """s to the first token, tokenization included"""
    itl: tuple[float, float, float]
    """ms between two tokens of an answer"""
    tpot_ms: float
    """median over the answers of an answer's mean time per token after the first"""
    e2e: tuple[float, float, float]
    """s to the last token"""
    prefill_tps: float
    """prompt tokens per second of one client, the median"""
    decode_tps: float
    """tokens per second of one client after the first, the median"""
    aggregate_tps: float
    """tokens per second of all clients together, the median"""
    noise: dict[str, float] = field(default_factory=dict)
    """coefficient of variation over the runs, of ttft, decode and e2e"""
    against: dict[str, dict[str, float]] = field(default_factory=dict)
    """the same over the baseline's: {ratio, low, high}, at 95 %; {} where either is too noisy"""


@dataclass(frozen=True)
class Speed:
    """One artifact's speed on this machine; medians of `runs` runs."""

    load_s: float
    """files in the page cache"""
    ttft_s: float
    """time to first token for a prompt of `prompt_tokens`, tokenization included"""
    prefill_tps: float
    """prompt tokens per second"""
    decode_tps: float
    """generated tokens per second after the first"""
    prompt_tokens: int
    new_tokens: int
    runs: int
    load_cold_s: float | None = None
    """files not in the page cache"""
    through: str = "runtime"
    """or server, over HTTP"""
    cells: tuple[LatencyPoint, ...] = ()
    itl_ms: tuple[float, ...] = ()
    """times between tokens, at most `SAMPLES` of them"""
    roofline: dict[str, float] | None = None
    """{bandwidth_gbs, bytes_per_token, share}: decode is bound by what must be read per token"""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a process that only loads the model and answers one prompt, in bytes."""

    peak: int
    """resident set, mapped weights included"""
    anonymous: int
    """the part that cannot be dropped under pressure"""
    file: int = 0
    """pages of files, which the system can drop and read again"""
    pss: int = 0
    """proportional set size: a page that several processes map counts in part"""
    smallest: int | None = None
    """limit of a cgroup under which decoding keeps 95 % of its speed; None = not measured"""


@dataclass(frozen=True)
class Score:
    """Answers of one arm on one list of items."""

    arm: str
    items: str
    """sha256 of the items, the order included"""
    scorer: str
    replies: tuple[str, ...]
    values: tuple[float, ...]
    """per item, from 0 to 1; a scorer of right and wrong gives 1 and 0"""
    stopped: tuple[bool, ...]
    """per item: did the model end its turn? An answer that was cut off counts as 0"""
    seconds: float

    @property
    def accuracy(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Measurement:
    """What `edgeft bench` found out about one artifact."""

    name: str
    path: str
    size: int
    """bytes on disk"""
    speed: Speed | None
    memory: Memory | None
    score: Score | None
    fidelity: dict[str, Any] = field(default_factory=dict)
    """name of a text -> `edgeft.benchmarks.fidelity.compare.Fidelity.to_json()`"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Arm:
    """One model of a comparison, and all that was found out about it; None = not measured."""

    name: str
    kind: str
    """base, few-shot, baseline or candidate"""
    path: str
    size: int
    """bytes on disk"""
    identity: str
    """sha256 that names the artifact (`edgeft.store.identity`)"""
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    """of the accuracy, at 95 %"""
    stopped: float | None = None
    """share of the answers that ended by themselves"""
    speed: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    fidelity: dict[str, Any] | None = None
    """name of a text -> `edgeft.benchmarks.fidelity.compare.Fidelity.to_json()`"""
    verdict: dict[str, Any] | None = None
    """`edgeft.benchmarks.statistics.noninferiority.Verdict.to_json()`, of candidates"""
    retention: dict[str, Any] | None = None
    """how much of the fine-tune's gain is left, where the base was measured"""
    slices: tuple[dict[str, Any], ...] = ()
    """per tag: {tag, n, accuracy, interval, baseline, lost, won}"""
    losses: tuple[dict[str, Any], ...] = ()
    """the worst: {prompt, wanted, baseline, answer, tags}"""
    lineage: tuple[dict[str, Any], ...] = ()
    """from the artifact to its roots: {role, name, identity, options}"""
    pareto: bool = False
    """no other candidate is both smaller and better"""


@dataclass(frozen=True)
class Release:
    """What a report shows: the decision first, then all that it rests on."""

    outcome: str
    """PASS, FAIL or INCONCLUSIVE"""
    ship: str | None
    """name of the arm to ship"""
    reason: str
    task: dict[str, Any]
    """{name, items, identity, scorer, margin}"""
    arms: tuple[Arm, ...]
    machine: dict[str, Any]
    safety: dict[str, Any] | None = None
    """refusals: {name, arms: {arm: {unsafe, refused, safe, answered, outcome, reason}}}"""
    floor: dict[str, Any] | None = None
    """the baseline against itself, with another number of threads: {threads, flips, n, kl}"""
    commands: tuple[str, ...] = ()
    """to do it all again"""
    notes: tuple[str, ...] = ()
    edgeft: str = ""
    created: str = ""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Release:
        """The inverse of `to_json`; TypeError or KeyError for what is none."""
        arms = []
        for arm in raw["arms"]:
            listed = ("slices", "losses", "lineage", "interval")
            lists = {key: tuple(arm[key]) for key in listed if arm.get(key) is not None}
            arms.append(Arm(**arm | lists))
        lists = {key: tuple(raw[key]) for key in ("commands", "notes")}
        return cls(**raw | lists | {"arms": tuple(arms)})
