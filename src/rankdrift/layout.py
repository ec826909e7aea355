"""The name of every file and folder of a run and of a study, in one place. Standard library only."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

STEP_PATTERN = re.compile(r"^step-(\d{6,})$")

REPORTED = "test"
"""The split whose scores are reported; of another one they stand beside, under its name."""


INITIAL_ADAPTER = "initial_adapter"
"""Folder beside an adapter's settings that holds the adapter as it was before training."""


def step_name(step: int) -> str:
    """Return the folder name of an optimizer step: ``step-000500``."""
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """Return the step a folder name states, or None where it is not a step's folder."""
    match = STEP_PATTERN.match(name)
    return int(match.group(1)) if match else None


def steps_in(folder: Path, suffix: str = "") -> list[int]:
    """Return the sorted steps that have an entry ``step-NNNNNN<suffix>`` in a folder (empty if absent)."""
    if not folder.is_dir():
        return []
    stems = (entry.name.removesuffix(suffix) for entry in folder.iterdir() if entry.name.endswith(suffix))
    return sorted(step for step in map(step_of, stems) if step is not None)


def cache_folder() -> Path:
    """Return the folder that keeps what can be made again: ``$RANKDRIFT_CACHE`` or ``~/.cache/rankdrift``."""
    return Path(os.environ.get("RANKDRIFT_CACHE", Path.home() / ".cache" / "rankdrift"))


def _suffix(split: str) -> str:
    return "" if split == REPORTED else f".{split}"


@dataclass(frozen=True)
class RunLayout:
    """One training run: one method, one seed."""

    root: Path

    @property
    def status(self) -> Path:
        """Where the run stands: state, step, times."""
        return self.root / "status.json"

    @property
    def best(self) -> Path:
        """Which checkpoint is the best, and by what."""
        return self.root / "best.json"

    @property
    def cell(self) -> Path:
        """How far a study is with the run: stage, state, times, and why it failed."""
        return self.root / "cell.json"

    @property
    def cell_lock(self) -> Path:
        """Held by the process that carries out the run for a study."""
        return self.root / ".cell.lock"

    @property
    def cell_log(self) -> Path:
        """What was said meanwhile, of a run that is not alone on its machine."""
        return self.root / "cell.log"

    @property
    def trial(self) -> Path:
        """What a run of a search came to."""
        return self.root / "trial.json"

    @property
    def experiment(self) -> Path:
        """The experiment as training is to read it."""
        return self.root / "experiment.json"

    @property
    def environment(self) -> Path:
        """Versions, machine, command."""
        return self.root / "env.json"

    @property
    def spec(self) -> Path:
        """The resolved experiment."""
        return self.root / "spec.json"

    @property
    def ds_config(self) -> Path:
        """The DeepSpeed configuration as it was given to DeepSpeed."""
        return self.root / "ds_config.json"

    @property
    def identity(self) -> Path:
        """What makes the run the run it is: a run with another identity is another run."""
        return self.root / "identity.json"

    @property
    def facts(self) -> Path:
        """What is trained and on what, in numbers: adapted modules, parameters, rows, rows that were cut."""
        return self.root / "facts.json"

    @property
    def forecast(self) -> Path:
        """What the run was expected to take, in memory and on the disk, and once it is done what it took."""
        return self.root / "forecast.json"

    @property
    def log(self) -> Path:
        """Rank 0's log."""
        return self.root / "train.log"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step."""
        return self.root / "metrics.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process that trains; it goes with the process."""
        return self.root / ".lock"

    @property
    def replay(self) -> Path:
        """What a run that was interrupted had logged after its last checkpoint, to be met again."""
        return self.root / "replay.json"

    @property
    def micro_batch(self) -> Path:
        """What ``training.micro_batch=auto`` has found: tokens at once, what was measured, under what."""
        return self.root / "micro_batch.json"

    @property
    def save_request(self) -> Path:
        """A file a user makes to have a checkpoint saved now."""
        return self.root / "SAVE"

    @property
    def stop_request(self) -> Path:
        """A file a user makes to have a checkpoint saved now, and training stopped."""
        return self.root / "STOP"

    @property
    def held(self) -> Path:
        """Which of the run's weights another machine holds, and what is in them."""
        return self.root / "held.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    def trace(self, step: int, rank: int) -> Path:
        """What a rank and its device did when in one step: a Chrome trace."""
        return self.root / "traces" / f"{step_name(step)}.rank-{rank}.json.gz"

    @property
    def probes(self) -> Path:
        """One Parquet table a probe."""
        return self.root / "probes"

    def probe(self, name: str) -> Path:
        """The table of one probe."""
        return self.probes / f"{name}.parquet"

    @property
    def model(self) -> Path:
        """What an export needs besides weights: configuration, tokenizer."""
        return self.root / "model"

    @property
    def initial_adapter(self) -> Path:
        """The adapter as it was before training, of methods that take it out of the base weights."""
        return self.model / INITIAL_ADAPTER

    @property
    def checkpoints(self) -> Path:
        """Sharded ZeRO checkpoints, one folder a step, and the file ``latest``."""
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The sharded ZeRO checkpoint of one step."""
        return self.checkpoints / step_name(step)

    @property
    def exports(self) -> Path:
        """Consolidated checkpoints, one folder a step."""
        return self.root / "exports"

    def export(self, step: int) -> Path:
        """The safetensors model folder or PEFT adapter folder of one step."""
        return self.exports / step_name(step)

    def merged(self, step: int) -> Path:
        """The whole model of one step of a LoRA run: the base model with the adapter in it."""
        return self.root / "merged" / step_name(step)

    @property
    def variants(self) -> Path:
        """Edited models of the run's steps: interventions, interpolations."""
        return self.root / "variants"

    def variant(self, step: int, name: str) -> RunLayout:
        """One edited model of a step; of a run's files it has the step's ``export`` and ``score``."""
        return RunLayout(self.variants / step_name(step) / name)

    @property
    def edit(self) -> Path:
        """What was done to the weights, of an edited model."""
        return self.root / "edit.json"

    @property
    def scores(self) -> Path:
        """Scores, one JSON file a step, the per-item tables beside them."""
        return self.root / "scores"

    def score(self, step: int, split: str = REPORTED) -> Path:
        """The scores of one step on a split; step 0 is the base model."""
        return self.scores / f"{step_name(step)}{_suffix(split)}.json"

    def scored_steps(self, split: str = REPORTED) -> list[int]:
        """The steps that have scores on a split, sorted."""
        return steps_in(self.scores, f"{_suffix(split)}.json")

    def score_items(self, step: int, name: str, split: str = REPORTED) -> Path:
        """The per-item table of one step, one split and one task or text."""
        return self.scores / f"{step_name(step)}{_suffix(split)}.{name}.parquet"


