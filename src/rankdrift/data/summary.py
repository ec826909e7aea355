"""What prepared rows are like: how many, how long, what was cut, how often each label comes; in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from rankdrift import files, registry
from rankdrift.data.dataset import class_ranges
from rankdrift.data.token_table import NO_LABEL, TaskTables, TokenTable
from rankdrift.spec import Spec
from rankdrift.tasks import Split, Task

QUANTILES = {"shortest": 0.0, "median": 0.5, "p95": 0.95, "longest": 1.0}
"""Name -> which quantile of the rows' lengths."""

BINS = 40
"""Bins of a histogram of lengths, at most."""


@dataclass(frozen=True)
class Summary:
    """One split of one task."""

    task: str
    split: str
    rows: int
    dropped: int
    """Left out because no token was left to learn from."""
    tokens: int
    carry_loss: int
    """Tokens that carry loss."""
    lengths: dict[str, float]
    """Quantiles of the tokens a row, by the names of QUANTILES."""
    prompts_cut: int
    """Rows whose prompt lost tokens to the maximum length."""
    targets_cut: int
    """Rows whose target lost its end to it."""
    labels: dict[str, float]
    """Share of the rows that each label has; empty where rows have none."""


def summarise(spec: Spec, tables: dict[Split, TaskTables]) -> list[Summary]:
    """Return what the prepared rows of each split are like, task by task."""
    classes = class_ranges(spec)
    return [
        _summary(registry.load("task", name), classes.get(table.task, range(0)).start, split, table)
        for split, of_split in tables.items()
        for name, table in zip(spec.data.tasks, of_split.tables, strict=True)
    ]


def _summary(task: Task, first_class: int, split: str, table: TokenTable) -> Summary:
    quantiles = np.quantile(table.lengths, list(QUANTILES.values()))
    return Summary(
        task=table.task,
        split=split,
        rows=table.counts.rows,
        dropped=table.counts.dropped,
        tokens=len(table.input_ids),
        carry_loss=int(table.targets.sum()),
        lengths=dict(zip(QUANTILES, map(float, quantiles), strict=True)),
        prompts_cut=table.counts.prompts_cut,
        targets_cut=table.counts.targets_cut,
        labels=_label_shares(task, table.labels - first_class * (table.labels != NO_LABEL)),
    )


def _label_shares(task: Task, labels: np.ndarray) -> dict[str, float]:
    """Return the share of each label; of a row's own choices by their numbers."""
    found = labels[labels != NO_LABEL]
    if not len(found):
        return {}
    counts = np.bincount(found, minlength=len(task.choices))
    names = [choice.strip() for choice in task.choices] or [f"choice {n}" for n in range(len(counts))]
    return {name: int(count) / len(found) for name, count in zip(names, counts, strict=True)}


def as_table(summaries: Sequence[Summary]) -> Table:
    """Return the summaries as a table for a terminal."""
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("task", "split"):
        table.add_column(name)
    for name in ("rows", "dropped", "tokens", "learnt", *QUANTILES, "prompts cut", "targets cut"):
        table.add_column(name, justify="right")
    table.add_column("labels")
    for of in summaries:
        numbers = (of.rows, of.dropped, of.tokens, of.carry_loss, *of.lengths.values())
        cut = (of.prompts_cut, of.targets_cut)
        labels = ", ".join(f"{name} {share:.1%}" for name, share in of.labels.items())
        table.add_row(of.task, of.split, *(f"{number:,.0f}" for number in (*numbers, *cut)), labels)
    return table


def draw(path: Path, summaries: Sequence[Summary], tables: dict[Split, TaskTables]) -> None:
    """Write a picture: of each task the lengths of its rows, and the shares of its labels, split by split."""
    names = next(iter(tables.values())).tasks
    figure = Figure(figsize=(10, 0.8 + 2.4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False)
    for (left, right), name in zip(axes, names, strict=True):
        lengths = {split: of.tables[of.tasks.index(name)].lengths for split, of in tables.items()}
        _draw_lengths(left, name, lengths)
        _draw_labels(right, [of for of in summaries if of.task == name])
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", dpi=120)


def _draw_lengths(axes: Axes, name: str, lengths: dict[Split, np.ndarray]) -> None:
    """Draw histograms with bins of whole numbers of tokens, the same for each split."""
    longest = max(int(of_split.max()) for of_split in lengths.values())
    width = -(-longest // BINS)
    bins = np.arange(0, longest + width + 1, width) - 0.5
    for split, of_split in lengths.items():
        weights = np.full(len(of_split), 1 / len(of_split))
        axes.hist(of_split, bins=list(bins), weights=weights, histtype="step", label=split)
    axes.set(title=name, xlabel="tokens a row", ylabel="share of rows")
    axes.legend()


def _draw_labels(axes: Axes, summaries: Sequence[Summary]) -> None:
    labels = list(dict.fromkeys(label for of in summaries for label in of.labels))
    if not labels:
        axes.set_axis_off()
        return
    width = 0.8 / len(summaries)
    for number, of in enumerate(summaries):
        at = np.arange(len(labels)) + (number + 0.5) * width - 0.4
        axes.bar(at, [of.labels.get(label, 0.0) for label in labels], width, label=of.split)
    axes.set_xticks(np.arange(len(labels)), labels)
    axes.set(ylabel="share of rows")
