"""Tasks: how a row of a data set becomes a prompt, an answer and a score. One file a task.

To add one, write ``tasks/<name>.py`` that defines ``TASK``, a :class:`Task`; or, without writing Python, a
YAML file (``tasks/_yaml.py``). What tasks of one kind have in common is in ``tasks/kinds/``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rankdrift.tasks.kinds import Kind

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""What is trained on, what selects, what is reported."""


@dataclass(frozen=True)
class Example:
    """One row as the model meets it."""

    prompt: str
    """Text before the answer; carries no loss."""
    target: str
    """The answer, which carries the loss; begins with its own space where one is needed."""
    label: int | None = None
    """Which of the task's choices, or of the row's own, is right; None where a text is."""
    references: tuple[str, ...] = ()
    """All answers that count as right, for metrics of texts; of a scored text, its original."""
    group: str = ""
    """Rows with the same group share an input (several references); scored once."""
    document: str = ""
    """Name of the text that rows share (questions about one paragraph): their errors are not independent."""
    choices: tuple[str, ...] = ()
    """The row's own answers, where each row has its own."""
    contexts: tuple[str, ...] = ()
    """Texts of which the target goes best behind one, where the choice stands before it."""
    messages: tuple[Mapping[str, str], ...] = ()
    """A conversation: ``role`` and ``content`` of each turn, the assistant's the last."""

    def right(self, reads: str) -> int | tuple[str, ...] | None:
        """Return what a metric that reads so (``metrics.Reads``) compares a prediction with."""
        return self.label if "choice" in reads else self.references


@dataclass(frozen=True)
class Source:
    """Where rows are: on the hub, and in a folder of files in the hub's layout."""

    hub: str = ""
    """Hub id, for instance "nyu-mll/glue"."""
    configuration: str | None = None
    """Its configuration, for instance "sst2"."""
    folder: str = ""
    """Its folder below ``data.root``, for instance "glue_sst2"."""
    splits: Mapping[Split, str] | None = None
    """Our splits -> theirs, where they are not train, validation and test; one left out does not exist."""
    carved: float = 0.0
    """Share of the training rows that select instead, where no other labelled rows can: their validation
    split then reports. Which rows is a matter of their content alone."""
    files: Mapping[Split, str] | None = None
    """Split -> path of a file of one's own; instead of all the above."""

    def named(self, split: Split) -> str | None:
        """Return their name of one of our splits, or None where there is none."""
        if self.splits is None:
            return {"train": "train", "validation": "validation", "test": "test"}[split]
        return self.splits.get(split)


@dataclass(frozen=True)
class Task:
    """A task: its data, its prompt and its metrics."""

    name: str
    version: int
    """Raised whenever prompt, choices or metrics change: scores of two versions do not compare."""
    kind: Kind
    metrics: tuple[str, ...]
    """Names of files in ``metrics/``; the first is the one that is plotted."""
    columns: tuple[str, ...]
    """Columns a row must have."""
    example: Callable[[Mapping[str, Any]], Example]
    """Turns a row into an Example; raises UserError for a label out of range."""
    choices: tuple[str, ...] = ()
    """The answers of a classification task in label order, as the LM head must write them."""
    cue: str = ""
    """End of every prompt that asks for the answer; where it is given, a prompt that is too long loses what
    is before it, and not its beginning."""
    source: Source | None = None
    generate: Callable[[Split], list[dict[str, Any]]] | None = None
    """Built-in tasks: returns all rows of a split, the same every time."""
    gather: Callable[[list[Mapping[str, Any]]], list[dict[str, Any]]] | None = None
    """Makes rows of the source's rows, where one is several of theirs (lines of an article)."""
    content: str = ""
    """Digest of a task that comes from a file; empty for those of the package."""


GROUPS: dict[str, tuple[str, ...]] = {
    "similar": ("sst2", "mnli", "qqp"),
    "dissimilar": ("squad_v2", "code_to_text", "cnn_dailymail"),
    "glue": ("sst2", "mnli", "qqp", "mrpc", "rte"),
    "retention": ("hellaswag", "arc_easy", "arc_challenge", "winogrande", "piqa", "boolq", "wikitext"),
}
"""Names that stand for several tasks."""
