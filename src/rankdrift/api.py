"""Scoring, training and analysis from scripts and notebooks: settings in, pandas tables out.

``from rankdrift import score, train, analyze``; docs/api.md has an example of each. Every function does what
the command of the same name does, writes the same files, and does nothing twice.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rankdrift import files, registry
from rankdrift.layout import StudyLayout
from rankdrift.progress import Say
from rankdrift.spec import AnalysisSpec, Spec

CONFIGS = Path(__file__).parent / "ds_configs"


def train(spec: Spec, config: str | Path = CONFIGS / "zero2.json", ranks: int | None = None) -> pd.DataFrame:
    """Train one run on this machine and return its log.

    Parameters
    ----------
    spec
        The experiment; its run is kept in ``<output>/<study>/runs/<arm>-seed<seed>``.
    config
        DeepSpeed JSON.
    ranks
        Processes; by default one a GPU, or two on a CPU.

    Returns
    -------
    pd.DataFrame
        A row a line of ``metrics.jsonl``: ``step``, ``split`` ("train", "validation", "train/<task>" ...),
        and the quantities, NaN where a line has none.

    Raises
    ------
    UserError
        If the settings or the data cannot be used; RankError if a rank failed.

    """
    from rankdrift.studies.launcher import default_ranks, launch

    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "experiment.yaml"
        recipe.write_text(json.dumps(spec.as_dict()), encoding="utf-8")  # JSON is YAML
        launch(ranks or default_ranks(), ["--config", str(config), "--experiment", str(recipe)])
    run = StudyLayout(spec.study_root).run(spec.run_name)
    return pd.DataFrame(files.read_jsonl(run.metrics))


def score(
    models: str | Path | Sequence[str | Path],
    spec: Spec,
    base: str | None = None,
    output: str | Path = "outputs/scores",
    say: Say = print,
) -> pd.DataFrame:
    """Score models or adapters on ``spec.scoring.tasks`` and return the metrics.

    Parameters
    ----------
    models
        Model names or folders, or PEFT adapter folders of one base.
    spec
        Of it counts where data are (``data``) and what is scored (``scoring``).
    base
        Base model of adapters; by default the one that they name.
    output
        Where scores and the tables of items go, a folder a model.
    say
        Called with a line for each thing done.

    Returns
    -------
    pd.DataFrame
        Columns ``model``, ``split``, ``task``, ``metric``, ``value``, ``stderr``, ``n``,
        ``higher_is_better``; the items are in the Parquet files beside the scores.

    """
    from rankdrift.models.base import resolve
    from rankdrift.scoring.folders import score_folders

    given = [models] if isinstance(models, str | Path) else list(models)
    folders = [Path(model) if Path(model).is_dir() else resolve(str(model)) for model in given]
    scores = [files.read_json(path) for path in score_folders(folders, spec, base, False, Path(output), say)]
    return pd.DataFrame([row for of_model in scores for row in _metrics(of_model)])


def _metrics(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row a metric of a score file."""
    place = {"model": Path(scores["model"]).name, "split": scores["split"]}
    return [
        {**place, "task": task, "metric": metric, **estimate, "n": of_task["n"]}
        for task, of_task in scores["tasks"].items()
        for metric, estimate in of_task["metrics"].items()
    ]


def analyze(
    base: str,
    tuned: str | Path | Sequence[str | Path],
    analyses: Sequence[str] = ("spectra",),
    settings: AnalysisSpec | None = None,
    output: str | Path = "outputs/analysis",
    say: Say = print,
) -> dict[str, pd.DataFrame]:
    """Measure tuned models, adapters or checkpoints against their base and return the tables by name.

    Parameters
    ----------
    base
        Base model: a name or a folder.
    tuned
        Folders of models, adapters or sharded checkpoints.
    analyses
        Those of any folders: ``spectra``, ``task_vectors``, ``drift``, ``checkpoint_gradients``.
    settings
        Of the analyses, for instance ``AnalysisSpec(workers=1, spectra={"top_k": 16})``.
    output
        Where tables go.
    say
        Called with lines of progress.

    """
    from rankdrift.analysis.engine import run_analyses
    from rankdrift.models.base import resolve
    from rankdrift.progress import progress_lines
    from rankdrift.studies.study_checkpoints import folder_params, folder_subjects

    for name in analyses:
        registry.require("analysis", name)
    folders = [Path(tuned)] if isinstance(tuned, str | Path) else [Path(folder) for folder in tuned]
    study, base_folder = StudyLayout(Path(output)), resolve(base)
    params = folder_params(study, base_folder, settings or AnalysisSpec())
    paths = run_analyses(
        list(analyses), folder_subjects(base_folder, folders), study.tables, params, progress_lines(say)
    )
    return {path.stem: files.read_table(path) for path in paths}


__all__ = ["analyze", "score", "train"]
