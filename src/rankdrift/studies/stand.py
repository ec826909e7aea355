"""Where a run stands, from its folder; run as a program, it says so to another machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.manifest import newest


@dataclass(frozen=True)
class Stand:
    """Where a run stands."""

    saved: int
    """The newest step of which there is a checkpoint, 0 without one."""
    status: dict[str, Any]
    """What its ``status.json`` says."""

    @classmethod
    def of(cls, run: RunLayout) -> Stand:
        """Read it from the run's folder."""
        status = files.read_json(run.status) if run.status.exists() else {}
        return cls(newest(run.checkpoints) or 0, status)

    @property
    def failed(self) -> int | None:
        """The rank that has failed first, if it is known."""
        return self.status.get("rank")

    def is_beyond(self, before: Stand) -> bool:
        """Whether a start has made a step: the status of one that has not is as old, or of its first."""
        said = self.status != before.status and self.status.get("step", 0) > before.saved
        return said or self.saved > before.saved


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(Stand.of(RunLayout(Path(sys.argv[1]))))))
