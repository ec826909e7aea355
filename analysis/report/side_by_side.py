"""Studies side by side: the same quantities of each, and whether they say the same of the arms.

Studies differ in base model or data, so that their values are not compared with each other: a cell is one
study's own. What is compared is what each finds between its arms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rankdrift.analysis.arm_differences import differences
from rankdrift.analysis.findings import RUNS
from rankdrift.analysis.formats import MISSING, ROUNDING, interval, number, signed
from rankdrift.analysis.report.explorer_data import Quantity, checkpoint_quantities
from rankdrift.analysis.report.grids import Columns, Grid, grid_of
from rankdrift.analysis.report.study import Study, missing_cells
from rankdrift.analysis.report.warnings import ENVIRONMENTS, different_versions, missing_sentence, moved
from rankdrift.analysis.sources.observations import (
    BASE,
    GENERAL_TEXT,
    TRAINED_TASKS,
    last_checkpoints,
    leading_metrics,
    rows_of,
    scores_of,
    with_arms,
)

SCORES = "performance_metrics"
LEARNT = "score of what was trained on (of several tasks their macro average)"
MOVED = "KL divergence from the base model on general text (nats a token)"
SAME_BASE = 1e-3
"""Relative difference from which on one base model's scores are not the same."""


@dataclass(frozen=True)
class SideBySide:
    """What several studies say."""

    warnings: tuple[str, ...]
    about: Grid
    quantities: pd.DataFrame
    """A row a study, arm and quantity at last checkpoints: `mean` and `stdev` over `seeds`."""
    contrasts: pd.DataFrame
    """A row a study, quantity and pair of arms: `difference` of the first less the second, `low` to `high`
    (95 %; NaN where there is none), `over` what."""

    def quantity_grids(self) -> list[Grid]:
        """Return a grid a quantity that two studies have: a row an arm, a column a study."""
        return [
            _by_study(rows, "arm", str(quantity), _mean)
            for quantity, rows in self.quantities.groupby("quantity", sort=False)
            if rows["study"].nunique() > 1
        ]

    def contrast_grids(self) -> list[Grid]:
        """Return a grid a quantity: a row a pair of arms, a column a study, and whether they agree."""
        named = self.contrasts.assign(pair=self.contrasts["arm"] + " against " + self.contrasts["other_arm"])
        return [
            _by_study(rows, "pair", f"Differences in: {quantity}", _difference, agreement)
            for quantity, rows in named.groupby("quantity", sort=False)
        ]


def side_by_side(known: Mapping[str, Study]) -> SideBySide:
    """Return what the studies, by name, say of the same quantities and of the same pairs of arms."""
    return SideBySide(
        warnings=tuple(_warnings(known)),
        about=_about(known),
        quantities=pd.concat([_quantities(study).assign(study=name) for name, study in known.items()]),
        contrasts=_contrasts(known),
    )


def agreement(rows: pd.DataFrame) -> str:
    """Return what studies' contrasts, of one pair and quantity, say together.

    >>> rows = pd.DataFrame({"difference": [1.0, 2.0], "low": [0.5, -1.0], "high": [1.5, 5.0]})
    >>> agreement(rows)
    'shown in 1 of 2, never the other way'
    """
    if len(rows) < 2:
        return MISSING
    up, down = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
    if up and down:
        return f"contradict each other: first larger in {up}, smaller in {down} of {len(rows)}"
    if not up + down:
        return f"shown in none of {len(rows)}"
    shown = f"shown in {up + down} of {len(rows)}"
    return shown if up + down == len(rows) else f"{shown}, never the other way"


def _about(known: Mapping[str, Study]) -> Grid:
    columns: Columns = {heading: {} for heading in ("study", "base model", "trained on", "arms", "seeds")}
    columns |= {"steps": {}, "scored as stored answers say": {}}
    for name, study in known.items():
        last = max((int(table["step"].max()) for table in study.of_checkpoints() if len(table)), default=None)
        tasks = {task for table in study.of_checkpoints() for task in table["tasks"].unique()} - {""}
        seeds = sorted({seed for runs in study.arms.values() for seed in runs})
        facts = (
            name,
            ", ".join(sorted(_models(study))) or MISSING,
            ", ".join(sorted(tasks)) or MISSING,
            ", ".join(study.arms) or MISSING,
            ", ".join(map(str, seeds)) or MISSING,
            MISSING if last is None else str(last),
            _canary(study),
        )
        for heading, fact in zip(columns, facts, strict=True):
            columns[heading][name] = fact
    return grid_of(columns)


def _models(study: Study) -> set[str]:
    return {str(run.spec["model"]["name"]) for run in study.runs if "model" in run.spec}


def _canary(study: Study) -> str:
    """Return whether a frozen reference model answered as stored wherever the study was scored."""
    table = study.table(ENVIRONMENTS)
    asked = table[table["canary_moved"].notna()] if table is not None else pd.DataFrame()
    if asked.empty:
        return MISSING
    if (asked["canary_moved"] == 1).any():
        return "no"
    return f"yes (within {number(float(asked['canary_difference'].max()), 2)} nats)"


def _warnings(known: Mapping[str, Study]) -> Iterator[str]:
    nothing = [name for name, study in known.items() if not study.arms]
    if nothing:
        yield f"No checkpoint of a trained run has been measured in {', '.join(nothing)}."
    yield from missing_sentence([cell for study in known.values() for cell in missing_cells(study.layout)])
    environments = [
        table.assign(run=f"{name}: " + table["run"])
        for name, study in known.items()
        if (table := study.table(ENVIRONMENTS)) is not None
    ]
    if environments:
        together = pd.concat(environments, ignore_index=True)
        yield from moved(together)
        yield from different_versions(together)
    unasked = [name for name, study in known.items() if _canary(study) == MISSING]
    if unasked:
        yield (
            f"Whether scoring moved between these studies is not known of {', '.join(unasked)}: no frozen "
            "reference model was scored beside it. Score it again to have that."
        )
    for (one, study), (other, beside) in itertools.combinations(known.items(), 2):
        yield from _bases_differ(one, study, other, beside)


