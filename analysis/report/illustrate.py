"""Figures of a study, drawn from its tables into its folder: those anew whose tables are others now."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, ValuesView
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure as Canvas
from PIL import Image

from rankdrift import __version__, analysis, files, registry
from rankdrift.analysis.figures import Figure, NothingToDraw, in_report_order
from rankdrift.analysis.figures._style import STYLE, run_styles
from rankdrift.analysis.parallel import map_unordered
from rankdrift.analysis.report.study import Study, read_study
from rankdrift.analysis.sources.observations import RUN_KEYS
from rankdrift.layout import StudyLayout
from rankdrift.progress import Progress

DPI = 150
COLOURS = 256
FORMATS = ("png", "pdf")
FEW = 6
"""Figures for which a process of their own would be started in vain: it reads the study first."""


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn: ``<name>.png`` and ``<name>.pdf`` in the study's folder of figures."""

    figure: Figure
    png: Path


@dataclass(frozen=True)
class LeftOut:
    """A figure that was not drawn, and why."""

    figure: Figure
    reason: str


@dataclass(frozen=True)
class Drawn:
    """What became of a figure, and what of: kept beside the report, so that it is not drawn again."""

    tables: list[str]
    """Those that it looked for."""
    made_from: str
    """Digest of these, of the runs' styles and of the code."""
    left_out: str | None
    """Why there is no picture."""


class _Watched(Mapping[str, pd.DataFrame]):
    """A study's tables, and which of them were looked for by their names."""

    def __init__(self, tables: Mapping[str, pd.DataFrame]) -> None:
        self._tables = tables
        self.looked_for: set[str] = set()

    def __getitem__(self, name: str) -> pd.DataFrame:
        self.looked_for.add(name)
        return self._tables[name]

    def __contains__(self, name: object) -> bool:
        self.looked_for.add(str(name))
        return name in self._tables

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def values(self) -> ValuesView[pd.DataFrame]:
        """Return all tables, of which figures read the runs' styles alone: these count by themselves."""
        return self._tables.values()


def illustrate(
    study: Study,
    digests: Mapping[str, str],
    before: Mapping[str, Any],
    progress: Progress,
    workers: int = 1,
) -> tuple[list[Picture], list[LeftOut], dict[str, Drawn]]:
    """Draw every figure for which there is something to draw; take away older files of those left out.

    Parameters
    ----------
    study
        As it was read.
    digests
        Table -> digest of its content.
    before
        What became of each figure the last time, as a mapping; a figure is drawn again where what it was made
        from differs, or a file of it is missing.
    progress
        Told of every figure that is drawn.
    workers
        Processes that draw (0: one a core).

    """
    figures = in_report_order()
    work = _Work(study.layout, digests, _common(study.tables))
    found = {name: drawn for name, told in before.items() if work.is_current(name, drawn := Drawn(**told))}
    missing = [figure.name for figure in figures if figure.name not in found]
    if missing:
        progress("figures", 0, len(missing))
    for number, (name, drawn) in enumerate(_drawn_anew(work, missing, study.tables, workers), start=1):
        found[name] = drawn
        progress("figures", number, len(missing))
    reasons = [(figure, found[figure.name].left_out) for figure in figures]
    pictures = [
        Picture(figure, work.files(figure.name)["png"]) for figure, reason in reasons if reason is None
    ]
    left_out = [LeftOut(figure, reason) for figure, reason in reasons if reason is not None]
    return pictures, left_out, {figure.name: found[figure.name] for figure in figures}


@dataclass(frozen=True)
class _Work:
    """What all figures of a study have in common; small enough to be sent to another process."""

    study: StudyLayout
    digests: Mapping[str, str]
    common: str
    """Digest of what all figures depend on."""

    def files(self, name: str) -> dict[str, Path]:
        """Return a figure's files, by their formats."""
        return {suffix: self.study.figures / f"{name}.{suffix}" for suffix in FORMATS}

    def made_from(self, tables: list[str]) -> str:
        """Return the digest of what a figure depends on that looks for some tables."""
        return files.digest_json([self.common, *(self.digests.get(name) for name in tables)])

    def is_current(self, name: str, drawn: Drawn) -> bool:
        """Return whether a figure would be drawn as it was."""
        if drawn.made_from != self.made_from(drawn.tables):
            return False
        return all(file.exists() == (drawn.left_out is None) for file in self.files(name).values())


def _drawn_anew(
    work: _Work, names: list[str], tables: Mapping[str, pd.DataFrame], workers: int
) -> Iterator[tuple[str, Drawn]]:
    """Draw figures; by several processes where there are enough for each, which reads the study first."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(names) // FEW)
    if workers > 1:
        yield from map_unordered(partial(_drawn_apart, work), names, workers)
    else:
        yield from ((name, _drawn(work, name, tables)) for name in names)


def _drawn_apart(work: _Work, name: str) -> tuple[str, Drawn]:
    return name, _drawn(work, name, _tables_of(work.study.root))


@lru_cache(maxsize=1)
def _tables_of(root: Path) -> Mapping[str, pd.DataFrame]:
    return read_study(StudyLayout(root)).tables


def _drawn(work: _Work, name: str, tables: Mapping[str, pd.DataFrame]) -> Drawn:
    figure: Figure = registry.load("figure", name)
    watched, reason, there = _Watched(tables), None, work.files(name)
    try:
        canvas = figure.render(watched)
    except NothingToDraw as nothing:
        reason = str(nothing)
        for file in there.values():
            file.unlink(missing_ok=True)
    else:
        for suffix, file in there.items():
            _save(canvas, file, suffix)
            canvas.set_layout_engine("none")  # finding where panels go is half of the time, and done
    looked_for = sorted(watched.looked_for)
    return Drawn(looked_for, work.made_from(looked_for), reason)


def _common(tables: Mapping[str, pd.DataFrame]) -> str:
    """Return the digest of what all figures depend on: how runs look, and the code that draws."""
    keyed = {name: table for name, table in tables.items() if set(RUN_KEYS) <= set(table)}
    styles = {run: str(style) for run, style in run_styles(keyed).items()}
    modules = sorted(Path(analysis.__path__[0]).rglob("*.py"))
    code = [(module.name, module.stat().st_size, module.stat().st_mtime_ns) for module in modules]
    return files.digest_json([__version__, matplotlib.__version__, DPI, code, styles])


def _save(canvas: Canvas, path: Path, suffix: str) -> None:
    """Write the picture; ``savefig`` would draw it twice, and give the same."""
    canvas.set_dpi(DPI)
    with files.replacing(path) as temporary, matplotlib.rc_context(STYLE):
        if suffix == "png":
            _save_png(canvas, temporary)
        else:  # without a date in the PDF the same table gives the same file
            FigureCanvasPdf(canvas).print_pdf(temporary, metadata={"CreationDate": None})


def _save_png(canvas: Canvas, path: Path) -> None:
    """Write the picture in 256 colours of its own: a third of the bytes, of which a report holds forty."""
    drawn = FigureCanvasAgg(canvas)
    drawn.draw()
    picture = Image.fromarray(np.asarray(drawn.buffer_rgba())).convert("RGB")
    colours = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colours.save(path, format="PNG", dpi=(DPI, DPI))
