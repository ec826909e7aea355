"""What an analysis is: a checkpoint, a run or a study becomes rows of one or more tidy tables.

To add one, write ``measures/<name>.py`` (of a checkpoint or run) or ``comparisons/<name>.py`` (of a study)
that defines ``ANALYSIS``, an :class:`Analysis`. The engine (``analysis/engine.py``) decides what has to be
computed, puts the identity columns in front, and writes the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd

from rankdrift.analysis.findings import Answer, Finding, Headline
from rankdrift.analysis.sources.folders import config_folder
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import RunLayout
from rankdrift.settings import Section

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Params:
    """What analyses are given besides checkpoints."""

    cache: Path
    """Folder for what is computed once per base model; safe to delete."""
    workers: int = 0
    """Processes that share the matrices; 0 is one a core, at most four a GPU where there are GPUs. Numbers do
    not depend on it."""
    drift_inputs: Path | None = None
    """Parquet file of inputs for hidden states: column ``input_ids``."""
    gradient_inputs: Path | None = None
    """Parquet file of the rows that gradients are taken on: columns ``task`` (name), ``input_ids`` (unpadded)
    and ``labels`` (as long, -100 where a token is no target, else its id; for a classification head, a list
    of one class), in a fixed order."""
    settings: tuple[Section, ...] = ()
    """The sections that are given; of every other analysis the defaults are in force."""

    def of(self, section: type[S]) -> S:
        """Return the settings of an analysis, by the section that it declares."""
        return next((given for given in self.settings if isinstance(given, section)), section())


def checkpoint_inputs(subject: Subject) -> list[Path]:
    """Return what a per-checkpoint analysis reads: the base model, and the tuned folder with its settings."""
    if subject.tuned is None:
        return [subject.base]
    initial = [subject.initial] if subject.initial else []
    return list(dict.fromkeys([subject.base, subject.tuned, config_folder(subject.tuned), *initial]))


def run_inputs(subject: Subject) -> list[Path]:
    """Return what per-run analyses read: what a run logged and foretold, its scores and edited models."""
    if subject.run_dir is None:
        return []
    layout = RunLayout(subject.run_dir)
    return [layout.metrics, layout.forecast, layout.probes, layout.scores, *_edited(layout)]


def _edited(layout: RunLayout) -> list[Path]:
    """Return what is read of a run's edited models: not their weights."""
    folders = sorted(layout.variants.glob("*/*"))
    return [path for folder in map(RunLayout, folders) for path in (folder.edit, folder.scores)]


Tables = dict[str, pd.DataFrame]
"""Table -> its rows, without identity columns."""


@dataclass(frozen=True)
class Analysis:
    """An analysis: the tables it makes, what their columns mean, and how they are computed.

    Exactly one way to compute it is given: ``compute``, or ``split`` with ``measure``, or ``compute_all``.
    """

    name: str
    """Name of its file."""
    columns: Mapping[str, Mapping[str, str]]
    """Table -> column -> meaning and unit, in order, without the identity columns (with them, of a study)."""
    per: Literal["checkpoint", "run", "study"]
    """Computed for every checkpoint, once for a run's folder, or once for the whole study. A per-run frame
    brings its own ``step`` column, which takes the place of the identity's (and is not declared in
    ``columns``)."""
    compute: Callable[[Subject, Params], Tables] | None = None
    """Returns the rows of a checkpoint or run; a table left out has no rows for this subject."""
    settings: type[Section] | None = None
    """Its section of an experiment, ``analysis.<name>``; every key of it changes its numbers."""
    rows: Literal["drift_inputs", "gradient_inputs"] | None = None
    """The file of Params whose rows it puts through the models; None for an analysis that reads no text."""
    version: int = 1
    """Raised whenever its numbers change, so that stored parts are computed anew."""
    parquet_only: frozenset[str] = frozenset()
    """Tables too long to be useful as CSV."""
    split: Callable[[Any, Params], Sequence[str]] | None = None
    """Names a checkpoint's units (matrices), in the order of the table: what processes share. Of a
    study it takes all its subjects, and so does ``measure``."""
    measure: Callable[[Any, Params, str], Tables] | None = None
    """Returns the rows of one unit; it is called on one thread, in any process and order."""
    compute_all: Callable[[Sequence[Subject], Params, Path], Tables] | None = None
    """Returns the rows of a study from all its checkpoints and its other tables, which lie in the folder."""
    finish: Callable[[Sequence[Subject], Tables], Tables] | None = None
    """Of a study that is split: returns its tables from the rows of all units, in their order."""
    reads: tuple[str, ...] = ()
    """The tables of the study that ``compute_all`` reads where they are there."""
    study_files: tuple[str, ...] = ()
    """Files below the study's folder that it reads besides, where they are there."""
    findings: tuple[Finding, ...] = ()
    """What the report says of its tables."""
    answers: tuple[Answer, ...] = ()
    """What the report begins with."""
    headline: tuple[Headline, ...] = ()
    """What the report's table of last checkpoints shows of its tables."""

    def __post_init__(self) -> None:
        ways = [self.compute, self.split and self.measure, self.compute_all]
        assert sum(map(bool, ways)) == 1, f"analysis {self.name}: one way to compute it"
        of_study = bool(self.compute_all or self.finish)
        assert (self.per == "study") == of_study, f"{self.name}: per {self.per}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the report says: other processes only measure, and functions without a name stay."""
        return {**self.__dict__, "findings": (), "answers": (), "headline": ()}

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of its tables."""
        return tuple(self.columns)

    @property
    def of_folders(self) -> bool:
        """Whether it says something of checkpoints that belong to no run."""
        return self.per == "checkpoint" or (self.per == "study" and not self.reads and not self.study_files)

    def inputs(self, subject: Subject) -> list[Path]:
        """Return the files and folders its numbers depend on."""
        if self.per == "study":
            return checkpoint_inputs(subject) + run_inputs(subject)
        return checkpoint_inputs(subject) if self.per == "checkpoint" else run_inputs(subject)