def _bases_differ(one: str, study: Study, other: str, beside: Study) -> Iterator[str]:
    """Yield where one base model, asked as many items, has not the same scores in two studies."""
    tables = study.table(SCORES), beside.table(SCORES)
    if _models(study) != _models(beside) or tables[0] is None or tables[1] is None:
        return
    keys = ["task", "metric", "n"]
    of_base = [table[table["run"] == BASE][[*keys, "value"]] for table in tables if table is not None]
    both = of_base[0].merge(of_base[1], on=keys)
    for row in rows_of(both[~both["metric"].str.startswith("kl_")]):
        if abs(row.value_x - row.value_y) > SAME_BASE * max(abs(row.value_x), abs(row.value_y)):
            yield (
                f"The same base model has other scores in {one} and in {other}: {row.metric} of {row.task} "
                f"{number(row.value_x, 4)} and {number(row.value_y, 4)}, of {row.n} items each. They were "
                "asked other items, or scored otherwise."
            )
            return  # the others follow from it


def _quantities(study: Study) -> pd.DataFrame:
    """Return a row an arm, and the base, and quantity, at last checkpoints."""
    found = []
    columns = ["arm", "quantity", "seeds", "mean", "stdev"]
    runs = study.table(RUNS)
    if runs is None:  # no trained checkpoint has been measured
        return pd.DataFrame(columns=columns)
    for quantity, rows in _leading(study).items():
        base = rows[rows["run"] == BASE].assign(arm=BASE)
        tuned = last_checkpoints(rows).merge(runs[["run", "arm"]])
        found.append(pd.concat([base, tuned]).assign(quantity=quantity))
    summary, known = checkpoint_quantities(study)
    for each in _beside_the_leading(known):
        values = last_checkpoints(summary).rename(columns={each.column: "value"})
        found.append(values[["run", "arm", "value"]].assign(quantity=each.label))
    if not found:
        return pd.DataFrame(columns=columns)
    values = pd.concat(found, ignore_index=True).dropna(subset=["value"])
    by_arm = values.groupby(["quantity", "arm"], sort=False)["value"]
    return by_arm.agg(seeds="size", mean="mean", stdev="std").reset_index()[columns]


def _beside_the_leading(known: Sequence[Quantity]) -> list[Quantity]:
    """Return what is not the leading score, or what the model moved by, a second time."""
    scores = [each.column for each in known if each.column.startswith("score_")]
    leading = {"kl_from_base", *(scores if len(scores) == 1 else ())}
    return [each for each in known if each.column not in leading]


def _leading(study: Study) -> dict[str, pd.DataFrame]:
    """Return what studies of other tasks have in common: what was learnt, and how far the model moved."""
    scores = study.table(SCORES)
    if scores is None:
        return {}
    found = {}
    trained = leading_metrics(scores)
    if trained:
        average = [score for score in trained if score[0] == TRAINED_TASKS]
        found[LEARNT] = scores_of(scores, *(average or trained)[0])
    moved_by = scores_of(scores, GENERAL_TEXT, "kl_from_base")
    return found | ({MOVED: moved_by} if len(moved_by) else {})


def _contrasts(known: Mapping[str, Study]) -> pd.DataFrame:
    """Return the first arm that all studies have against every other one, in each of them."""
    columns = ["study", "quantity", "arm", "other_arm", "difference", "low", "high", "over"]
    common = [arm for arm in _arms(known) if all(arm in study.arms for study in known.values())]
    found = []
    for (name, study), first in itertools.product(known.items(), common[:1]):
        tables = study.table("seed_contrasts"), study.table("item_contrasts")
        for quantity, rows in _leading(study).items():
            last = last_checkpoints(rows)
            if first not in set(with_arms(last)["arm"]):
                continue
            for each in differences(first, last, *tables):
                ends = [each.value, each.low, each.high]
                if quantity == LEARNT and not last["higher_is_better"].iloc[0]:
                    ends = [-each.value, -each.high, -each.low]  # so that more is better in all studies
                found.append((name, quantity, first, each.other, *ends, each.unit))
    return pd.DataFrame(found, columns=columns)


def _arms(known: Mapping[str, Study]) -> list[str]:
    return list(dict.fromkeys(arm for study in known.values() for arm in study.arms))


def _by_study(
    rows: pd.DataFrame,
    by: str,
    caption: str,
    written: Callable[[Any], str],
    together: Callable[[pd.DataFrame], str] | None = None,
) -> Grid:
    """Return a line for every value of a column, a column a study, and what they say together."""
    lines = dict.fromkeys(rows[by])
    columns: Columns = {by: {line: line for line in lines}}
    for name, own in rows.groupby("study", sort=False):
        columns[str(name)] = {getattr(row, by): written(row) for row in rows_of(own)}
    if together:
        columns["together"] = {line: together(rows[rows[by] == line]) for line in lines}
    return grid_of(columns, caption)


def _mean(row: Any) -> str:
    spread = f" ± {number(row.stdev if row.stdev > ROUNDING else 0.0)}" if row.seeds > 1 else ""
    return f"{number(row.mean)}{spread} ({row.seeds})"


def _difference(row: Any) -> str:
    ends = interval(row.low, row.high)
    return f"{signed(row.difference)} " + (f"{ends} over {row.over}" if ends != MISSING else "(no interval)")
