"""trackio, which keeps its tables on this machine; ``trackio show`` opens them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.spec import Spec
from rankdrift.training.mirrors import Mirror


class Trackio(Mirror):
    """A run of the project named as the study."""

    def __init__(self, run: RunLayout, spec: Spec) -> None:
        super().__init__(run, spec)
        trackio: Any = importlib.import_module("trackio")
        self.under: Any = trackio.init(
            project=spec.study, name=spec.run_name, config=spec.as_dict(), resume="allow", embed=False
        )

    @staticmethod
    def require() -> None:
        """Raise UserError without the package."""
        if importlib.util.find_spec("trackio") is None:
            raise UserError(
                "training.mirrors=trackio: the package is missing; pip install 'rankdrift[trackio]', or "
                "leave it out"
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values."""
        self.under.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        self.under.finish()


MIRROR = Trackio
