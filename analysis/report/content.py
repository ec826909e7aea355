"""What the report says, in the order in which it says it; how it looks is up to its two writers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rankdrift import __version__, files
from rankdrift.analysis.report.answers import Answered, answers
from rankdrift.analysis.report.explorer import Explorer, explorer
from rankdrift.analysis.report.grids import Grid, differing, shared
from rankdrift.analysis.report.illustrate import LeftOut, Picture
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.report.summary import last_checkpoint_grid, last_checkpoint_note
from rankdrift.analysis.report.topics import EVIDENCE, SECTIONS, Topic, section_of, topics
from rankdrift.analysis.report.warnings import warnings
from rankdrift.analysis.sources.observations import tuned_rows

PLANE = "learning_forgetting"
NOTABLE = 0.01
"""Share of rows that lose tokens above which the report begins with it."""


@dataclass(frozen=True)
class Section:
    """What is found on one question."""

    title: str
    opening: Picture | None
    """The picture it begins with."""
    sentence: str
    """What to take from it; empty where nothing is said in words."""
    topics: tuple[Topic, ...]
    pictures: tuple[Picture, ...]
    """The others."""


@dataclass(frozen=True)
class TableFacts:
    """One of the study's tables: where it is and what its columns mean."""

    name: str
    files: str
    rows: int
    columns: Grid


@dataclass(frozen=True)
class Content:
    """The whole report."""

    title: str
    summary: str
    warnings: tuple[str, ...]
    """What to know before any number."""
    answers: tuple[Answered, ...]
    plane: Picture | None
    """Learning against forgetting, the picture that the answers are read off."""
    explorer: Explorer | None
    """None where no checkpoint can be shown."""
    last_checkpoints: Grid
    last_checkpoints_note: str
    sections: tuple[Section, ...]
    evidence: Topic
    """How strong all of it is."""
    left_out: tuple[LeftOut, ...]
    settings_differing: Grid
    settings_shared: Grid
    environment_differing: Grid
    environment_shared: Grid
    ds_configs: Mapping[str, str]
    """Names of runs -> their DeepSpeed configuration as JSON text, equal ones together."""
    tables: tuple[TableFacts, ...]
    written: str


def pictures_of(content: Content) -> list[Picture]:
    """Return all pictures of a report, in its order."""
    of_sections = [
        picture for section in content.sections for picture in (section.opening, *section.pictures)
    ]
    return [picture for picture in (content.plane, *of_sections) if picture]


def compose(study: Study, pictures: list[Picture], left_out: list[LeftOut]) -> Content:
    """Return the content of a study's report."""
    specs = {run.name: {**run.spec, "trained": run.facts} for run in study.runs if run.spec}
    environments = {run.name: run.environment for run in study.runs if run.environment}
    found, short = topics(study), tuple(answers(study))
    return Content(
        title=study.layout.root.resolve().name,
        summary=_summary(study),
        warnings=tuple(warnings(study)),
        answers=short,
        plane=next((picture for picture in pictures if picture.figure.name == PLANE), None),
        explorer=explorer(study),
        last_checkpoints=last_checkpoint_grid(study),
        last_checkpoints_note=last_checkpoint_note(study),
        sections=tuple(_sections(pictures, found, short)),
        evidence=next(topic for topic in found if topic.title == EVIDENCE),
        left_out=tuple(left_out),
        settings_differing=differing(specs),
        settings_shared=shared(specs),
        environment_differing=differing(environments),
        environment_shared=shared(environments),
        ds_configs=_ds_configs(study),
        tables=tuple(_table_facts(study, name) for name in study.tables),
        written=f"rankdrift {__version__}, {files.timestamp()}",
    )


def _summary(study: Study) -> str:
    by_arm = study.arms
    seeds = sorted({seed for runs in by_arm.values() for seed in runs})
    models = sorted({str(run.spec["model"]["name"]) for run in study.runs if "model" in run.spec})
    named = {task for table in study.of_checkpoints() for task in tuned_rows(table)["tasks"].unique()}
    tasks = sorted(named - {""})
    measured = [
        study.tables[name] for name in ("performance_metrics", "svd_analysis_results") if name in study.tables
    ]
    steps = sorted({int(step) for table in measured for step in tuned_rows(table)["step"].unique()})
    text = _counted(by_arm, "arm") + (f" ({', '.join(by_arm)})" if by_arm else "")
    if study.runs and seeds:  # folders from anywhere do not say what seed they were trained with
        text += f", {_counted(seeds, 'seed')} ({_joined(seeds)})"
    text += f", trained from {', '.join(models)}" if models else ""
    text += f" on {', '.join(tasks)}" if tasks else ""
    text += f"; measured at {_counted(steps, 'step')} ({_joined(steps)})" if steps else ""
    text += "".join(f". {loss}" for loss in _lost(study))
    return f"{text}. What was measured is computed from the study's tables, which are listed at the end."


def _lost(study: Study) -> Iterator[str]:
    """Yield what tasks lost of their rows to the maximum length, where it is more than 1 % in any run."""
    losses: dict[tuple[str, str], float] = {}
    for run in study.runs:
        for task, splits in run.facts.get("data", {}).items():
            for counts in splits.values():
                for key, part in (
                    ("prompts_cut", "prompts their beginning"),
                    ("targets_cut", "targets their end"),
                ):
                    share = counts[key] / counts["rows"]
                    losses[task, part] = max(share, losses.get((task, part), 0.0))
    for (task, part), share in losses.items():
        if share > NOTABLE:
            whose, what = part.split(" ", 1)
            yield f"Of {task}, {share:.1%} of {whose} lost {what} to data.max_length"


def _counted(things: object, noun: str) -> str:
    count = len(things)  # type: ignore[arg-type]
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _joined(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 6 else f"{numbers[0]} to {numbers[-1]}"


def _sections(pictures: list[Picture], found: list[Topic], short: tuple[Answered, ...]) -> Iterator[Section]:
    """Yield the sections that hold something, with the sentence that answers their question, if one does."""
    for title in SECTIONS:
        own = [p for p in pictures if p.figure.section == title and p.figure.name != PLANE]
        said = [topic for topic in found if section_of(topic.title) == title and topic.title != EVIDENCE]
        if not (own or said):
            continue
        names = {topic.title for topic in said}
        answered = [answer.text for answer in short if answer.topic in names]
        words = [part for topic in said for part in topic.parts if isinstance(part, str)]
        opening, rest = next(iter(own), None), tuple(own[1:])  # they are in the order of the report
        yield Section(title, opening, next(iter([*answered, *words]), ""), tuple(said), rest)


def _ds_configs(study: Study) -> dict[str, str]:
    runs_of: dict[str, list[str]] = {}
    for run in study.runs:
        if run.ds_config:
            runs_of.setdefault(json.dumps(run.ds_config, indent=2), []).append(run.name)
    everyone = [run.name for run in study.runs]
    return {
        "all runs" if names == everyone and len(names) > 1 else ", ".join(names): text
        for text, names in runs_of.items()
    }


def _table_facts(study: Study, name: str) -> TableFacts:
    table, path = study.tables[name], study.layout.table(name)
    meanings = study.metas[name].get("columns", {})
    files = [
        file.name
        for file in (path, path.with_suffix(".csv"), path.with_suffix(".meta.json"))
        if file.exists()
    ]
    described = meanings if isinstance(meanings, Mapping) else {}
    rows = tuple((column, str(described.get(column, ""))) for column in table.columns)
    return TableFacts(
        name,
        ", ".join(files),
        int(study.metas[name].get("rows", len(table))),
        Grid(("column", "meaning"), rows),
    )
