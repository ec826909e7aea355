"""Scores of a run: every exported step that has none yet, and the base model on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from rankdrift.data.dataset import num_labels
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout, steps_in
from rankdrift.models.base import load_model, load_tokenizer, resolve
from rankdrift.models.exports import load_export
from rankdrift.scoring.retention import Reference
from rankdrift.scoring.score import Progress, Target, Workload, is_current, score_checkpoint, scoring_inputs
from rankdrift.spec import ModelSpec, Spec, read_spec

BASE_STEP = 0


def score_run(run: RunLayout, steps: Sequence[int], base: bool, progress: Progress) -> list[Path]:
    """Score a run's exports; return the paths of their scores.

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

    Raises
    ------
    UserError
        If the run, or a step's export, is missing.

    """
    spec = read_spec(run.spec)
    base_folder = resolve(spec.model.name, spec.model.revision)
    places = [(run, step, run.export(step)) for step in _exported(run, steps, base)]
    if base:
        places.insert(0, (_base_layout(run), BASE_STEP, base_folder))
    targets = [
        Target(out, step, source, scoring_inputs(spec, source, base_folder)) for out, step, source in places
    ]
    return score_targets(spec, base_folder, targets, progress)


def score_targets(spec: Spec, base_folder: Path, targets: Sequence[Target], progress: Progress) -> list[Path]:
    """Score any model folders as a run's are scored; return the paths of their scores."""
    stale = [target for target in targets if not is_current(spec, target)]
    for target in targets:
        if target not in stale:
            progress(f"{target.title}: scores are up to date")
    if stale:
        _score(spec, base_folder, stale, progress)
    return [target.out.score(target.step) for target in targets]


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


def _score(spec: Spec, base_folder: Path, stale: Sequence[Target], progress: Progress) -> None:
    """Score one model after another; each is let go before the next is loaded."""
    workload = Workload.of(spec, load_tokenizer(base_folder))
    reference = None
    if workload.text is not None:
        reference = Reference.of(_load(base_folder, base_folder, spec), workload.text)
    for target in stale:
        score_checkpoint(workload, _load(target.source, base_folder, spec), reference, target, progress)


def _load(source: Path, base_folder: Path, spec: Spec) -> PreTrainedModel:
    """Load a model for scoring: fp32, in evaluation mode, on the GPU if there is one."""
    plain: ModelSpec = spec.model.model_copy(update={"gradient_checkpointing": False})
    labels = num_labels(spec)
    torch.manual_seed(spec.seed)  # a base model's new classification head is the one training began with
    is_base = source == base_folder
    model = load_model(source, plain, labels) if is_base else load_export(source, base_folder, plain, labels)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return cast(PreTrainedModel, model.eval().to(device))
