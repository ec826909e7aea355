"""Check stored checkpoints and exports: that they are what was written, and can be what they claim to be.

A checkpoint has a manifest with XXH3-128 checksums (``checkpoint.json``), an export one of the same kind
(``provenance.json``). The checks of one folder end at the first damage, which makes what follows meaningless;
those of many folders go on after a damaged one.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rankdrift.errors import IntegrityError, UserError
from rankdrift.export.consolidate import PROVENANCE_NAME
from rankdrift.layout import RunLayout, steps_in
from rankdrift.progress import byte_lines
from rankdrift.verify.checkpoint_checks import CheckpointSubject, TrainerSubject
from rankdrift.verify.checks import LeftOutError
from rankdrift.verify.export_checks import ExportSubject
from rankdrift.zero_checkpoint.manifest import MANIFEST_NAME
from rankdrift.zero_checkpoint.trainer_folder import trainer_folder

Subject = CheckpointSubject | TrainerSubject | ExportSubject
Report = Callable[[str], None]  # takes one line for the user


class Verdict(enum.IntEnum):
    """How a folder stands; of several, the largest counts."""

    WELL = 0
    UNREADABLE = 1
    """Something about this machine kept a check from being made."""
    DAMAGED = 2


def find(path: Path, report: Report) -> list[Subject]:
    """Return what there is to verify at a path: itself, or a run's complete checkpoints and its exports.

    Of the Hugging Face Trainer's output folder that is every ``checkpoint-N``.

    Reports folders of a run that are not complete. Raises UserError where there is nothing to verify.
    """
    if subject := _subject(path):
        return [subject]
    run = RunLayout(path)
    found: list[Subject] = []
    for place in (run.checkpoint, run.export, run.merged):
        for folder in map(place, steps_in(place(0).parent)):
            if subject := _subject(folder):
                found.append(subject)
            else:
                report(f"{folder}: left out, not complete (no {MANIFEST_NAME} or {PROVENANCE_NAME})")
    others = (trainer_folder(folder) for folder in sorted(path.glob("*")) if folder.is_dir())
    found += [TrainerSubject(other) for other in others if other]
    if not found:
        raise UserError(
            f"{path}: nothing to verify; give a checkpoint (with {MANIFEST_NAME}, or a Trainer's with "
            f"'latest'), an export (with {PROVENANCE_NAME}), or a folder of several"
        )
    return found


def _subject(folder: Path) -> Subject | None:
    if (folder / MANIFEST_NAME).exists():
        return CheckpointSubject(folder)
    if (folder / PROVENANCE_NAME).exists():
        return ExportSubject(folder)
    other = trainer_folder(folder) if folder.is_dir() else None
    return TrainerSubject(other) if other else None


def verify(
    subjects: Sequence[Subject], report: Report, *, fast: bool = False, reload: bool = False
) -> Verdict:
    """Check all subjects, a line of result a check and a summary at the end; return the worst verdict.

    Parameters
    ----------
    subjects
        What ``find`` returned.
    report
        Takes the lines.
    fast
        Leave out the checks that read all bytes.
    reload
        Load exports and compare their logits with the checkpoint's.

    """
    left_out: list[str] = []
    verdicts = [_verify_one(subject, report, fast, reload, left_out) for subject in subjects]
    report(_summary(subjects, verdicts, len(left_out)))
    return max(verdicts)


def _verify_one(subject: Subject, report: Report, fast: bool, reload: bool, left_out: list[str]) -> Verdict:
    report(f"{subject.folder}: {subject.kind}")
    for check in subject.checks(fast, reload):
        try:
            report(f"  {check.name}: OK, {check.make(byte_lines(report, f'  {check.name}'))}")
        except LeftOutError as reason:
            left_out.append(check.name)
            report(f"  {check.name}: not checked, {reason}")
        except IntegrityError as error:
            report(f"  {check.name}: DAMAGED: {error}")
            return Verdict.DAMAGED
        except UserError as error:
            report(f"  {check.name}: CANNOT BE CHECKED: {error}")
            return Verdict.UNREADABLE
    return Verdict.WELL


def _summary(subjects: Sequence[Subject], verdicts: Sequence[Verdict], left_out: int) -> str:
    kinds = Counter(subject.kind for subject in subjects)
    what = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(kinds.items()))
    if any(verdicts):
        state = {Verdict.DAMAGED: "damaged", Verdict.UNREADABLE: "could not be checked"}
        counts = (
            f"{verdicts.count(kind)} of {len(verdicts)} {state[kind]}" for kind in state if kind in verdicts
        )
        return f"{what}: {', '.join(counts)}"
    return f"{what}: all well" + (f" ({left_out} checks not made)" if left_out else "")
