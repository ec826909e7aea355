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
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from rankdrift import records
from rankdrift.analysis.analyses import Analysis, Params, Tables
from rankdrift.analysis.parallel import map_unordered
from rankdrift.analysis.parts import Part

PORTION = 8
"""Units computed between two files: few enough to lose little, enough not to spend the time on files."""
POLL = 0.2  # seconds

Progress = Callable[[str, int, int], None]
"""(analysis, units or parts that are done, all of them) -> None."""


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

    def workers(self, wanted: int) -> int:
        """Return the processes to use: as many as wanted, or for 0 this rank's part of the cores."""
        return wanted or max(1, len(os.sched_getaffinity(0)) // self.neighbours)


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
        return {table: records.read_table(self.file(table)) for table in records.read_json(self.record)}


def bring_up_to_date(
    analysis: Analysis, parts: Sequence[Part], params: Params, progress: Progress, share: Share
) -> None:
    """Compute this rank's share of the parts that are not current; on rank 0, return when all of them are."""
    wanted = {part.name: part.dependencies(params) for part in parts}
    stale = [part for part in parts if not part.is_current(wanted[part.name])]
    if analysis.split:
        _measure_units(analysis, parts, stale, wanted, params, progress, share)
    else:
        _compute_whole(analysis, parts, stale, wanted, params, progress, share)


def _compute_whole(
    analysis: Analysis,
    parts: Sequence[Part],
    stale: Sequence[Part],
    wanted: Mapping[str, Mapping[str, Any]],
    params: Params,
    progress: Progress,
    share: Share,
) -> None:
    assert analysis.compute is not None
    done = len(parts) - len(stale)
    progress(analysis.name, done, len(parts))
    for part in (part for part in parts[share.rank :: share.count] if part in stale):
        part.store(analysis.compute(part.subject, params), wanted[part.name])
        done += 1
        progress(analysis.name, done, len(parts))
    if share.rank == 0:
        _wait(lambda: [part for part in stale if not part.is_current(wanted[part.name])])


def _measure_units(
    analysis: Analysis,
    parts: Sequence[Part],
    stale: Sequence[Part],
    wanted: Mapping[str, Mapping[str, Any]],
    params: Params,
    progress: Progress,
    share: Share,
) -> None:
    portions = {part.name: _portions(part, wanted[part.name], params) for part in stale}
    every = [portion for part in stale for portion in portions[part.name]]
    # by position among all parts: ranks that start later find fewer of them stale
    first = {part.name: index for index, part in enumerate(parts)}
    mine = [p for p in every if (first[p.part.name] + p.number) % share.count == share.rank]
    left = [portion for portion in mine if not portion.record.exists()]
    total = sum(len(portion.units) for portion in mine)
    done = total - sum(len(portion.units) for portion in left)
    progress(analysis.name, done, total)
    for measured in map_unordered(partial(_measure, params=params), left, share.workers(params.workers)):
        done += measured
        progress(analysis.name, done, total)
    if share.rank == 0:
        _wait(lambda: [portion for portion in every if not portion.record.exists()])
        for part in stale:
            _join(part, portions[part.name], wanted[part.name])


def _portions(part: Part, wanted: Mapping[str, Any], params: Params) -> list[Portion]:
    assert part.analysis.split is not None
    units = tuple(part.analysis.split(part.subject, params))
    digest = records.digest_json({"dependencies": wanted, "units": units})[:16]
    starts = range(0, len(units), PORTION)
    return [Portion(part, n, units[at : at + PORTION], digest) for n, at in enumerate(starts)]


def _measure(portion: Portion, params: Params) -> int:
    """Measure a portion's units, keep their rows, and return how many units there were."""
    part = portion.part
    assert part.analysis.measure is not None
    frames = _together(part.analysis.measure(part.subject, params, unit) for unit in portion.units)
    for table, rows in frames.items():
        records.write_parquet(portion.file(table), rows)
    records.write_json(portion.record, sorted(frames))
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
