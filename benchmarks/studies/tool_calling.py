"""A base -> its accuracy in calling functions before and after a fine-tune, at several types: one table.

    python -m edgeft.benchmarks.studies.tool_calling --out build/tool_calling

The task is `tool_calls` of `studies/tasks`: 900 rows to train on, 300 held out, a third of them with phrases and
a third with functions that no training row has. `edgeft train-qlora` and `edgeft merge-export` make the
fine-tune; `edgeft bench` asks it and the base the held-out rows (scorer `tool-call`). Then each of these rows is
asked through the server's engine with `tool_choice: required`: the share of the answers that are calls of the
row's functions with arguments that fit their schema, and of those that are not (none; the rest were cut off at
256 tokens). A training and an export that are complete are kept. Ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import queue
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeft import machine, store
from edgeft.benchmarks.studies.forgetting import edgeft
from edgeft.benchmarks.studies.tasks import write_task
from edgeft.benchmarks.suites import Suite
from edgeft.report import tables
from edgeft.server.engine import Engine
from edgeft.server.jobs import Job, StreamDelta
from edgeft.server.openai_objects import joined
from edgeft.server.options import ServeOptions
from edgeft.server.requests import chat_requests
from edgeft.server.run import engines
from edgeft.server.schemas import Chat

TASK = "tool_calls"
STEPS = 300
"""of 4 rows: 1.3 passes"""
QUANTS = ("f16", "q4_k_m")
GROUPS = ("seen", "new_phrases", "new_tools")
REQUIRED_TOKENS = 256
"""of an answer that must be a call"""
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict,
    "array": list,
}  # fmt: skip


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value follows a schema of the task: types, enum, required and no other properties."""
    kind = schema.get("type")
    if kind and not isinstance(value, TYPES[kind]):
        return False
    if kind in ("integer", "number") and isinstance(value, bool):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if kind != "object":
        return True
    properties = schema.get("properties", {})
    return (
        set(schema.get("required", ())) <= value.keys() <= properties.keys()
        and all(fits(one, properties[key]) for key, one in value.items())
    )  # fmt: skip


def call_fits(name: str, arguments: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    try:
        return name in schemas and fits(json.loads(arguments), schemas[name])
    except ValueError:
        return False


def required_calls(
    engine: Engine, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[bool, bool]]:
    """(whether the answer is one or several calls that fit, whether it was cut off) of each row, where
    a call is required."""
    for row in rows:
        body = Chat.model_validate({
            "messages": row["messages"][:-1], "tools": row["tools"], "tool_choice": "required",
            "max_tokens": REQUIRED_TOKENS,
        })  # fmt: skip
        (request,) = chat_requests(body, engine, engine.runtime.context)
        came: queue.SimpleQueue[StreamDelta] = queue.SimpleQueue()
        engine.submit([Job(request, came.put)])
        deltas = [came.get()]
        while not deltas[-1].finish_reason:
            deltas.append(came.get())
        answer = joined(deltas)
        calls = request.form.parts(answer.text).calls
        fit = bool(calls) and all(call_fits(c.name, c.arguments, row["tools"]) for c in calls)
        yield fit, answer.finish_reason == "length"


def fine_tune(suite: Suite, options: argparse.Namespace) -> list[Path]:
    """The files of the base and of the fine-tune, of each of QUANTS."""
    out: Path = options.out
    threads = ("--threads", options.threads) if options.threads else ()
    quants = ("--quant", ",".join(QUANTS), *threads)
    edgeft("merge-export", "--base", options.base, "--out", out / "base", *quants)
    if store.read_manifest(out / "adapter") is None:
        edgeft("train-qlora", "--base", options.base, "--data", suite.train,
               "--validation-data", suite.validation, "--output", out / "adapter",
               "--steps", options.steps, "--batch-size", 4, *threads)  # fmt: skip
    edgeft("merge-export", "--adapter", out / "adapter", "--out", out / "tuned", *quants)
    return [out / folder / f"{quant}.gguf" for folder in ("base", "tuned") for quant in QUANTS]


def measure(artifact: Path, suite: Suite, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on all held-out rows and on each group; of the answers that had to be calls, those that
    fit, and those that do not although they were not cut off."""
    threads = ("--threads", options.threads) if options.threads else ()
    said = json.loads(edgeft(
        "bench", artifact, "--items", suite.test, "--scorer", suite.scorer, "--no-speed",
        "--max-tokens", suite.max_tokens, "--limit", options.limit, *threads, "--json",
    ))  # fmt: skip
    values = said["rows"][0]["score"]["values"]
    lines = suite.test.read_text(encoding="utf-8").splitlines()[: options.limit]
    rows = [json.loads(line) for line in lines]
    tags = [row["tags"] for row in rows]
    shares: dict[str, Any] = {"all": sum(values) / len(values)}
    for tag in (*GROUPS, "one", "two", "none"):
        of_tag = [value for value, own in zip(values, tags, strict=True) if tag in own]
        shares[tag] = sum(of_tag) / len(of_tag) if of_tag else None
    serving = ServeOptions((artifact,), slots=1, threads=options.threads, context=2048)
    with engines(serving) as (engine,):
        answers = list(required_calls(engine, rows))
    shares["required fits"] = sum(fit for fit, _ in answers) / len(answers)
    shares["required misfits"] = sum(not (fit or cut) for fit, cut in answers) / len(answers)
    return {"model": f"{artifact.parent.name} {artifact.stem}", "rows": len(rows)} | shares


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a model, in Markdown."""
    columns = [key for key in rows[0] if key not in ("model", "rows")]
    body = [
        [row["model"], *("" if row[key] is None else f"{row[key]:.1%}" for key in columns)]
        for row in rows
    ]
    return tables.table(["model", *columns], body)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m", help="as for edgeft train")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training, 4 rows each")
    parser.add_argument("--limit", type=int, default=300, help="held-out rows that are asked")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    suite = write_task(TASK, options.out / "tasks")
    rows = [measure(artifact, suite, options) for artifact in fine_tune(suite, options)]
    print(table(rows))
    print(json.dumps({"machine": machine.describe_machine(), "rows": rows}))


if __name__ == "__main__":
    main()
