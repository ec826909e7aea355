"""Figures of a study, drawn from its tables into its folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Canvas
from PIL import Image

from rankdrift import files
from rankdrift.analysis.figures import Figure, NothingToDraw, in_report_order
from rankdrift.analysis.figures._style import STYLE
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


def illustrate(
    tables: Mapping[str, pd.DataFrame], folder: Path, progress: Progress
) -> tuple[list[Picture], list[LeftOut]]:
    """Draw every figure for which there is something to draw; take away older files of those left out."""
    pictures: list[Picture] = []
    left_out: list[LeftOut] = []
    figures = in_report_order()
    for number, figure in enumerate(figures):
        progress("figures", number, len(figures))
        files = {suffix: folder / f"{figure.name}.{suffix}" for suffix in FORMATS}
        try:
            canvas = figure.render(tables)
        except NothingToDraw as reason:
            left_out.append(LeftOut(figure, str(reason)))
            for file in files.values():
                file.unlink(missing_ok=True)
            continue
        for suffix, file in files.items():
            _save(canvas, file, suffix)
            canvas.set_layout_engine("none")  # finding where panels go is half of the time, and done
        pictures.append(Picture(figure, files["png"]))
    progress("figures", len(figures), len(figures))
    return pictures, left_out


def _save(canvas: Canvas, path: Path, suffix: str) -> None:
    with files.replacing(path) as temporary, matplotlib.rc_context(STYLE):
        if suffix == "png":
            _save_png(canvas, temporary)
        else:  # without a date in the PDF the same table gives the same file
            canvas.savefig(temporary, format=suffix, dpi=DPI, metadata={"CreationDate": None})


def _save_png(canvas: Canvas, path: Path) -> None:
    """Write the picture in 256 colours of its own: a third of the bytes, of which a report holds forty."""
    drawn = io.BytesIO()
    canvas.savefig(drawn, format="rgba", dpi=DPI)
    width = int(canvas.get_figwidth() * DPI + 1e-6)
    size = (width, len(drawn.getbuffer()) // (4 * width))
    picture = Image.frombuffer("RGBA", size, drawn.getvalue()).convert("RGB")
    colours = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colours.save(path, format="PNG", dpi=(DPI, DPI))
