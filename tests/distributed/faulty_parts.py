"""Ranks of machines without a common folder whose saves fail at each call; a worker of test_faults.

Whatever fails on whichever machine, all ranks say so, and the step before is whole on both of them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from faulty_saves import Campaign, Handle, built, failing

from rankdrift.cli.main import leave
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.training import checkpointing, collectives, engine
from rankdrift.training.parts import at_hand, whole_steps
from rankdrift.training.places import Place, Places
from rankdrift.zero_checkpoint import checksums
from rankdrift.zero_checkpoint.manifest import Manifest

CALLS = [(Handle, "write"), (os, "fsync"), (os, "replace"), (Path, "rename"), (Path, "mkdir")]


class Apart(Campaign):
    """Each rank has a folder of its own."""

    def __init__(self, under: engine.Engine, run: RunLayout) -> None:
        super().__init__(under, run)
        self.places = Places((Place("vm1", (0,)), Place("vm2", (1,))), collectives.rank())
        self.whole = 0

    def try_to(self, call: tuple[object, str], index: int | None, on: int) -> int:
        """Save while a call fails on rank ``on``; return how many such calls there were on this rank."""
        self.step += 1
        manifest, said = replace(self.manifest, step=self.step), ""
        with failing(*call, index if collectives.rank() == on else None) as calls:
            try:
                checkpointing.save(self.engine, self.run, manifest, False, 1000, self.places).finish()
            except UserError as error:
                said = str(error)
        assert bool(said) == (index is not None), (call, index, on, said)
        assert not said or f"No space left on device ({call[1]} {index})" in said, said
        self.failures += bool(said)
        self.check_whole(bool(said))
        return len(calls)

    def check_whole(self, failed: bool) -> None:
        """What fails behind the renames (``latest``) leaves the step whole on both; anything else neither."""
        steps = whole_steps(self.run, self.places)
        assert max(steps) == self.step or (failed and max(steps) == self.whole), (steps, self.whole)
        self.whole = max(steps)
        assert not list(self.run.checkpoints.glob(".step*"))
        with at_hand(self.run.checkpoint(self.whole), steps[self.whole], self.places) as folder:
            manifest = Manifest.read(folder)
            assert len(manifest.files) == 3
            manifest.check_contents(folder)

    def run_all(self) -> None:
        for call in CALLS:
            self.try_to(call, None, on=0)  # so that the folder is there
            for rank in range(collectives.world_size()):
                for index in range(collectives.gather(self.try_to(call, None, rank))[rank]):
                    self.try_to(call, index, rank)
            shutil.rmtree(self.run.checkpoints)


def main(folder: Path, config: Path) -> None:
    checksums.open = Handle  # type: ignore[attr-defined]
    with collectives.process_group():
        campaign = Apart(
            built(json.loads(config.read_text())), RunLayout(folder / f"rank{collectives.rank()}")
        )
        campaign.run_all()
        if collectives.rank() == 0:
            (folder / "failures.json").write_text(json.dumps(campaign.failures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave(0)
