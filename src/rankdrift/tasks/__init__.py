"""Tasks: how a row of a data set becomes a prompt, an answer and a score. One file a task.

To add one, write ``tasks/<name>.py`` that defines ``TASK``, a :class:`Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Example:
    """One row as the model meets it."""

    prompt: str
    """Text before the answer; carries no loss."""
    target: str
    """The answer, which carries the loss; begins with its own space where one is needed."""
    label: int | None = None
    """Class index into the task's choices; None for generation."""
    references: tuple[str, ...] = ()
    """All answers that count as right, for generation metrics."""
    group: str = ""
    """Rows with the same group share an input (several references); scored once."""
    document: str = ""
    """Name of the text that rows share (questions about one paragraph): their errors are not independent."""


@dataclass(frozen=True)
class Task:
    """A task: its data, its prompt and its metrics."""

    name: str
    version: int
    """Raised whenever prompt, choices or metrics change: scores of two versions do not compare."""
    kind: Literal["classification", "generation"]
    metrics: tuple[str, ...]
    """Names of files in ``metrics/``; the first is the one that is plotted."""
    columns: tuple[str, ...]
    """Columns a row must have."""
    example: Callable[[Mapping[str, Any]], Example]
    """Turns a row into an Example; raises UserError for a label out of range."""
    choices: tuple[str, ...] = ()
    """The answers of a classification task in label order, as the LM head must write them."""
    hub: tuple[str, str | None] | None = None
    """Hub id and configuration, for instance ("nyu-mll/glue", "sst2")."""
    folder: str | None = None
    """Folder of its Parquet slices below ``data.root``, for instance "glue_sst2"."""
    generate: Callable[[str], list[dict[str, Any]]] | None = None
    """Built-in tasks: returns all rows of a split ("train" or "validation"), the same every time."""
