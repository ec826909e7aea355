"""Forecasts as tables and as JSON: one run in full, or several, a row each, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from rankdrift.planning.forecast import Forecast, Trial

GIB, MIB = 2**30, 2**20
UNKNOWN = "known with --measure"
Trials = Mapping[str, Trial]
"""Name of a run -> what a few of its steps took."""


def gibibytes(size: float) -> str:
    """Return bytes as GiB, or few of them as MiB.

    >>> gibibytes(1.5 * 2**30), gibibytes(10 * 2**20)
    ('1.50 GiB', '10.0 MiB')
    """
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / MIB:.1f} MiB"


def tables(forecasts: Sequence[Forecast], trials: Trials) -> Iterator[Table]:
    """Yield the tables of what runs are expected to take."""
    if len(forecasts) == 1:
        yield _quantities(forecasts[0], trials.get(forecasts[0].run))
        yield _stages(forecasts[0])
    else:
        yield _rows(forecasts, trials)


def notes(forecasts: Sequence[Forecast]) -> list[str]:
    """Return what the figures leave out, each once."""
    return list(dict.fromkeys(note for each in forecasts for note in each.notes))


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
    totals = {"tokens": _tokens(forecasts), "disk": _disk(forecasts), "peak": _peak(forecasts), "hours": hours}
    return {"runs": runs, "totals": totals}


def _quantities(one: Forecast, found: Trial | None) -> Table:
    table = Table("quantity", "value", title=f"{one.run}: {one.method}, {one.precision}, ZeRO-{one.stage}")
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
    yield "a checkpoint", f"{gibibytes(disk.checkpoint)}; {disk.saves} written, at most {disk.kept} there at once"
    yield "an export", f"{gibibytes(disk.export)}; {disk.exports} in a study"
    yield "disk in all", gibibytes(disk.total)


def _of_trial(one: Forecast, found: Trial | None) -> Iterator[tuple[str, str]]:
    if found is None:
        yield "hours", UNKNOWN
        return
    yield "hours", f"{one.hours(found):.2f}, of steps alone ({found.seconds:.3g} s each, measured)"
    predicted = one.peak(one.stage)
    yield (
        "peak of a rank",
        f"{gibibytes(found.memory)} measured in {_counted(one.batches.ranks, 'rank')}, {gibibytes(predicted)} "
        f"predicted ({predicted / found.memory - 1:+.1%})",
    )


def _stages(one: Forecast) -> Table:
    """Return the memory of a rank by stage and part."""
    heads = [f"ZeRO-{stage}" + (" (this run)" if stage == one.stage else "") for stage in one.stages]
    table = Table("memory of a rank", *heads)
    names = dict.fromkeys(part.name for memory in one.stages.values() for part in memory.parts)
    for name in names:
        table.add_row(name, *(_part(one, stage, name) for stage in one.stages))
    if not one.is_gpu:
        table.add_row("process without a model", *(gibibytes(one.baseline) for _ in one.stages))
    table.add_row("predicted peak", *(gibibytes(one.peak(stage)) for stage in one.stages), style="bold")
    if any(memory.host for memory in one.stages.values()):
        table.add_row("of the host", *(gibibytes(memory.host) for memory in one.stages.values()))
    return table


def _part(one: Forecast, stage: int, name: str) -> str:
    part = next((part for part in one.stages[stage].parts if part.name == name), None)
    if part is None:
        return ""
    return gibibytes(part.size) + (" (host)" if part.on_host and one.is_gpu else "")


def _rows(forecasts: Sequence[Forecast], trials: Trials) -> Table:
    heads = ("run", "stage", "train", "steps", "tokens", "peak of a rank", "checkpoint", "disk", "hours")
    table = Table(*heads, show_footer=True)
    for each in forecasts:
        found = trials.get(each.run)
        table.add_row(
            each.run,
            str(each.stage),
            f"{each.size.trained:,}",
            f"{each.batches.steps:,}",
            f"{each.batches.tokens:,}",
            gibibytes(each.peak(each.stage)),
            gibibytes(each.disk.checkpoint),
            gibibytes(each.disk.total),
            f"{each.hours(found):.2f}" if found else "",
        )
    hours = _hours(forecasts, trials)
    feet = {0: f"{len(forecasts)} runs", 4: f"{_tokens(forecasts):,}", 5: gibibytes(_peak(forecasts))}
    feet |= {7: gibibytes(_disk(forecasts)), 8: UNKNOWN if hours is None else f"{hours:.2f}"}
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
