"""One row -> what is wrong with it: a table of kinds, each with one small function.

for kind in ROW_KINDS:
    if evidence := kind.look(item): ...

A function returns the evidence (an excerpt, or a few words), "" for a row without the fault. It sees
one row at a time; what only the whole file shows is in `set_faults`.
"""

from edgeft.data.row_faults.encoding import BIDI_AND_INVISIBLE, CONTROL, demojibaked
from edgeft.data.row_faults.languages import main_script
from edgeft.data.row_faults.look import RowKind, Severity, excerpt
from edgeft.data.row_faults.personal import SECRETS, personal_spans
from edgeft.data.row_faults.table import ROW_KINDS
from edgeft.data.row_faults.turns import PREFIX

__all__ = [
    "BIDI_AND_INVISIBLE",
    "CONTROL",
    "PREFIX",
    "ROW_KINDS",
    "SECRETS",
    "RowKind",
    "Severity",
    "demojibaked",
    "excerpt",
    "main_script",
    "personal_spans",
]
