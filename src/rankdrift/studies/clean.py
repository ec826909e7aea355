"""Remove from a study what can be made again; tables, scores, figures and the report stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankdrift import files
from rankdrift.analysis.engine import PARTS
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout, steps_in
from rankdrift.progress import Say
from rankdrift.zero_checkpoint import rotation
from rankdrift.zero_checkpoint.manifest import complete_steps


@dataclass(frozen=True)
class Removable:
    """A folder, and from what it can be made again."""

    folder: Path
    why: str
    is_checkpoint: bool = False
    """Whether somebody may be reading it, who is not disturbed."""

    @property
    def size(self) -> int:
        """Bytes of the files in it; those with several names count once."""
        stats = (path.lstat() for path in self.folder.rglob("*") if path.is_file())
        return sum({(found.st_dev, found.st_ino): found.st_size for found in stats}.values())

    def remove(self) -> bool:
        """Remove it unless it is a checkpoint that is being read; say whether it is gone."""
        if self.is_checkpoint:
            return rotation.remove(self.folder)
        shutil.rmtree(self.folder)
        return True


def clean(study: StudyLayout, keep_exports: bool, checkpoints: bool, say: Say) -> int:
    """Remove a study's caches, and exports and merged models that its checkpoints can give again.

    Parameters
    ----------
    study
        The study.
    keep_exports
        Leave exports where they are.
    checkpoints
        Remove the checkpoints of steps before each run's last one as well, where the step is exported: the
        export holds its weights, and is kept then. No run can go on from there any more.
    say
        Takes a line for each folder that is removed.

    Returns
    -------
    int
        The bytes that are free now.

    Raises
    ------
    UserError
        Where there is no study, or a run of it is being trained.

    """
    runs = [study.run(name) for name in study.run_names()]
    if not runs:
        raise UserError(f"{study.root}: no runs there; give the folder that holds 'runs/'")
    for run in runs:
        if files.is_held(run.lock):
            raise UserError(f"{run.root}: is being trained; wait until it has ended, or stop it")
    found = [*_of_study(study), *(each for run in runs for each in _of_run(run, keep_exports, checkpoints))]
    freed = 0
    for each in found:
        size = each.size
        if each.remove():
            freed += size
            say(f"{each.folder}: {size / 1e9:.2f} GB removed; {each.why}")
    return freed


def empty(run: RunLayout) -> None:
    """Remove what is in a run's folder but its locks and what was said in ``cell.log``; the record first."""
    run.cell.unlink(missing_ok=True)
    for path in run.root.glob("*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != run.cell_log and not path.name.startswith("."):
            path.unlink()


def _of_study(study: StudyLayout) -> Iterator[Removable]:
    for folder, why in (
        (study.base / "cache", "measured again from the base model"),
        (study.tables / PARTS, "measured again where a table has to change"),
    ):
        if folder.is_dir():
            yield Removable(folder, why)


def _of_run(run: RunLayout, keep_exports: bool, checkpoints: bool) -> Iterator[Removable]:
    whole, exported = complete_steps(run.checkpoints), steps_in(run.exports)
    for step in exported:
        if step in whole and not keep_exports and not (checkpoints and step != whole[-1]):
            yield Removable(run.export(step), "'rankdrift consolidate' makes it again")
    for step in steps_in(run.merged(0).parent):
        yield Removable(run.merged(step), "'rankdrift consolidate --merge' makes it again")
    for folder in sorted(run.variants.glob("*/*/exports")):
        yield Removable(folder, "'rankdrift analyze intervene' or 'interpolate' makes it again")
    if checkpoints:
        for step in whole[:-1]:
            if step in exported:
                why = "its weights are in the export; no run can go on from it"
                yield Removable(run.checkpoint(step), why, is_checkpoint=True)
