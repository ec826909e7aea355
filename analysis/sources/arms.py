"""Arms of a study: runs that differ in nothing but the seed, and the pairs of arms that can be compared."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pandas as pd

from rankdrift.analysis.sources.observations import arm_of, rows_of, tuned_rows


@dataclass(frozen=True)
class Arm:
    """The runs of one method and setting."""

    name: str
    """Folder name of its runs without the seed."""
    method: str
    rank: int
    """LoRA rank; 0 for full fine-tuning."""
    tasks: str
    """Tasks trained on, joined by "+"."""
    runs: dict[int, str]
    """Seed -> run."""

    def identity(self) -> dict[str, object]:
        """Return the columns that identify the arm in a table."""
        return {"arm": self.name, "method": self.method, "rank": self.rank, "tasks": self.tasks}


def arms_of(table: pd.DataFrame) -> list[Arm]:
    """Return the arms of a table's trained runs: full fine-tuning first, then by rank and name."""
    found: dict[str, Arm] = {}
    keys = ["run", "method", "rank", "tasks", "seed"]
    for row in rows_of(tuned_rows(table)[keys].drop_duplicates()):
        name = arm_of(row.run, row.seed)
        arm = found.setdefault(name, Arm(name, row.method, int(row.rank), row.tasks, {}))
        arm.runs[int(row.seed)] = row.run
    return sorted(found.values(), key=lambda arm: (arm.rank, arm.name))


def arm_pairs(arms: list[Arm]) -> list[tuple[Arm, Arm]]:
    """Return the pairs of arms trained on the same tasks; the first of a pair has the smaller rank."""
    return [(one, other) for one, other in itertools.combinations(arms, 2) if one.tasks == other.tasks]


def shared_seeds(one: Arm, other: Arm) -> list[int]:
    """Return the seeds that both arms were run with, sorted."""
    return sorted(set(one.runs) & set(other.runs))
