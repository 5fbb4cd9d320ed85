"""lm-evaluation-harness on an artifact, through `edgeft serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeft.base.resolve import resolve
from edgeft.benchmarks.fidelity.compare import ScoredSequence, log_likelihood, logits_of
from edgeft.benchmarks.performance.http import ServerProcess
from edgeft.export.pipeline import ExportOptions, export
from edgeft.runtimes.protocol import open_runtime

pytestmark = pytest.mark.slow
QUESTIONS = (
    ("The capital of France is", (" Paris", " Berlin")),
    ("Two plus two is", (" four", " a banana")),
    ("The colour of grass is", (" a small table", " green")),
    ("Fish live in the", (" sand", " water")),
    ("My grandmother baked", (" the moon", " a cake")),
)
TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: multiple_choice
target_delimiter: ""
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}]
"""


# In float16: the products of 4 bits round otherwise in the server, which keeps answers apart, and a rare
# token's likelihood may be a third of a nat off.
def test_a_local_task_is_scored_as_the_runtime_itself_scores_it(tmp_path: Path) -> None:
    base = resolve("smollm2-135m")
    options = ExportOptions(out=tmp_path, base="smollm2-135m", quants=("f16",), live=False)
    artifact = export(options)[0].path
    items = tmp_path / "items.jsonl"
    rows = [{"question": q, "choices": c, "answer": 0} for q, c in QUESTIONS]
    items.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(TASK.format(items=items))
    with ServerProcess(artifact, threads=2) as server:
        server.loaded()
        arguments = {
            "model": artifact.stem, "base_url": f"{server.address}/v1/completions",
            "tokenizer": base, "tokenizer_backend": "huggingface",
        }  # fmt: skip
        command = [
            sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args",
            ",".join(f"{key}={value}" for key, value in arguments.items()),
            "--include_path", tmp_path, "--tasks", "local_choice",
            "--output_path", tmp_path / "out", "--log_samples",
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), env=os.environ | {"HF_HUB_OFFLINE": "1"},
                              capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (log,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = sorted(map(json.loads, log.read_text().splitlines()), key=lambda row: row["doc_id"])
    right = 0
    with open_runtime(artifact) as model:
        for (question, choices), sample in zip(QUESTIONS, samples, strict=True):
            own = []
            for choice, (likelihood, _) in zip(choices, sample["filtered_resps"], strict=True):
                before, whole = model.encode(question), model.encode(question + choice)
                rows_of = range(len(before) - 1, len(whole) - 1)
                item = ScoredSequence(whole, np.array(rows_of))
                own.append(float(log_likelihood(logits_of(model, item), item.next_ids).sum()))
                assert own[-1] == pytest.approx(float(likelihood), abs=0.05)
            right += own[0] > own[1]
            assert sample["acc"] == float(own[0] > own[1])
    assert 0 < right < len(QUESTIONS), "a task on which all is right would show nothing"
