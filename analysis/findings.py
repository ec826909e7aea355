"""What a finding is: what an analysis says of a study's tables in the report, declared as data.

Whatever is said of every run, arm or pair is a listing's column; a sentence is about all of them. A
difference between two models is stated with its interval and called shown only where :func:`shown` holds. No
test is over layers: layers are not independent replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankdrift.analysis.formats import score_name
from rankdrift.analysis.sources.observations import BASE

RUNS = "runs"
"""Name under which a finding reads the study's runs, in the report's order: `run`, `arm`, `seed`."""
ALPHA = 0.05
"""Level of every test whose verdict is stated."""


def shown(rows: pd.DataFrame) -> pd.Series:
    """Return for each of the differences whether its interval, `low` to `high`, excludes 0."""
    return rows["low"] * rows["high"] > 0


def scored(rows: pd.DataFrame, performance: pd.DataFrame) -> pd.DataFrame:
    """Return rows of scores with `what` was scored, and the base model's `base` and `base_stderr`."""
    keys = ["task", "metric"]
    scores = pd.MultiIndex.from_frame(rows[keys])
    whole, base = (
        table.drop_duplicates(keys).set_index(keys).reindex(scores)
        for table in (performance, performance[performance["run"] == BASE])
    )
    what = list(map(score_name, rows["task"], rows["metric"], whole["higher_is_better"]))
    return rows.assign(what=what, base=base["value"].to_numpy(), base_stderr=base["stderr"].to_numpy())


def among(rows: pd.DataFrame, condition: bool | np.bool_) -> pd.DataFrame:
    """Return the rows under a condition, else none of them."""
    return rows if condition else rows.head(0)


@dataclass(frozen=True)
class Listing:
    """A table of the report: what is stated of each run, or of each of something else."""

    columns: Mapping[str, str]
    """Heading -> text, both templates (:mod:`rankdrift.analysis.formats`). A text is of the rows of a line,
    and of one heading where that names quantities: ``{task}`` makes a column a task, none where it is NaN."""
    caption: str = ""
    """Template of all that is listed."""
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
    """Which of the finding's rows are listed; of none there is no table."""
    by: tuple[str, ...] = ("run",)
    """What a line is about."""


@dataclass(frozen=True)
class Sentence:
    """A sentence about all rows together."""

    text: str
    """Template."""
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
    """Which of the finding's rows it is about; of none it is not said."""
    per: tuple[str, ...] = ()
    """Columns for each of whose values it is said."""


@dataclass(frozen=True)
class Finding:
    """Something that the report says where the study has the table."""

    topic: str
    """Heading below which it stands; ``report/topics.py`` orders those it knows, others follow."""
    reads: tuple[str, ...]
    """Tables without which nothing is said."""
    rows: Callable[..., pd.DataFrame]
    """These tables, and those `beside` -> the rows it is about; of none nothing is said."""
    parts: tuple[Listing | Sentence, ...]
    """What is said of them, in order."""
    per: tuple[str, ...] = ()
    """Columns for each of whose values all parts are said anew."""
    beside: tuple[str, ...] = ()
    """Further tables, None where the study has none."""


@dataclass(frozen=True)
class Answer:
    """One of the sentences that a report begins with: what is found on a question, and how sure that is."""

    question: str
    """``report/answers.py`` orders those it knows."""
    reads: tuple[str, ...]
    """Tables without which nothing is said."""
    say: Callable[..., str | None]
    """These tables, and those `beside` -> the sentence; None where they do not hold one."""
    topic: str
    """Whose rows it rests on."""
    beside: tuple[str, ...] = ()
    """Further tables, None where the study has none."""


@dataclass(frozen=True)
class Headline:
    """Columns of the report's table of last checkpoints."""

    table: str
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    """The table's rows of every run's last checkpoint, and of the base model -> rows with a `run`."""
    columns: Mapping[str, str]
    """As those of a listing."""
    note: str = ""
    """Sentences that say how to read them."""
