"""Tables to report: figures as PNG and PDF, one self-contained report.html, and report.md."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from rankdrift import __version__, files, registry
from rankdrift.analysis.report.content import Content, compose, pictures_of
from rankdrift.analysis.report.illustrate import illustrate
from rankdrift.analysis.report.markdown import as_markdown
from rankdrift.analysis.report.study import fact_files, read_study, table_files
from rankdrift.analysis.report.topics import anchor_of
from rankdrift.layout import StudyLayout
from rankdrift.progress import Progress

HEAVY = 2_000_000
"""Bytes of pictures above which they are packed tighter: a page of twenty runs is to have 5 MB at most."""


def build_report(study: StudyLayout, progress: Progress, again: bool = False, workers: int = 0) -> Path:
    """Draw a study's figures and write its report; return the path of report.html.

    Nothing is done where the tables, the runs' JSON files and rankdrift are those of the last report, and no
    figure is drawn whose tables are, unless it is to be made ``again``. The record of what it was made from,
    ``report.meta.json``, is written last. As many processes draw as there are ``workers`` (0: one a core).

    Raises
    ------
    UserError
        If the study has no tables, or one that is incomplete or unreadable.

    """
    made_from = _made_from(study)
    if not again and _is_current(study, made_from):
        return study.report
    content, drawn = _compose(study, progress, {} if again else _drawn_before(study), workers)
    files.write_text(study.report, as_html(content))
    files.write_text(_markdown(study), as_markdown(content))
    outputs = [str(picture.png.relative_to(study.root)) for picture in pictures_of(content)]
    meta = {"made_from": made_from, "figures": outputs, "drawn": drawn, "written": files.timestamp()}
    files.write_json(_meta(study), meta)
    return study.report


def as_html(content: Content) -> str:
    """Return the report as one HTML page that needs no other file."""
    page = environment()
    total = sum(picture.png.stat().st_size for picture in pictures_of(content))
    page.filters["embedded"] = _as_webp if total > HEAVY else _as_png
    return page.get_template("report.html.j2").render(content=content)


def environment() -> Environment:
    """Return what fills in the pages' templates."""
    found = Environment(
        loader=PackageLoader("rankdrift.analysis.report", package_path="."),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["anchor"] = anchor_of
    return found


def _compose(
    study: StudyLayout, progress: Progress, before: Mapping[str, Any], workers: int
) -> tuple[Content, dict[str, dict[str, Any]]]:
    """Return the content, and what became of each figure."""
    known = read_study(study)
    digests = {table.stem: files.content_digest(table) for table in table_files(study)}
    pictures, left_out, drawn = illustrate(known, digests, before, progress, workers)
    return compose(known, pictures, left_out), {name: asdict(each) for name, each in drawn.items()}


def _drawn_before(study: StudyLayout) -> Mapping[str, Any]:
    """Return what became of each figure; nothing where another version of rankdrift wrote the report."""
    meta = files.read_json(_meta(study)) if _meta(study).exists() else {"made_from": {}}
    return (
        dict(meta["drawn"]) if meta["made_from"].get("rankdrift") == __version__ and "drawn" in meta else {}
    )


def _as_png(png: Path) -> str:
    """Return a picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode("ascii")


def _as_webp(png: Path) -> str:
    """Return the same picture, without loss, in a fifth less, for a tenth of a second."""
    smaller = io.BytesIO()
    Image.open(png).convert("RGB").save(smaller, "WEBP", lossless=True, method=2)
    return "data:image/webp;base64," + base64.b64encode(smaller.getvalue()).decode("ascii")


def _made_from(study: StudyLayout) -> dict[str, str]:
    """Return what a report depends on: the version, the known figures, every file it quotes."""
    quoted = [*table_files(study), *fact_files(study)]
    versions = {"rankdrift": __version__, "figures": " ".join(registry.names("figure"))}
    return versions | {str(file.relative_to(study.root)): files.fingerprint(file) for file in quoted}


def _is_current(study: StudyLayout, made_from: dict[str, str]) -> bool:
    if not (_meta(study).exists() and study.report.exists() and _markdown(study).exists()):
        return False
    meta = files.read_json(_meta(study))
    return meta["made_from"] == made_from and all(
        (study.root / figure).exists() for figure in meta["figures"]
    )


def _meta(study: StudyLayout) -> Path:
    return study.report.with_suffix(".meta.json")


def _markdown(study: StudyLayout) -> Path:
    return study.report.with_suffix(".md")
