"""Examples as rows of token ids: what carries no loss, and what does.

How a row is encoded is its kind's (``tasks/kinds``). Rows whose target is lost would train nothing yet look
like success: they are counted and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from rankdrift.errors import UserError
from rankdrift.tasks import Example, Task
from rankdrift.tasks.kinds import Codec, Encoded, Head

__all__ = ["Head", "Row", "RowCounts", "encode", "losses", "require_rows"]

NOTABLE = 0.01
"""Share of rows that lose tokens above which it is warned of."""


@dataclass(frozen=True, eq=False)
class Row:
    """One example in tokens."""

    input_ids: np.ndarray
    """Shape (length,), int32."""
    carries_loss: np.ndarray
    """Shape (length,), bool: the tokens the LM head learns to predict; never the first, as nothing does."""
    label: int | None
    """Class index; None for generation."""
    task: str
    index: int
    """Position of its example among the task's examples."""

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that carries loss; all of them where none does."""
        return int(self.carries_loss.argmax()) if self.carries_loss.any() else len(self.input_ids)

    @property
    def target_tokens(self) -> int:
        """Tokens that carry loss."""
        return int(self.carries_loss.sum())


@dataclass(frozen=True)
class RowCounts:
    """What became of a task's examples."""

    rows: int
    """Rows that are used."""
    dropped: int
    """Left out because no token was left to learn from."""
    prompts_cut: int
    """Rows whose prompt lost tokens to the maximum length."""
    targets_cut: int
    """Rows whose target lost its end to it."""


def encode(examples: Sequence[Example], task: Task, codec: Codec) -> tuple[list[Encoded], RowCounts]:
    """Return the rows of examples that have something to learn from, none longer than ``codec.max_length``.

    Raises
    ------
    UserError
        If the model's head cannot do the task, or if the tokenizer lacks an EOS.

    """
    task.kind.require_head(task, codec.head)
    encoded = task.kind.encode(task, examples, codec)
    kept = [row for row in encoded if teaches(row, codec.head)]
    prompts_cut, targets_cut = (sum(map(attrgetter(name), kept)) for name in ("prompt_cut", "target_cut"))
    return kept, RowCounts(len(kept), len(encoded) - len(kept), prompts_cut, targets_cut)


def require_rows(task: Task, counts: RowCounts, max_length: int) -> None:
    """Raise UserError if no row of a task is left."""
    if not counts.rows:
        raise UserError(
            f"task '{task.name}': none of its {counts.dropped} rows has a token to learn from at "
            f"data.max_length={max_length}; raise data.max_length or correct the targets"
        )


def teaches(row: Encoded, head: Head) -> bool:
    """Return whether a row has anything to learn from."""
    return bool(row.ids) if head == "classifier" else any(stop > start for start, stop in row.carries)


def losses(counts: dict[str, RowCounts], split: str, max_length: int) -> list[str]:
    """Return what is to be told of a split: rows dropped, and cut ones where they are more than 1 %."""
    return [
        f"task '{task}', {split}: {loss} at data.max_length={max_length}"
        for task, of in counts.items()
        for loss in _losses(of)
    ]


def _losses(of: RowCounts) -> Iterator[str]:
    if of.dropped:
        yield f"{of.dropped:,} of {of.rows + of.dropped:,} rows dropped, no token to learn from"
    for cut, loss in (
        (of.prompts_cut, "prompts lose tokens"),
        (of.targets_cut, "targets lose their end"),
    ):
        if cut > NOTABLE * of.rows:
            yield f"{cut:,} of {of.rows:,} {loss} ({cut / of.rows:.1%})"
