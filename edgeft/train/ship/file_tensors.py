"""The type of --ship -> its format, and the file's tensors as that format's converter writes them.

check_ship("q4_0", open_base(folder))           # FormatError for what cannot be trained for
file_tensors(open_base(folder), "int4")["model.layers.0.mlp.up_proj.weight"].rounding
"""

from __future__ import annotations

from pathlib import Path

from edgeft.errors import FormatError, InputError, did_you_mean
from edgeft.formats import FORMATS, load, nearest_format
from edgeft.quantization.kept_scales import KeptScales
from edgeft.quantization.rounding import FileTensor
from edgeft.weights.text_base import TextBase

TOO_SLOW, SHIP_HINT = (
    "its values are too slow to compute in every step",
    "q4_0, iq4_xs, or a K-quant such as q4_k_m",
)


def check_ship(quant: str, base: TextBase) -> None:
    """FormatError for what is no type, one without rounding, or one that training cannot compute."""
    for name, file in file_tensors(base, quant).items():
        if not file.rounding.computes:
            raise FormatError(
                f"--ship {quant}: {name} becomes {file.rounding.name}; {TOO_SLOW}", SHIP_HINT
            )


def check_type(quant: str) -> None:
    """FormatError for what is no type of a file, one without rounding, one that needs calibration, or the
    IQ3 types."""
    if nearest_format(quant):
        return
    if quant.startswith("iq3"):
        raise FormatError(f"--ship {quant}: {TOO_SLOW}", SHIP_HINT)
    if quant in FORMATS["gguf"].solved:
        raise FormatError(
            f"--ship {quant} begins with a file of an adapter, which edgeft train makes",
            f"edgeft train --adapter FOLDER --ship {quant}, or the file with --ship-from",
        )
    types = [name for row in FORMATS.values() for name in row.nearest]
    raise FormatError(
        f"--ship {quant} is no type that rounds each weight to the nearest value",
        did_you_mean(quant, types),
    )


def check_file(path: Path, base: TextBase, quant: str) -> KeptScales:
    """The file of --ship-from. InputError where it does not have the types of `quant`."""
    row = nearest_format(quant)
    if row is None or row.name != "gguf":
        raise InputError(f"--ship-from is for types of GGUF, not {quant}", "--ship q4_0")
    kept = KeptScales(path, base.card, base.config, base.shapes)
    for name, file in file_tensors(base, quant).items():
        qtype = kept.type_of(name)
        if qtype is not None and qtype.name != file.rounding.name:
            raise InputError(
                f"{path} has {file.name} in {qtype.name}, {quant} has it in {file.rounding.name}",
                "a file of --ship's type, without --imatrix and --tensor-type",
            )
    return kept


def file_tensors(base: TextBase, quant: str) -> dict[str, FileTensor]:
    """Name in the checkpoint -> its place in the file, for every weight that the file has not in float32.

    FormatError where a weight is not stored row by row, MissingExtra without the packages of the format.
    """
    check_type(quant)
    row = nearest_format(quant)
    assert row
    if row.name not in base.card.formats:
        raise FormatError(
            f"--ship {quant}: the {base.card.family} family cannot be exported as {row.name}",
            f"it can as {', '.join(base.card.formats)}",
        )
    tensors: dict[str, FileTensor] = load(row.tensors)(base, quant)
    return tensors
