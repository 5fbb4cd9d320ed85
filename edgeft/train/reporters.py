"""Names of `--report-to` -> transformers' reporters, checked before a run starts."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeft.errors import InputError, MissingExtra, did_you_mean

REPORTERS = {
    "azure_ml": "azureml", "clearml": "clearml", "codecarbon": "codecarbon", "comet_ml": "comet_ml",
    "dagshub": "dagshub", "dvclive": "dvclive", "flyte": "flytekit", "kubeflow": "",
    "mlflow": "mlflow", "neptune": "neptune", "swanlab": "swanlab", "tensorboard": "tensorboard",
    "trackio": "trackio", "wandb": "wandb",
}  # fmt: skip
"""transformers' name (`INTEGRATION_TO_CALLBACK`) -> import name of the package that it needs"""
LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"


def check_reporters(names: Sequence[str]) -> None:
    """InputError for an unknown name, MissingExtra for a package that is not installed."""
    for name in names:
        if name not in REPORTERS:
            raise InputError(f"--report-to {name}: no such reporter", did_you_mean(name, REPORTERS))
        package = REPORTERS[name]
        if package and importlib.util.find_spec(package) is None:
            raise MissingExtra(
                f"--report-to {name} needs the package {package}, which is not installed",
                f"pip install {package}",
            )


@contextlib.contextmanager
def event_files_in(folder: Path) -> Iterator[None]:
    """TensorBoard's files go into `folder`, unless the user has set TENSORBOARD_LOGGING_DIR."""
    before = os.environ.get(LOGGING_DIR)
    os.environ.setdefault(LOGGING_DIR, str(folder))
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOGGING_DIR]
