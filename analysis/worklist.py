"""Shares the work of an analysis over processes of this machine, and over ranks on any machines.

Work is cut into portions of a few units each, the same whoever computes them. Each portion's rows are a file
of their own as soon as they are there, so nothing is lost by a kill but portions under way, and ranks need
no process group: they divide the list by position, and rank 0 waits for files. They must see one folder.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.parallel import map_unordered, take_gpu
from rankdrift.analysis.parts import Part
from rankdrift.analysis.sources.elsewhere import none_elsewhere
from rankdrift.progress import Progress

PORTION = 8
"""Units computed between two files: few enough to lose little, enough not to spend the time on files."""
POLL = 0.2  # seconds
GPU_PROCESSES = 4
"""Processes that share a GPU: while one reads, the others compute. Each holds a context and its matrices."""


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's: one of ``count`` ranks."""

    rank: int = 0
    count: int = 1
    neighbours: int = 1
    """Ranks on this machine, which share its cores."""

    @classmethod
    def of_environment(cls) -> Share:
        """Return the share of a rank as its launcher describes it; without a launcher, all of the work."""
        names = {"rank": "RANK", "count": "WORLD_SIZE", "neighbours": "LOCAL_WORLD_SIZE"}
        return cls(**{field: int(os.environ[name]) for field, name in names.items() if name in os.environ})

    @property
    def place(self) -> int:
        """Which of the ranks on this machine it is: launchers number them machine by machine."""
        return self.rank % self.neighbours

    def workers(self, wanted: int) -> int:
        """Return the processes to use: as many as wanted, or for 0 this rank's part of the cores.

        Where there are GPUs, no more than ``GPU_PROCESSES`` for each, so that their memory suffices.
        """
        processes = len(os.sched_getaffinity(0))
        if gpus := torch.cuda.device_count():
            processes = min(processes, GPU_PROCESSES * gpus)
        return wanted or max(1, processes // self.neighbours)


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
    analysis: Analysis, parts: Sequence[Part], params: Params, progress: Progress, share: Share
) -> None:
    """Compute this rank's share of the parts that are not current; on rank 0, return when all of them are."""
    take_gpu(share.place)
    work = _Work(analysis, parts, params, progress, share)
    if analysis.per == "checkpoint":
        with none_elsewhere(part.subject for part in work.stale.values()):
            pass
    if analysis.split:
        work.measure_units()
    else:
        work.compute_whole()


@dataclass(frozen=True)
class _Work:
    """One analysis of all its parts, of which this rank does its share."""

    analysis: Analysis
    parts: Sequence[Part]
    params: Params
    progress: Progress
    share: Share

    @cached_property
    def wanted(self) -> dict[str, dict[str, Any]]:
        """Part -> all that its rows are to depend on."""
        return {part.name: part.dependencies(self.params) for part in self.parts}

    @cached_property
    def stale(self) -> dict[int, Part]:
        """The parts to compute, by their place among all: ranks that start later find fewer of them."""
        return {number: part for number, part in enumerate(self.parts) if not self._is_current(part)}

    def compute_whole(self) -> None:
        """Compute this rank's parts, one after the other."""
        assert self.analysis.compute is not None
        mine = [part for number, part in self.stale.items() if number % self.share.count == self.share.rank]
        before = len(self.parts) - len(self.stale)
        total = before + len(mine)
        self.progress(self.analysis.name, before, total)
        for done, part in enumerate(mine, start=before + 1):
            part.store(self.analysis.compute(part.subject, self.params), self.wanted[part.name])
            self.progress(self.analysis.name, done, total)
        if self.share.rank == 0:
            _wait(lambda: [part for part in self.stale.values() if not self._is_current(part)])

    def measure_units(self) -> None:
        """Measure this rank's portions of all parts; on rank 0, join the portions of all ranks."""
        portions = {number: self._portions(part) for number, part in self.stale.items()}
        every = [(number, portion) for number, of_part in portions.items() for portion in of_part]
        mine = [p for number, p in every if (number + p.number) % self.share.count == self.share.rank]
        left = [portion for portion in mine if not portion.record.exists()]
        total = sum(len(portion.units) for portion in mine)
        done = total - sum(len(portion.units) for portion in left)
        self.progress(self.analysis.name, done, total)
        workers = self.share.workers(self.params.workers)
        place = self.share.place * workers
        for measured in map_unordered(partial(_measure, params=self.params), left, workers, place):
            done += measured
            self.progress(self.analysis.name, done, total)
        if self.share.rank == 0:
            _wait(lambda: [portion for _, portion in every if not portion.record.exists()])
            for number, part in self.stale.items():
                _join(part, portions[number], self.wanted[part.name])

    def _portions(self, part: Part) -> list[Portion]:
        assert self.analysis.split is not None
        units = tuple(self.analysis.split(part.subject, self.params))
        digest = files.digest_json({"dependencies": self.wanted[part.name], "units": units})[:16]
        starts = range(0, len(units), PORTION)
        return [Portion(part, n, units[at : at + PORTION], digest) for n, at in enumerate(starts)]

    def _is_current(self, part: Part) -> bool:
        return part.is_current(self.wanted[part.name])


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


def _wait(missing: Callable[[], list[Any]]) -> None:
    """Return once the other ranks have written what is missing."""
    while missing():
        time.sleep(POLL)
