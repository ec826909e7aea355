"""Runs of one study beside each other: what each learnt, forgot and moved, and what of it is certain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from rankdrift import files, registry
from rankdrift.analysis.sources.observations import arm_of
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.spec import read_spec
from rankdrift.studies.pipeline import analyse_study
from rankdrift.studies.study_checkpoints import stored_steps

SCORE = ["task", "metric", "score", "score_gain"]
PLANE = ["run", "step", *SCORE, "task_loss", "nll_increase", "kl_from_base", "reason"]
MOVED = ["run", "step", "relative_update_norm", "sigma1_ratio", "intruders_left", "intruders_right", "drift"]
ITEMS = ["run", "other_run", "task", "metric", "items", "difference", "low", "high", "mcnemar_p", "reason"]
MATCHED = ["arm", "other_arm", "matched", "level", "seeds", "difference", "low", "high", "reason"]


def compare(runs: Sequence[RunLayout], say: Callable[[str], None]) -> Iterator[str]:
    """Bring the tables of the runs' study up to date, then yield the comparison, a block a subject.

    Raises
    ------
    UserError
        If the runs are not of one study, or one has nothing that is stored.

    """
    study = _study(runs)
    for run in runs:
        if not stored_steps(run):
            raise UserError(f"{run.root}: no step of it is stored; train and score it first")
    analyse_study(study, registry.names("analysis"), say)
    names = [run.root.resolve().name for run in runs]
    plane = files.read_table(study.table("learning_forgetting"))
    last = plane[plane["run"].isin(names)]
    last = last[last["step"] == last.groupby("run")["step"].transform("max")]
    yield _block("Learning and forgetting, last step (nats a token)", last[PLANE])
    yield _block("How far it moved", last[MOVED].drop_duplicates())
    items = files.read_table(study.table("item_contrasts"))
    yield _block(
        "Item by item, 95 % BCa intervals",
        items[items["run"].isin(names) & items["other_run"].isin([*names, "base"])][ITEMS],
    )
    arms = {arm_of(name, read_spec(study.run(name).spec).seed) for name in names}
    matched = files.read_table(study.table("matched_comparison"))
    yield _block(
        "Forgetting (nats a token) where both learnt, or moved, equally far; 95 % t intervals over seeds",
        matched[matched["arm"].isin(arms) & matched["other_arm"].isin(arms)][MATCHED],
    )


def _study(runs: Sequence[RunLayout]) -> StudyLayout:
    folders = {run.root.resolve().parent.parent for run in runs}
    if len(folders) > 1:
        raise UserError(
            f"runs of {len(folders)} studies ({', '.join(map(str, sorted(folders)))}); give one's"
        )
    return StudyLayout(folders.pop())


def _block(title: str, rows: pd.DataFrame) -> str:
    body = rows.to_string(index=False, float_format=lambda value: f"{value:.4g}") if len(rows) else "(none)"
    return f"\n{title}\n{body}"
