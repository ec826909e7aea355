"""Scores of a run, or of any model folders: of every step that has none yet, and of the base model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout, steps_in
from rankdrift.models.base import context_length, load_tokenizer, resolve
from rankdrift.scoring.models import Models
from rankdrift.scoring.retention import Reference
from rankdrift.scoring.score import Progress, Target, Workload, is_current, score_checkpoint, scoring_inputs
from rankdrift.scoring.shares import Shares
from rankdrift.spec import Spec, read_spec

BASE_STEP = 0


def score_run(
    run: RunLayout,
    steps: Sequence[int],
    base: bool,
    progress: Progress,
    shares: Shares | None = None,
    spec: Spec | None = None,
) -> list[Path]:
    """Score a run's exports on every split of ``scoring.splits``; return the paths of their scores.

    Parameters
    ----------
    run
        The run's folder.
    steps
        Which exports; all of them where it is empty.
    base
        Score the base model too, into the study's ``base`` folder.
    progress
        Called with one line for each thing done.
    shares
        The ranks that score together.
    spec
        The run's settings with others for data and scoring; by default those it was trained with.

    Raises
    ------
    UserError
        If the run, or a step's export, is missing.

    """
    spec = spec or read_spec(run.spec)
    base_folder = resolve(spec.model.name, spec.model.revision)
    places = [(run, step, run.export(step)) for step in _exported(run, steps, base)]
    if base:
        places.insert(0, (_base_layout(run), BASE_STEP, base_folder))
    targets = [
        Target(out, step, source, scoring_inputs(spec, source, base_folder, split), split)
        for split in spec.scoring.splits
        for out, step, source in places
    ]
    return score_targets(spec, base_folder, targets, progress, shares)


def score_base(spec: Spec, progress: Progress) -> list[Path]:
    """Score the base model of a study as one of its runs is scored; return the paths of its scores."""
    base = resolve(spec.model.name, spec.model.revision)
    out = RunLayout(StudyLayout(spec.study_root).base)
    targets = [
        Target(out, BASE_STEP, base, scoring_inputs(spec, base, base, split), split)
        for split in spec.scoring.splits
    ]
    return score_targets(spec, base, targets, progress)


def score_targets(
    spec: Spec,
    base_folder: Path,
    targets: Sequence[Target],
    progress: Progress,
    shares: Shares | None = None,
) -> list[Path]:
    """Score any model folders as a run's are scored; return the paths of their scores."""
    stale = [target for target in targets if not is_current(target)]
    for target in targets:
        if target not in stale:
            progress(f"{target.title}: scores are up to date")
    if shares is not None:  # what one rank writes another must not take for up to date
        shares.barrier()
    for split, of_split in itertools.groupby(stale, key=lambda target: target.split):
        context = context_length(base_folder)
        workload = Workload.of(spec, split, load_tokenizer(base_folder), context)
        if workload.left_out:
            progress(f"not scored, as {spec.data.root} does not hold it: {', '.join(workload.left_out)}")
        _score(workload, base_folder, list(of_split), progress, shares)
    return [target.out.score(target.step, target.split) for target in targets]


def _exported(run: RunLayout, steps: Sequence[int], base: bool) -> list[int]:
    """Return the steps to score, or raise where one, or all, have no export."""
    exported = steps_in(run.exports)
    missing = sorted(set(steps) - set(exported))
    if missing or not (exported or base):
        wanted = f"step {', '.join(map(str, missing))}" if missing else "any step"
        known = ", ".join(map(str, exported)) or "none"
        raise UserError(f"{run.exports}: no export of {wanted} (there: {known}); run 'rankdrift consolidate'")
    return sorted(set(steps)) or exported


def _base_layout(run: RunLayout) -> RunLayout:
    root = run.root.resolve()
    study = StudyLayout(root.parent.parent)
    if study.run(root.name).root != root:
        raise UserError(f"{run.root}: not in a study's folder {study.runs}, so base scores have no place")
    return RunLayout(study.base)


def _score(
    workload: Workload,
    base_folder: Path,
    stale: Sequence[Target],
    progress: Progress,
    shares: Shares | None,
) -> None:
    """Score one model after another; each is let go before the next is loaded."""
    models = Models(workload.spec, base_folder)
    references: dict[str, Reference] = {}
    if workload.texts:
        base = models.load(base_folder)
        references = {name: Reference.of(base, text, shares) for name, text in workload.texts.items()}
    for target in stale:
        model = models.load(target.source)
        score_checkpoint(workload, model, references, target, progress, shares)
