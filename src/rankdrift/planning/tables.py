"""Forecasts as tables and as JSON: one run in full, or several, a row each, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from rich.box import SIMPLE
from rich.table import Table

from rankdrift.planning.forecast import Forecast, Trial
from rankdrift.planning.memory import MOMENTS

GIB, MIB = 2**30, 2**20
UNKNOWN = "--measure tells them"
Trials = Mapping[str, Trial]
"""Name of a run -> what a few of its steps took."""


def gibibytes(size: float) -> str:
    """Return bytes as GiB, or few of them as MiB.

    >>> gibibytes(1.5 * 2**30), gibibytes(10 * 2**20)
    ('1.50 GiB', '10.0 MiB')
    """
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / MIB:.1f} MiB"


def tables(forecasts: Sequence[Forecast], trials: Trials) -> Iterator[Table]:
    """Yield the tables of what runs are expected to take; of a single one with its parts."""
    if len(forecasts) == 1:
        yield _quantities(forecasts[0], trials.get(forecasts[0].run))
        yield _stages(forecasts[0])
    else:
        yield _rows(forecasts, trials)


def settings(one: Forecast) -> str:
    """Return the resolved experiment as YAML, a setting a line; what is not set is left out."""
    lines = []
    for key, value in one.settings.items():
        values = value if isinstance(value, dict) else {"": value}
        for name, given in values.items():
            if given not in (None, [], {}):
                text = (
                    yaml.safe_dump(given, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
                )
                lines.append(f"{key}.{name}: {text}" if name else f"{key}: {text}")
    return "\n".join(lines)


def notes(forecasts: Sequence[Forecast]) -> list[str]:
    """Return what the figures leave out, each once."""
    return list(dict.fromkeys(note for each in forecasts for note in each.notes))


def untimed(forecasts: Sequence[Forecast], trials: Trials) -> bool:
    """Return whether the hours of some run are not known."""
    return any(each.run not in trials for each in forecasts)


def as_json(forecasts: Sequence[Forecast], trials: Trials) -> dict[str, Any]:
    """Return plain JSON types: ``runs``, and their ``totals``; what was not measured is null."""
    runs = []
    for each in forecasts:
        found = trials.get(each.run)
        tried = {
            "hours": each.hours(found) if found else None,
            "measured": found._asdict() if found else None,
        }
        runs.append(each.as_dict() | tried)
    hours = _hours(forecasts, trials)
    totals = {
        "tokens": _tokens(forecasts),
        "disk": _disk(forecasts),
        "peak": _peak(forecasts),
        "hours": hours,
    }
    return {"runs": runs, "totals": totals}


def _quantities(one: Forecast, found: Trial | None) -> Table:
    table = Table(
        "quantity", "value", box=SIMPLE, title=f"{one.run}: {one.method}, {one.precision}, ZeRO-{one.stage}"
    )
    for name, value in (*_of_batches(one), *_of_parameters(one), *_of_disk(one), *_of_trial(one, found)):
        table.add_row(name, value)
    return table


def _of_batches(one: Forecast) -> Iterator[tuple[str, str]]:
    batches = one.batches
    most = max(tokens for tokens, _ in batches.at_once)
    yield (
        "a step",
        f"{batches.global_batch:,} rows over {_counted(batches.ranks, 'rank')}, in at most "
        f"{_counted(batches.accumulation, 'micro-batch', 'micro-batches')} of at most "
        f"{_counted(batches.micro_batch, 'row')} a rank",
    )
    yield "tokens", f"{batches.tokens_a_step:,.0f} a step; at most {most:,} at once on a rank"
    yield "steps", f"{batches.steps:,} = {batches.epochs:.3g} epochs of {batches.rows:,} rows"
    yield "tokens in all", f"{batches.tokens:,}"


def _of_parameters(one: Forecast) -> Iterator[tuple[str, str]]:
    size = one.size
    groups = ", ".join(f"{group} {count:,}" for group, count in size.groups.items())
    yield "parameters", f"{size.total:,}"
    yield "that train", f"{size.trained:,} ({size.trained / size.total:.2%}): {groups}"


def _of_disk(one: Forecast) -> Iterator[tuple[str, str]]:
    disk = one.disk
    yield (
        "a checkpoint",
        f"{gibibytes(disk.checkpoint)}; {disk.saves} written, at most {disk.kept} there at once",
    )
    yield "an export", f"{gibibytes(disk.export)}; {disk.exports} in a study"
    yield "disk in all", gibibytes(disk.total)


def _of_trial(one: Forecast, found: Trial | None) -> Iterator[tuple[str, str]]:
    if found is None:
        yield "hours", UNKNOWN
        return
    yield "hours", f"{one.hours(found):.3g}, of steps alone ({found.seconds:.3g} s each, measured)"
    if found.in_use:
        yield "in use at once", _beside(found.in_use, one.least(one.stage))
    yield "peak of a rank" if one.is_gpu else "resident peak", _beside(found.memory, one.peak(one.stage))


def _beside(measured: int, predicted: int) -> str:
    return (
        f"{gibibytes(measured)} measured in a few steps, {gibibytes(predicted)} "
        f"predicted ({predicted / measured - 1:+.1%})"
    )


def _stages(one: Forecast) -> Table:
    """Return the memory of a rank by stage and part."""
    heads = [f"ZeRO-{stage}" + (" (this run)" if stage == one.stage else "") for stage in one.stages]
    table = Table("memory of a rank", *heads, box=SIMPLE)
    parts = [part for memory in one.stages.values() for part in memory.parts]
    by_moment = (part.name for moment in MOMENTS for part in parts if part.moment == moment)
    for name in dict.fromkeys(by_moment):
        table.add_row(name, *(_part(one, stage, name) for stage in one.stages))
    if not one.is_gpu:
        table.add_row("process without a model", *(gibibytes(one.baseline) for _ in one.stages))
        table.add_row("in use at once", *(gibibytes(one.least(stage)) for stage in one.stages), style="bold")
    peak = "predicted peak" if one.is_gpu else "resident peak"
    table.add_row(peak, *(gibibytes(one.peak(stage)) for stage in one.stages), style="bold")
    if any(memory.host for memory in one.stages.values()):
        table.add_row("of the host", *(gibibytes(memory.host) for memory in one.stages.values()))
    return table


def _part(one: Forecast, stage: int, name: str) -> str:
    part = next((part for part in one.stages[stage].parts if part.name == name), None)
    if part is None:
        return ""
    return gibibytes(part.size) + (" (host)" if part.on_host and one.is_gpu else "")


def _rows(forecasts: Sequence[Forecast], trials: Trials) -> Table:
    table = Table(title="Runs; memory and disk in GiB", show_footer=True, box=SIMPLE)
    table.add_column("run", overflow="fold")
    for head in ("stage", "train", "steps", "tokens", "rank's peak", "checkpoint", "disk", "hours"):
        table.add_column(head, justify="right")
    for each in forecasts:
        found = trials.get(each.run)
        table.add_row(
            each.run,
            str(each.stage),
            f"{each.size.trained:,}",
            f"{each.batches.steps:,}",
            f"{each.batches.tokens:,}",
            f"{each.peak(each.stage) / GIB:.2f}",
            f"{each.disk.checkpoint / GIB:.2f}",
            f"{each.disk.total / GIB:.2f}",
            f"{each.hours(found):.3g}" if found else "",
        )
    hours = _hours(forecasts, trials)
    feet = {0: f"{len(forecasts)} runs", 4: f"{_tokens(forecasts):,}", 5: f"{_peak(forecasts) / GIB:.2f}"}
    feet |= {7: f"{_disk(forecasts) / GIB:.2f}", 8: "" if hours is None else f"{hours:.3g}"}
    for place, text in feet.items():
        table.columns[place].footer = text
    return table


def _tokens(forecasts: Sequence[Forecast]) -> int:
    return sum(each.batches.tokens for each in forecasts)


def _disk(forecasts: Sequence[Forecast]) -> int:
    return sum(each.disk.total for each in forecasts)


def _peak(forecasts: Sequence[Forecast]) -> int:
    """Return the largest: runs come one after the other."""
    return max(each.peak(each.stage) for each in forecasts)


def _hours(forecasts: Sequence[Forecast], trials: Trials) -> float | None:
    """Return the hours of all runs; None unless each has been tried."""
    known = [each.hours(trials[each.run]) for each in forecasts if each.run in trials]
    return sum(known) if len(known) == len(forecasts) else None


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"
