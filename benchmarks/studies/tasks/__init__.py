"""Tasks of our own for studies: a name and a seed -> train, validation and test rows with their scorer.

    python -m edgeft.benchmarks.studies.tasks --out build/tasks

writes a folder for each task: `train.jsonl`, `validation.jsonl`, `test.jsonl`, `instructions.txt` (the system
prompt of models that were not fine-tuned) and `task.json` (scorer and tokens of an answer). README.md tells
the rules of each task. From Python:

    task = write_task("support_intents", Path("build/tasks"))      # a Suite
    task.test, task.scorer, task.max_tokens
"""

from edgeft.benchmarks.studies.tasks.writing import TASKS, write_task

__all__ = ["TASKS", "write_task"]
