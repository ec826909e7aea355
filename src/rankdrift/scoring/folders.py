"""Scores of models from anywhere: folders, and adapters of a base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.models.base import resolve
from rankdrift.scoring.run import BASE_STEP, score_targets
from rankdrift.scoring.score import Progress, Target, scoring_inputs
from rankdrift.scoring.shares import Shares
from rankdrift.spec import Spec

ADAPTER = "adapter_config.json"


def score_folders(
    folders: Sequence[Path],
    spec: Spec,
    base: str | None,
    with_base: bool,
    output: Path,
    progress: Progress,
    shares: Shares | None = None,
) -> list[Path]:
    """Score models and adapters on ``scoring.tasks``; return the paths of their scores.

    Each has a folder of its own name below ``output``. Models are compared with the base; of a model without
    one nothing is compared.

    Parameters
    ----------
    folders
        Hugging Face model folders, or PEFT adapter folders of one base.
    spec
        Settings; ``model.name`` is not among what counts.
    base
        Name of the base model; by default the one that the adapters name, or the first folder.
    with_base
        Score the base model too, under the name ``base``.
    output
        Where scores go.
    progress
        Called with one line for each thing done.
    shares
        The ranks that score together.

    Raises
    ------
    UserError
        If a folder is no model, or adapters are of different bases and none is named.

    """
    base_folder = _base_folder(folders, base)
    places = [(folder.resolve().name, folder.resolve()) for folder in folders]
    if len({name for name, _ in places}) < len(places):
        raise UserError(f"{', '.join(map(str, folders))}: two folders of one name; rename one")
    if with_base:
        places.insert(0, ("base", base_folder))
    targets = [
        Target(
            RunLayout(output / name),
            BASE_STEP,
            source,
            scoring_inputs(spec, source, base_folder, split),
            split,
            name,
        )
        for split in spec.scoring.splits
        for name, source in places
    ]
    return score_targets(spec, base_folder, targets, progress, shares)


def _base_folder(folders: Sequence[Path], base: str | None) -> Path:
    """Return the base model's folder."""
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such folder; give a run, a model folder or an adapter folder")
    if base is not None:
        return resolve(base)
    named = {
        str(files.read_json(folder / ADAPTER).get("base_model_name_or_path"))
        for folder in folders
        if (folder / ADAPTER).is_file()
    }
    if len(named) > 1:
        raise UserError(
            f"the adapters are of different base models ({', '.join(sorted(named))}); name one with --model"
        )
    return resolve(named.pop()) if named else resolve(str(folders[0]))
