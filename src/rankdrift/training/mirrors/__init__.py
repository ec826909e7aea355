"""Services that are shown what a run logs; ``metrics.jsonl`` stays what counts. One file each.

To add one, write ``training/mirrors/<name>.py`` that defines ``MIRROR``, a class derived from
:class:`Mirror`, name it in ``training.mirrors`` (``spec/sections.py``), and its package in an extra.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from rankdrift.layout import RunLayout
from rankdrift.spec import Spec


class Mirror:
    """A service that is shown values; rank 0 has it.

    Parameters
    ----------
    run
        The run's folder, in which it keeps what it has not sent.
    spec
        Its settings, which are shown as well.

    """

    def __init__(self, run: RunLayout, spec: Spec) -> None:
        self.run, self.spec = run, spec

    @staticmethod
    def require() -> None:
        """Raise UserError where the package or a login is missing: before anything is loaded."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values by their TensorBoard names; steps do not go back."""

    def close(self) -> None:
        """Send what is left."""


def kinds(names: Sequence[str]) -> list[type[Mirror]]:
    """Return the mirrors of these names."""
    found: list[Any] = [importlib.import_module(f"rankdrift.training.mirrors.{name}") for name in names]
    return [module.MIRROR for module in found]
