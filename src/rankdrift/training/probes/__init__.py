"""Measurements taken during training, between the last backward pass and the optimizer step.

To add one, write ``training/probes/<name>.py`` that defines ``PROBE``, a :class:`Probe`. Every rank
calls ``measure`` at the same steps, so it may sum over ranks; every rank gets the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankdrift.training.engine import Engine


@dataclass(frozen=True)
class Probe:
    """An online measurement: rows of a table, which is written to ``probes/<name>.parquet``."""

    name: str
    measure: Callable[[Engine], list[dict[str, Any]]]
