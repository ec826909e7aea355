"""Figures: tables become pictures. One file a figure, found by its name (``registry.names("figure")``).

To add one, write ``figures/<name>.py`` that defines ``FIGURE``, a :class:`Figure`. Modules whose name
begins with an underscore are what figures share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Canvas

from rankdrift import registry
from rankdrift.analysis.figures._style import STYLE

SECTIONS = {
    "Learning": "learning_curve",
    "Forgetting": "matched_comparison",
    "Weights": "update_norm",
    "Representations": "drift_by_layer",
    "Gradients": "gradient_evolution",
    "Cost": "time_by_part",
    "Deployment": "latency_comparison",
    "Search": "search",
}
"""Section of the report -> the figure that it opens with, in order."""


class NothingToDraw(Exception):  # noqa: N818 - an outcome, which the report states; not a failure
    """The tables hold nothing that a figure could show; the message is the sentence that says why."""


@dataclass(frozen=True)
class Figure:
    """One figure of the report."""

    name: str
    """The file's name without ``.py``."""
    title: str
    section: str
    """One of SECTIONS."""
    tables: tuple[str, ...]
    """Tables without which there is nothing to draw."""
    caption: str
    """What is shown, how to read it, and what not to conclude from it."""
    draw: Callable[[Mapping[str, pd.DataFrame]], Canvas]
    """All tables of a study -> the picture; raises NothingToDraw where their rows do not serve."""

    def render(self, tables: Mapping[str, pd.DataFrame]) -> Canvas:
        """Return the picture; raise NothingToDraw where a table is missing, empty or without a usable row."""
        for name in self.tables:
            if name not in tables:
                raise NothingToDraw(f"the study has no table {name}")
            if tables[name].empty:
                raise NothingToDraw(f"the table {name} has no rows")
        with matplotlib.rc_context(STYLE):
            return self.draw(tables)


def in_report_order() -> list[Figure]:
    """Return every figure, by section, the one that opens it first, the others by name."""
    figures: list[Figure] = [registry.load("figure", name) for name in registry.names("figure")]
    places, leads = list(SECTIONS), set(SECTIONS.values())
    return sorted(figures, key=lambda f: (places.index(f.section), f.name not in leads, f.name))
