"""The nouns of edgeft as frozen records, and their JSON.

A noun on disk is a directory, or a file with a manifest beside it. The manifest is written last, so a
noun with a manifest is complete. It holds the options that made it, the sha256 of every file and the
identity of its parents (`edgeft.store.identity`). So the history of an artifact can be followed back
to the base model and the data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
DOCUMENT = "document"
"""role of the only message of a plain text"""
EXIT_CODES = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
"""outcome of a gate -> exit code"""
SAMPLES = 200
"""values that a report keeps of a distribution"""


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant calls."""

    name: str
    arguments: str
    """the arguments by name, a JSON object as text"""
    id: str = ""


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Calls as one JSON list of {"name", "arguments"}, as the scorer `tool-call` compares them."""
    entries = (
        f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls
    )
    return f"[{', '.join(entries)}]"


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    """system, user, assistant or tool; "document" for plain text"""
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """of an assistant's turn"""
    reasoning: str = ""
    """of an assistant's turn: what it thinks before it answers"""
    name: str = ""
    """of a tool's turn: the function that answers"""
    tool_call_id: str = ""
    """of a tool's turn: the call that it answers"""
    learned: bool = True
    """whether training learns this answer; only an assistant's turn is ever learned"""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation. Its last message is the answer to learn or to compare with.

    A plain text is a single message of the role "document".
    """

    messages: tuple[Message, ...]
    tags: tuple[str, ...] = ()
    line: int = 0
    """line (or item number) in its file, from 1"""
    choices: tuple[str, ...] = ()
    """answers to choose from; one of them is right"""
    tools: tuple[str, ...] = ()
    """functions that the assistant may call: each a JSON schema as text, as OpenAI's `tools`"""
    file: str = ""
    """name of its file, where the data has several"""
    rejected: tuple[Message, ...] = ()
    """of a preference pair: the same conversation with the worse answer"""
    desirable: bool | None = None
    """of an answer that is labelled good or bad (KTO)"""

    @property
    def place(self) -> str:
        """Where it stands in the data: "12" or "FILE:12"."""
        return f"{self.file}:{self.line}" if self.file else str(self.line)

    @property
    def is_document(self) -> bool:
        """Whether it is a plain text."""
        return self.messages[0].role == DOCUMENT

    @property
    def is_prompt(self) -> bool:
        """Whether nothing is learned of it: a prompt for reinforcement learning, with a reference or ""."""
        return not self.is_document and not any(
            message.learned for message in self.messages if message.role == "assistant"
        )

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The text of the last message; its calls as JSON where it makes some."""
        last = self.messages[-1]
        return calls_text(last.tool_calls) if last.tool_calls else last.content


@dataclass(frozen=True)
class FileRecord:
    sha256: str
    size: int
    """bytes"""


@dataclass(frozen=True)
class Manifest:
    kind: str
    """base, dataset, adapter, artifact or measurement"""
    options: dict[str, Any]
    files: dict[str, FileRecord]
    parents: dict[str, str] = field(default_factory=dict)
    """role -> identity of that parent"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what was measured on the way"""
    edgeft: str = ""
    created: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """ValueError, TypeError, KeyError, AttributeError or RecursionError for anything else."""
        raw = json.loads(text)
        raw["files"] = {name: FileRecord(**record) for name, record in raw["files"].items()}
        known = {f.name for f in dataclasses.fields(cls)}
        manifest = cls(**{key: value for key, value in raw.items() if key in known})
        for record in (manifest, *manifest.files.values()):
            _check_types(record)
        if not all(isinstance(identity, str) for identity in manifest.parents.values()):
            raise TypeError("parents are not texts")
        _rename_base_precision(manifest.options)
        _rename_base_precision(manifest.facts)
        _rename_base_precision(manifest.facts.get("proof"))
        return manifest


def _check_types(record: Any) -> None:
    """TypeError for a field whose value is not of the class that its annotation names."""
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if type(value).__name__ != str(item.type).partition("[")[0]:
            raise TypeError(f"{item.name} is {str(value)[:60]!r}")


