"""Embedded tasks: a folder of fixed chat rows, its scorer and the base model's instructions.

For example, to read the test rows of one task:

    suite = load_suite("smart_home")
    rows = suite.test.read_text(encoding="utf-8").splitlines()
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Suite:
    """One task on disk.

    `scorer` names the rule that compares an answer with the reference (one per tag where it names
    several), `max_tokens` bounds an answer (tokens), `instructions` is the system prompt of arms that
    were not fine-tuned, and `allow_truncated` says whether an answer that was cut off is scored or wrong.
    """

    name: str
    folder: Path
    scorer: str
    max_tokens: int
    instructions: str
    allow_truncated: bool = False

    @property
    def train(self) -> Path:
        """Rows to fine-tune on; a suite that only measures has none."""
        return self.folder / "train.jsonl"

    @property
    def validation(self) -> Path:
        """Rows to choose a recipe or a checkpoint with; likewise."""
        return self.folder / "validation.jsonl"

    @property
    def test(self) -> Path:
        """Rows to report, held out from every choice."""
        return self.folder / "test.jsonl"


def suite_names() -> list[str]:
    """Names that `load_suite` accepts, sorted."""
    return sorted(path.parent.name for path in _ROOT.glob("*/suite.toml"))


def suite_tests() -> tuple[Path, ...]:
    """The test rows of every suite: no training data may hold them."""
    return tuple(load_suite(name).test for name in suite_names())


def load_suite(name: str) -> Suite:
    """Read `<name>/suite.toml`; an unknown name raises KeyError."""
    if name not in suite_names():
        raise KeyError(name)
    folder = _ROOT / name
    fields = tomllib.loads((folder / "suite.toml").read_text(encoding="utf-8"))
    return Suite(
        name=name,
        folder=folder,
        scorer=fields["scorer"],
        max_tokens=fields["max_tokens"],
        instructions=fields["instructions"].strip(),
        allow_truncated=fields.get("allow_truncated", False),
    )
