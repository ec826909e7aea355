"""ARC-Easy: grade-school science, the easy questions (Clark et al. 2018, arXiv 1803.05457)."""

from __future__ import annotations

from rankdrift.tasks import Source, Task
from rankdrift.tasks._arc import COLUMNS, arc_example
from rankdrift.tasks.kinds import multiple_choice

TASK = Task(
    name="arc_easy",
    version=1,
    kind=multiple_choice.KIND,
    metrics=("accuracy_norm", "accuracy"),
    columns=COLUMNS,
    example=arc_example,
    source=Source("allenai/ai2_arc", "ARC-Easy", "ai2_arc_easy"),
)
