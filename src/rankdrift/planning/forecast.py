"""What one run is expected to take, and what a few of its steps were seen to take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rankdrift.planning.batches import Batches
from rankdrift.planning.disk import Disk
from rankdrift.planning.memory import RankMemory
from rankdrift.planning.parameters import ModelSize


class Trial(NamedTuple):
    """What a few real steps took."""

    seconds: float
    """Of a step, the median."""
    memory: int
    """Bytes: the peak of a rank, resident on a CPU."""
    in_use: int | None = None
    """Bytes that a rank has in use at the fullest moment; None where nobody counts them."""


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take."""

    run: str
    """Its name."""
    settings: dict[str, Any]
    """The resolved experiment, in plain JSON types."""
    method: str
    precision: str
    batches: Batches
    size: ModelSize
    stage: int
    """The ZeRO stage in force."""
    stages: dict[int, RankMemory]
    """The memory of a rank at every stage, with the given configuration's other knobs."""
    baseline: int
    """Bytes that a rank's process has without a model; of a CPU rank they count."""
    is_gpu: bool
    disk: Disk
    notes: tuple[str, ...]
    """What the figures leave out, or are less sure of."""

    def peak(self, stage: int) -> int:
        """Return the peak of a rank at a stage, bytes: of its device, or of its process on a CPU."""
        return self.stages[stage].peak + (0 if self.is_gpu else self.baseline)

    def least(self, stage: int) -> int:
        """Return what a rank cannot do without at a stage, bytes: what is in use at the fullest moment."""
        return self.stages[stage].at_once + (0 if self.is_gpu else self.baseline)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, with what follows from the fields."""
        peaks = {stage: self.peak(stage) for stage in self.stages}
        batches = {"tokens_a_step": self.batches.tokens_a_step, "epochs": self.batches.epochs}
        return asdict(self) | {
            "batches": asdict(self.batches) | batches,
            "size": asdict(self.size) | {"total": self.size.total},
            "disk": asdict(self.disk) | {"total": self.disk.total},
            "peaks": peaks,
            "least": {stage: self.least(stage) for stage in self.stages},
        }

    def hours(self, trial: Trial) -> float:
        """Return what all steps take, without evaluations and saves, if they are as those that were tried."""
        return trial.seconds * self.batches.steps / 3600
