"""What `--ship gptq-q4_0` and `--ship-text auto` make for a training first, in a folder beside --output.

inputs = ShipInputs.of(options)
options |= inputs.paths(options)        # true before anything is made
inputs.make(run, method, objective, overwrite)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from edgeft.errors import InputError
from edgeft.formats import FORMATS, GPTQ_PREFIX
from edgeft.train.options import AUTO, TrainOptions

CALIBRATED = FORMATS["gguf"].solved
"""types that `--ship` first makes by GPTQ"""


@dataclass(frozen=True)
class ShipInputs:
    quant: str
    """type that GPTQ exports --adapter to, for --ship-from; empty for none"""
    text: bool
    """whether the base writes the text of --ship-text"""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        ship = options["ship"] if options["ship"] in CALIBRATED and options["adapter"] else ""
        return cls(ship, options["ship_text"] == AUTO)

    def paths(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the training from these files."""
        output = options["output"].expanduser().absolute()
        folder = output.parent / f"{output.name}.file"
        changed: dict[str, Any] = {"ship_text": folder / "text.txt"} if self.text else {}
        if not self.quant:
            return changed
        quant = self.quant.removeprefix(GPTQ_PREFIX)
        if options["ship_from"] is not None:
            raise InputError(
                f"--ship {self.quant} makes the file of --ship-from", f"--ship {quant}"
            )
        return {**changed, "ship": quant, "ship_from": folder / f"{self.quant}.gguf"}

    def make(self, run: TrainOptions, method: str, objective: str, overwrite: bool) -> None:
        """Make what is not there; what is complete stays. Raises what the training would raise at its start.

        torch's threads are as before: their number decides the last bits of the training.
        """
        if not (self.quant or self.text):
            return
        from edgeft.train.registry import load_method
        from edgeft.train.run import check_start
        from edgeft.train.ship import plain_text

        check_start(run, method, objective)
        if run.ship_text and not self.text:
            plain_text(run.ship_text)
        load_method("qlora")  # before torch is imported: settings of OpenMP
        import torch

        threads = int(run.threads) if run.threads.isdecimal() else len(os.sched_getaffinity(0))
        before = torch.get_num_threads()
        try:
            if self.text:
                _write(run, overwrite, threads)
            if self.quant:
                _calibrate(run, self.quant, overwrite, threads)
        finally:
            torch.set_num_threads(before)


def _write(run: TrainOptions, overwrite: bool, threads: int) -> None:
    """Let the base write the text of --ship-text."""
    from edgeft.train.ship.written_text import write_text

    assert run.ship_text
    write_text(run.base, run.ship_text, run.seed, overwrite, threads)


def _calibrate(run: TrainOptions, quant: str, overwrite: bool, threads: int) -> None:
    """Export --adapter by GPTQ to --ship-from, as `edgeft merge-export` does."""
    from edgeft.adapter.read import Weighted
    from edgeft.export.options import ExportOptions
    from edgeft.export.pipeline import export

    assert run.adapter and run.ship_from
    try:
        export(ExportOptions(run.ship_from.parent, (Weighted(run.adapter),), str(run.base),
                             quants=(quant,), overwrite=overwrite, threads=threads))  # fmt: skip
    except InputError as error:
        if not error.message.startswith("nothing to calibrate"):
            raise
        raise InputError(
            error.message,
            f"edgeft merge-export --quant {quant} --calibration FILE, and --ship-from",
        ) from None
