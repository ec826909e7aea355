"""A page over several studies, or groups of one: what cannot be compared, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rankdrift import __version__, files
from rankdrift.analysis.report.build import environment
from rankdrift.analysis.report.grids import Grid
from rankdrift.analysis.report.side_by_side import SideBySide, side_by_side
from rankdrift.analysis.report.study import Study, read_study
from rankdrift.analysis.report.summary import last_checkpoint_grid, last_checkpoint_note
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout

READING = (
    "Each of them has its own base model or its own data; methods are compared within one, in its report. "
    "Here they stand side by side: mean over seeds, ± the standard deviation, (number of seeds). A "
    "difference is of the first arm less the other, with its 95 % interval."
)


@dataclass(frozen=True)
class Part:
    """One study, or group: its report and its last checkpoints."""

    name: str
    link: str
    last: Grid


@dataclass(frozen=True)
class Overview:
    """The whole page."""

    title: str
    kind: str
    summary: str
    together: SideBySide
    parts: tuple[Part, ...]
    note: str
    written: str


def build_overview(root: StudyLayout, groups: Mapping[str, StudyLayout]) -> Path:
    """Write the page over groups that have tables into the study's folder; return its path."""
    known = {name: read_study(layout) for name, layout in groups.items()}
    title = root.root.resolve().name
    return _write(root.report, title, "study", known, side_by_side(known))


def build_comparison(studies: Mapping[str, StudyLayout], folder: Path) -> tuple[Path, SideBySide]:
    """Write ``comparison.html``, ``quantities.csv`` and ``contrasts.csv``; return the page and what it says.

    Raises
    ------
    UserError
        If a study has no tables, or one that is incomplete or unreadable.

    """
    known = {name: read_study(layout) for name, layout in studies.items()}
    together = side_by_side(known)
    page = _write(folder / "comparison.html", ", ".join(known), "comparison", known, together)
    files.write_text(folder / "quantities.csv", together.quantities.to_csv(index=False))
    files.write_text(folder / "contrasts.csv", together.contrasts.to_csv(index=False))
    return page, together


def named_studies(folders: list[Path]) -> dict[str, StudyLayout]:
    """Return studies by the names of their folders, or by their paths where names are alike.

    Raises
    ------
    UserError
        If there are fewer than two, or one is named twice.

    """
    paths = [folder.resolve() for folder in folders]
    twice = next((folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: named twice; a study is compared with another one")
    if len(folders) < 2:
        raise UserError(f"one study is nothing to compare; its own report is 'rankdrift report {folders[0]}'")
    names = [path.name for path in paths]
    alike = len(set(names)) < len(names)
    return {
        str(folder) if alike else name: StudyLayout(folder)
        for name, folder in zip(names, folders, strict=True)
    }


def _write(page: Path, title: str, kind: str, known: Mapping[str, Study], together: SideBySide) -> Path:
    content = Overview(
        title=title,
        kind=kind,
        summary=READING,
        together=together,
        parts=tuple(
            Part(name, os.path.relpath(study.layout.report, page.parent), last_checkpoint_grid(study))
            for name, study in known.items()
        ),
        note=" ".join(dict.fromkeys(last_checkpoint_note(study) for study in known.values())),
        written=f"rankdrift {__version__}, {files.timestamp()}",
    )
    files.write_text(page, environment().get_template("overview.html.j2").render(content=content))
    return page
