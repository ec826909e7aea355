"""The report as Markdown, with links to the figures beside it."""

from __future__ import annotations

from collections.abc import Iterator

from rankdrift.analysis.report.content import Content, Section
from rankdrift.analysis.report.grids import Grid
from rankdrift.analysis.report.illustrate import Picture
from rankdrift.analysis.report.topics import PROVENANCE, Topic


def as_markdown(content: Content) -> str:
    """Return the report as Markdown text."""
    return "\n".join(_lines(content)) + "\n"


def _lines(content: Content) -> Iterator[str]:
    yield f"# {content.title}\n"
    yield from (f"> **Warning.** {warning}\n" for warning in content.warnings)
    if content.answers:
        yield "## In short\n"
        yield from (f"- {answer.text} ({answer.topic})" for answer in content.answers)
        yield ""
    if content.plane:
        yield from _picture(content.plane)
    yield f"{content.summary}\n"
    yield from grid_lines("## Last checkpoints", content.last_checkpoints)
    yield f"{content.last_checkpoints_note}\n"
    for section in content.sections:
        yield from _section(section)
    yield f"## {PROVENANCE}\n"
    yield from _topic(content.evidence)
    if content.left_out:
        yield "### Figures left out\n"
        yield from (f"- {left.figure.title}: {left.reason}." for left in content.left_out)
        yield ""
    yield from grid_lines("## Settings that differ", content.settings_differing)
    yield from grid_lines("## Settings alike in all runs", content.settings_shared)
    yield from grid_lines("## Environment alike in all runs", content.environment_shared)
    yield from grid_lines("## Environment that differs", content.environment_differing)
    for runs, text in content.ds_configs.items():
        yield f"## DeepSpeed configuration: {runs}\n\n```json\n{text}\n```\n"
    yield "## Tables\n"
    yield from (f"- `{table.name}`: {table.rows:,} rows ({table.files})" for table in content.tables)
    yield f"\n{content.written}"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}\n"
    if section.opening:
        yield from _picture(section.opening)
    if section.sentence:
        yield f"{section.sentence}\n"
    for topic in section.topics:
        yield f"### {topic.title}\n"
        yield from _topic(topic)
    for picture in section.pictures:
        yield from _picture(picture)


def _picture(picture: Picture) -> Iterator[str]:
    figure = picture.figure
    link = f"{picture.png.parent.name}/{picture.png.name}"
    yield f"### {figure.title}\n\n![{figure.title}]({link})\n\n{figure.caption}\n"


def _topic(topic: Topic) -> Iterator[str]:
    """Yield a topic's sentences as list items, its tables between empty lines."""
    listed = False
    for part in topic.parts:
        if isinstance(part, str):
            yield f"- {part}"
        else:
            if listed:
                yield ""
            yield from grid_lines(part.caption, part)
        listed = isinstance(part, str)
    if listed:
        yield ""


def grid_lines(title: str, grid: Grid) -> Iterator[str]:
    """Yield a table below its title; nothing where it has no rows."""
    if not grid.rows:
        return
    yield f"{title}\n"
    yield _row(grid.headers)
    yield _row(["---"] * len(grid.headers))
    yield from map(_row, grid.rows)
    yield ""


def _row(cells: tuple[str, ...] | list[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
