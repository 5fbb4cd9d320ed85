"""`--optimizer NAME` -> a torch optimizer over the weights that train, one row for each name.

    check("galore", {"rank": 32})           # before anything is loaded: packages, device, arguments
    settings = Settings(1e-3, weight_decay=0.0, steps=100, warmup_steps=5, arguments={"rank": 32})
    optimizer = create("galore", Weights.of(model, groups), settings)

Every optimizer comes from its package. The packages are imported only when their row is chosen.
"""

from edgeft.train.optimizers.checks import check, check_optimizer, parse_arguments
from edgeft.train.optimizers.table import (
    OPTIMIZERS,
    OptimizerRow,
    create,
    optimizer_row,
    optimizer_rows,
)
from edgeft.train.optimizers.weights import Settings, Weights

__all__ = [
    "OPTIMIZERS",
    "OptimizerRow",
    "Settings",
    "Weights",
    "check",
    "check_optimizer",
    "create",
    "optimizer_row",
    "optimizer_rows",
    "parse_arguments",
]
