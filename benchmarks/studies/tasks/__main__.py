"""`python -m edgeft.benchmarks.studies.tasks --out DIR`: writes the tasks, prints their folders."""

import argparse
from pathlib import Path

from edgeft.benchmarks.studies.tasks import TASKS, write_task


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tasks of the studies.")
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder for each task is made here"
    )
    parser.add_argument("--task", action="append", choices=TASKS, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.task or TASKS:
        print(write_task(name, options.out, options.seed).folder)


if __name__ == "__main__":
    main()