@dataclass(frozen=True)
class StudyLayout:
    """A study: several runs that are compared, their tables, figures and report."""

    root: Path

    @property
    def spec(self) -> Path:
        """The recipe as it was expanded: arms, seeds."""
        return self.root / "study.json"

    @property
    def cells(self) -> Path:
        """Its runs, what each is started with, and their digests."""
        return self.root / "cells.json"

    @property
    def driver(self) -> Path:
        """The process that carries out the study; left behind by one that was killed."""
        return self.root / "driver.json"

    @property
    def driver_lock(self) -> Path:
        """Held by that process."""
        return self.root / ".driver.lock"

    @property
    def trials(self) -> Path:
        """What a search has tried, and what came of it; the runs of its trials are beside."""
        return self.root / "search" / "trials.json"

    @property
    def searched(self) -> Path:
        """The settings that a search found for every arm, of all groups."""
        return self.root / "search" / "best.yaml"

    @property
    def deployment(self) -> Path:
        """What serving its models took, on what machine, and which checks they passed."""
        return self.root / "deployment" / "record.json"

    @property
    def deployment_samples(self) -> Path:
        """Every value that was measured for it."""
        return self.root / "deployment" / "samples.parquet"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.root / "runs"

    def run(self, name: str) -> RunLayout:
        """The layout of one run."""
        return RunLayout(self.runs / name)

    def run_names(self) -> list[str]:
        """The names of the runs that have a spec, sorted."""
        if not self.runs.is_dir():
            return []
        return sorted(entry.name for entry in self.runs.iterdir() if RunLayout(entry).spec.exists())

    @property
    def base(self) -> Path:
        """What is measured once on the base model: its scores (a run's ``scores`` layout) and spectra."""
        return self.root / "base"

    @property
    def tables(self) -> Path:
        """Tidy tables, Parquet and CSV, with a ``.meta.json`` each."""
        return self.root / "tables"

    def table(self, name: str) -> Path:
        """The Parquet file of one table."""
        return self.tables / f"{name}.parquet"

    @property
    def figures(self) -> Path:
        """Figures as PNG and PDF."""
        return self.root / "figures"

    @property
    def published(self) -> Path:
        """Tables written for others: LaTeX, CSV, Croissant."""
        return self.root / "export"

    @property
    def notebooks(self) -> Path:
        """Notebooks that were carried out, and what they wrote."""
        return self.root / "notebooks"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.root / "report.html"