def _rename_base_precision(values: Any) -> None:
    """Manifests of edgeft 0.1.0 call the base precision `merge_base`, and stored weights `w16`."""
    if not isinstance(values, dict) or "merge_base" not in values:
        return
    precision = values.pop("merge_base")
    if isinstance(precision, dict):  # {"chosen": "w16", "why": …, "loss": {"w16": …}}
        loss = precision.get("loss", {})
        if "w16" in loss:
            loss["stored"] = loss.pop("w16")
        if precision.get("chosen") == "w16":
            precision["chosen"] = "stored"
    values["base_precision"] = "stored" if precision == "w16" else precision


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
    """How a token is chosen from the logits. The defaults choose the likeliest one (greedy)."""

    temperature: float = 0.0
    """0 = greedy"""
    top_p: float = 1.0
    top_k: int = 0
    """choose among so many; 0 = among all"""
    min_p: float = 0.0
    """choose among those that have at least this share of the likeliest one's probability"""
    repeat_penalty: float = 1.0
    """divides the logits of tokens that occurred before; 1 = none"""
    frequency_penalty: float = 0.0
    """subtracted from a token's logit for each of its occurrences"""
    presence_penalty: float = 0.0
    """subtracted once from the logit of a token that occurred"""
    repeat_last_n: int = -1
    """the penalties count the last so many tokens of the answer; -1 = all"""
    seed: int = 0
    bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)"""
    grammar: str = ""
    """that the answer follows, as `edgeft.runtimes.grammar.json_schema_grammar` writes it; "" = none"""


@dataclass(frozen=True)
class Token:
    """One streamed token and its time. Every command that measures speed reads these."""

    id: int
    text: str
    """text that this token completes; "" while a character is still partial"""
    seconds: float
    """since the request"""


@dataclass(frozen=True)
class Reply:
    """A finished answer to one prompt."""

    text: str
    ids: tuple[int, ...]
    stopped: bool
    """True where the model ended its turn, False where max_tokens cut it off"""
    seconds: tuple[float, ...] = field(default=(), compare=False)
    """time of each token, since all prompts were passed in"""


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
    """seconds to load, with the files in the page cache"""
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
    """seconds to load, without the files in the page cache"""
    through: str = "runtime"
    """or server, over HTTP"""
    cells: tuple[LatencyPoint, ...] = ()
    itl_ms: tuple[float, ...] = ()
    """times between tokens, at most `SAMPLES` of them"""
    roofline: dict[str, float] | None = None
    """{bandwidth_gbs, bytes_per_token, share}: decode is bound by what must be read per token"""


@dataclass(frozen=True)
class Memory:
    """Peak memory in bytes of a process that loads the model and answers one prompt."""

    peak: int
    """resident set, mapped weights included"""
    anonymous: int
    """the part that the system cannot drop"""
    file: int = 0
    """pages of files, which the system can drop and read again"""
    pss: int = 0
    """proportional set size: a page that n processes map counts as 1/n"""
    smallest: int | None = None
    """smallest limit of a cgroup at which decoding keeps 95 % of its speed; None = not measured"""
    cache_per_token: int = 0
    """keys and values of a token in float16; 0 = unknown"""


@dataclass(frozen=True)
class Score:
    """Answers of one arm to a list of items."""

    arm: str
    items: str
    """sha256 of the items in their order"""
    scorer: str
    replies: tuple[str, ...]
    values: tuple[float, ...]
    """per item, from 0 to 1 (right or wrong: 1 or 0)"""
    stopped: tuple[bool, ...]
    """per item, whether the model ended its turn; an answer that was cut off counts as 0"""
    seconds: float
    """to answer all items, many at a time, without loading the model"""
    prompt_tokens: tuple[int, ...] = ()
    """per item"""

    @property
    def accuracy(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Measurement:
    """What `edgeft bench` measured of one artifact."""

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
    """One model of a comparison with its measurements; None = not measured."""

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
    """share of the answers that the model ended itself"""
    speed: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    fidelity: dict[str, Any] | None = None
    """name of a text -> `edgeft.benchmarks.fidelity.compare.Fidelity.to_json()`"""
    verdict: dict[str, Any] | None = None
    """`edgeft.benchmarks.statistics.noninferiority.Verdict.to_json()`, of candidates"""
    retention: dict[str, Any] | None = None
    """how much of the fine-tune's gain is left; None where the base was not measured"""
    slices: tuple[dict[str, Any], ...] = ()
    """per tag: {tag, n, accuracy, interval, baseline, lost, won}"""
    losses: tuple[dict[str, Any], ...] = ()
    """the worst answers: {prompt, wanted, baseline, answer, tags}"""
    lineage: tuple[dict[str, Any], ...] = ()
    """from the artifact to its roots: {role, name, identity, options}"""
    pareto: bool = False
    """no other candidate is both smaller and better"""


@dataclass(frozen=True)
class Release:
    """What a report shows: the decision, then the measurements behind it."""

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
    forgetting: dict[str, Any] | None = None
    """general items: {name, items, identity, scorer, bound, arms: {arm: {accuracy, interval, …}}}"""
    floor: dict[str, Any] | None = None
    """the baseline compared with itself at another number of threads: {threads, flips, n, kl}"""
    commands: tuple[str, ...] = ()
    """shell commands that repeat the comparison"""
    notes: tuple[str, ...] = ()
    edgeft: str = ""
    created: str = ""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Release:
        """The inverse of `to_json`. TypeError or KeyError for anything else."""
        arms = []
        for arm in raw["arms"]:
            listed = ("slices", "losses", "lineage", "interval")
            lists = {key: tuple(arm[key]) for key in listed if arm.get(key) is not None}
            arms.append(Arm(**arm | lists))
        lists = {key: tuple(raw[key]) for key in ("commands", "notes")}
        return cls(**raw | lists | {"arms": tuple(arms)})
