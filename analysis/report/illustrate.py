"""Figures of a study, drawn from its tables into its folder: those anew whose tables are others now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, ValuesView
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure as Canvas
from PIL import Image

from rankdrift import __version__, analysis, files
from rankdrift.analysis.figures import Figure, NothingToDraw, in_report_order
from rankdrift.analysis.figures._style import STYLE, run_styles
from rankdrift.analysis.sources.observations import RUN_KEYS
from rankdrift.progress import Progress

DPI = 150
COLOURS = 256
FORMATS = ("png", "pdf")


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
    tables: Mapping[str, pd.DataFrame],
    digests: Mapping[str, str],
    folder: Path,
    before: Mapping[str, Any],
    progress: Progress,
) -> tuple[list[Picture], list[LeftOut], dict[str, Drawn]]:
    """Draw every figure for which there is something to draw; take away older files of those left out.

    Parameters
    ----------
    tables
        The study's.
    digests
        Table -> digest of its content.
    folder
        Where figures are.
    before
        What became of each figure the last time, as a mapping; a figure is drawn again where what it was made
        from differs, or a file of it is missing.
    progress
        Told of every figure.

    """
    pictures: list[Picture] = []
    left_out: list[LeftOut] = []
    found: dict[str, Drawn] = {}
    figures, common = in_report_order(), _common(tables)
    for number, figure in enumerate(figures):
        progress("figures", number, len(figures))
        there = {suffix: folder / f"{figure.name}.{suffix}" for suffix in FORMATS}
        drawn = Drawn(**before[figure.name]) if figure.name in before else None
        if drawn is None or not _is_current(drawn, digests, common, there):
            drawn = _drawn(figure, tables, digests, common, there)
        found[figure.name] = drawn
        if drawn.left_out is None:
            pictures.append(Picture(figure, there["png"]))
        else:
            left_out.append(LeftOut(figure, drawn.left_out))
    progress("figures", len(figures), len(figures))
    return pictures, left_out, found


def _drawn(
    figure: Figure,
    tables: Mapping[str, pd.DataFrame],
    digests: Mapping[str, str],
    common: str,
    there: Mapping[str, Path],
) -> Drawn:
    watched, reason = _Watched(tables), None
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
    names = sorted(watched.looked_for)
    return Drawn(names, _made_from(names, digests, common), reason)


def _is_current(drawn: Drawn, digests: Mapping[str, str], common: str, there: Mapping[str, Path]) -> bool:
    if drawn.made_from != _made_from(drawn.tables, digests, common):
        return False
    return all(file.exists() == (drawn.left_out is None) for file in there.values())


def _made_from(names: list[str], digests: Mapping[str, str], common: str) -> str:
    return files.digest_json([common, *(digests.get(name) for name in names)])


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
