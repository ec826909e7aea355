"""Shares the work of an analysis over processes of this machine.

Work is cut into portions of a few units each. Each portion's rows are a file of their own as soon as they are
there, so nothing is lost by a kill but portions under way. Several machines each measure the checkpoints that
they hold (``studies/away.py``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.parallel import map_unordered
from rankdrift.analysis.parts import Part
from rankdrift.analysis.sources.elsewhere import Weights, none_elsewhere
from rankdrift.progress import Progress

PORTION = 8
"""Units computed between two files: few enough to lose little, enough not to spend the time on files."""
GPU_PROCESSES = 4
"""Processes that share a GPU: while one reads, the others compute. Each holds a context and its matrices."""


@dataclass(frozen=True)
class Portion:
    """Some units of a part, and the files that hold their rows."""

    part: Part
    number: int
    units: tuple[str, ...]
    digest: str
    """Of all that the rows depend on: what was measured for something else is not taken for it."""

    @property
    def record(self) -> Path:
        """The JSON file that is written last."""
        return self.part.portions / f"{self.number:05d}-{self.digest}.json"

    def file(self, table: str) -> Path:
        """The rows of one table."""
        return self.record.with_suffix(f".{table}.parquet")

    def rows(self) -> Tables:
        """Return the stored rows."""
        return {table: files.read_table(self.file(table)) for table in files.read_json(self.record)}


def bring_up_to_date(
    analysis: Analysis,
    parts: Sequence[Part],
    params: Params,
    progress: Progress,
    weights: Weights = none_elsewhere,
) -> None:
    """Compute the parts that are not current; ``weights`` has the checkpoints here that are measured."""
    work = _Work(analysis, parts, params, progress)
    with weights([part.subject for part in work.stale] if analysis.per == "checkpoint" else []):
        if analysis.split:
            work.measure_units()
        else:
            work.compute_whole()


def processes(wanted: int) -> int:
    """Return how many processes measure: as many as wanted, or for 0 one a core.

    Where there are GPUs, no more than ``GPU_PROCESSES`` for each, so that their memory suffices.
    """
    found = len(os.sched_getaffinity(0))
    if gpus := torch.cuda.device_count():
        found = min(found, GPU_PROCESSES * gpus)
    return wanted or found


@dataclass(frozen=True)
class _Work:
    """One analysis of all its parts."""

    analysis: Analysis
    parts: Sequence[Part]
    params: Params
    progress: Progress

    @cached_property
    def wanted(self) -> dict[str, dict[str, Any]]:
        """Part -> all that its rows are to depend on."""
        return {part.name: part.dependencies(self.params) for part in self.parts}

    @cached_property
    def stale(self) -> list[Part]:
        """The parts to compute."""
        return [part for part in self.parts if not part.is_current(self.wanted[part.name])]

    def compute_whole(self) -> None:
        """Compute the parts: on one GPU, or none, one after the other, on several as many at a time."""
        done, total = len(self.parts) - len(self.stale), len(self.parts)
        self.progress(self.analysis.name, done, total)
        todo = [(part, self.wanted[part.name]) for part in self.stale]
        gpus = torch.cuda.device_count()
        compute = partial(_compute, params=self.params)
        for _ in map_unordered(compute, todo, gpus) if gpus > 1 else map(compute, todo):
            done += 1
            self.progress(self.analysis.name, done, total)

    def measure_units(self) -> None:
        """Measure the portions of all parts that are not there yet, and join them."""
        portions = {part.name: self._portions(part) for part in self.stale}
        every = [portion for of_part in portions.values() for portion in of_part]
        left = [portion for portion in every if not portion.record.exists()]
        total = sum(len(portion.units) for portion in every)
        done = total - sum(len(portion.units) for portion in left)
        self.progress(self.analysis.name, done, total)
        for measured in map_unordered(
            partial(_measure, params=self.params), left, processes(self.params.workers)
        ):
            done += measured
            self.progress(self.analysis.name, done, total)
        for part in self.stale:
            _join(part, portions[part.name], self.wanted[part.name])

    def _portions(self, part: Part) -> list[Portion]:
        assert self.analysis.split is not None
        units = tuple(self.analysis.split(part.subject, self.params))
        digest = files.digest_json({"dependencies": self.wanted[part.name], "units": units})[:16]
        starts = range(0, len(units), PORTION)
        return [Portion(part, n, units[at : at + PORTION], digest) for n, at in enumerate(starts)]


def _compute(todo: tuple[Part, dict[str, Any]], params: Params) -> None:
    """Compute a part whole, and store it."""
    part, wanted = todo
    assert part.analysis.compute is not None
    part.store(part.analysis.compute(part.subject, params), wanted)


def _measure(portion: Portion, params: Params) -> int:
    """Measure a portion's units, keep their rows, and return how many units there were."""
    part = portion.part
    assert part.analysis.measure is not None
    frames = _together(part.analysis.measure(part.subject, params, unit) for unit in portion.units)
    for table, rows in frames.items():
        files.write_parquet(portion.file(table), rows)
    files.write_json(portion.record, sorted(frames))
    return len(portion.units)


def _join(part: Part, portions: Sequence[Portion], wanted: Mapping[str, Any]) -> None:
    part.store(_together(portion.rows() for portion in portions), wanted)
    shutil.rmtree(part.portions, ignore_errors=True)


def _together(several: Iterable[Tables]) -> Tables:
    """Return the rows of several units, table by table."""
    frames: dict[str, list[pd.DataFrame]] = {}
    for tables in several:
        for table, rows in tables.items():
            frames.setdefault(table, []).append(rows)
    return {table: pd.concat(rows, ignore_index=True) for table, rows in frames.items()}
