"""What the report finds, by topic: the analyses' declared findings, filled in with the study's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from rankdrift import registry
from rankdrift.analysis.contract import Analysis
from rankdrift.analysis.findings import Finding, Sentence
from rankdrift.analysis.formats import filled
from rankdrift.analysis.report.grids import Grid, columns_of, grid_of
from rankdrift.analysis.report.study import Study

PROVENANCE, EVIDENCE = "Methods and provenance", "Evidence"
SECTIONS = {
    "Learning": ("Learning", "Means and differences over seeds"),
    "Forgetting": (
        "Forgetting",
        "Retention tasks",
        "Predictions on the tasks' prompts",
        "Equal learning, equal update",
        "What goes with forgetting",
    ),
    "Weights": (
        "Size of the update",
        "Rank of the update",
        "Task vectors",
        "Intruder dimensions",
        "Leading subspaces",
        "Interventions on intruders",
        "Between base and tuned weights",
    ),
    "Representations": ("Drift of the representations",),
    "Gradients": ("Gradients", "Gradients of the tasks"),
    "Cost": ("Time", "Memory and disk"),
    "Deployment": ("Deployment",),
    "Search": ("Search of the settings",),
    PROVENANCE: (EVIDENCE,),
}
"""Section of the report -> its topics, in order; topics that are not here stand with the weights."""
ORDER = tuple(topic for found in SECTIONS.values() for topic in found)


def section_of(topic: str) -> str:
    """Return the section of the report that a topic belongs to."""
    return next((section for section, found in SECTIONS.items() if topic in found), "Weights")


@dataclass(frozen=True)
class Topic:
    """What is found on one subject, in order."""

    title: str
    parts: tuple[str | Grid, ...]

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return anchor_of(self.title)


def anchor_of(title: str) -> str:
    """Return a heading's name in links.

    >>> anchor_of("Predictions on the tasks' prompts")
    'predictions-on-the-tasks-prompts'
    """
    return "-".join("".join(c for c in title.lower() if c.isalnum() or c in " -").split())


def topics(study: Study) -> list[Topic]:
    """Return the strength of the evidence, then the topics on which the study's tables say something."""
    found = {EVIDENCE: list(_evidence(study))}
    for finding in declared():
        found.setdefault(finding.topic, []).extend(said(finding, study))
    return [Topic(title, tuple(parts)) for title, parts in found.items() if parts]


def declared() -> list[Finding]:
    """Return the findings of all analyses in the order of the report."""
    found = [finding for analysis in in_report_order() for finding in analysis.findings]
    return sorted(found, key=lambda finding: _place(finding.topic))


def in_report_order() -> list[Analysis]:
    """Return all analyses by their first topic, then by name."""
    analyses: list[Analysis] = [registry.load("analysis", name) for name in registry.names("analysis")]
    return sorted(
        analyses, key=lambda analysis: min((_place(f.topic) for f in analysis.findings), default=len(ORDER))
    )


def _place(topic: str) -> int:
    return ORDER.index(topic) if topic in ORDER else len(ORDER)


def said(finding: Finding, study: Study) -> Iterator[str | Grid]:
    """Yield what a finding says of a study."""
    needed = [study.table(name) for name in finding.reads]
    if any(table is None for table in needed):
        return
    rows = study.in_order(finding.rows(*needed, *map(study.table, finding.beside)))
    for group in _groups(rows, finding.per):
        for part in finding.parts:
            found = part.rows(group)
            if isinstance(part, Sentence):
                yield from (filled(part.text, of_value) for of_value in _groups(found, part.per))
            elif len(found):
                columns = columns_of(part.columns, found, part.by)
                yield grid_of(columns, filled(part.caption, found))


def _groups(rows: pd.DataFrame, by: tuple[str, ...]) -> list[pd.DataFrame]:
    """Return the rows of each value, in order of appearance; all together without any; none of no rows."""
    if by and len(rows):
        return [found for _, found in rows.groupby(list(by), sort=False)]
    return [rows] if len(rows) else []


def _evidence(study: Study) -> Iterator[str | Grid]:
    arms_of: dict[tuple[int, ...], list[str]] = {}
    for arm, runs in study.arms.items():
        arms_of.setdefault(tuple(runs), []).append(arm)
    several = [_of_seeds(seeds, arms) for seeds, arms in arms_of.items() if len(seeds) > 1]
    single = [_of_seeds(seeds, arms) for seeds, arms in arms_of.items() if len(seeds) == 1]
    if several:
        means = "Means over them have 95 % t intervals."
        if study.table("seed_means") is None:
            means = "The study has no table seed_means: no interval over them is given."
        yield f"Several seeds: {'; '.join(several)}. {means}"
    if single:
        yield (
            f"One seed: {'; '.join(single)}. No interval over seeds can be given for these: a difference "
            "between such runs includes a variation from seed to seed of unknown size."
        )
    commits = {
        str((run.environment.get("git") or {}).get("commit", "unknown"))
        for run in study.runs
        if run.environment
    }
    if len(commits) > 1:
        yield f"Runs were trained by code of different commits: {', '.join(sorted(commits))}."
    yield (
        "Standard errors, and the intervals of runs, are over scored items, for one trained model each: they "
        "say how far a number would move with other items, not with another training."
    )


def _of_seeds(seeds: tuple[int, ...], arms: list[str]) -> str:
    return f"{', '.join(arms)} ({', '.join(map(str, seeds))})"
