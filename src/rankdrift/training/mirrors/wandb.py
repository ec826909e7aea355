"""Weights & Biases; with ``WANDB_MODE=offline`` into the run's folder, for ``wandb sync``."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.spec import Spec
from rankdrift.training.mirrors import Mirror

NOT_SENT = ("offline", "disabled", "dryrun")


class WandB(Mirror):
    """A run of the project named as the study; a run that resumes goes on in it."""

    def __init__(self, run: RunLayout, spec: Spec) -> None:
        super().__init__(run, spec)
        wandb: Any = importlib.import_module("wandb")
        self.values: dict[str, float] = {}
        self.step = 0
        self.under: Any = wandb.init(
            project=spec.study,
            name=spec.run_name,
            id=_identity(run),
            resume="allow",
            dir=str(run.root),
            config=spec.as_dict(),
            settings=wandb.Settings(silent=True, console="off"),
        )

    @staticmethod
    def require() -> None:
        """Raise UserError without the package, or without a login where it is to be sent."""
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                "training.mirrors=wandb: the package is missing; pip install 'rankdrift[wandb]', or leave "
                "it out"
            )
        if os.environ.get("WANDB_MODE") in NOT_SENT:
            return
        wandb: Any = importlib.import_module("wandb")
        if not wandb.login(prompt=False):
            raise UserError(
                "training.mirrors=wandb: nobody is logged in; run 'wandb login', set WANDB_API_KEY, or keep "
                "it here with WANDB_MODE=offline"
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Collect a step's values: a step that is sent cannot be added to."""
        if step != self.step:
            self._send()
        self.step = step
        self.values |= values

    def _send(self) -> None:
        if self.values:
            self.under.log(self.values, step=self.step)
        self.values = {}

    def close(self) -> None:
        """Send the last step."""
        self._send()
        self.under.finish()


def _identity(run: RunLayout) -> str:
    """Return the same for a run that resumes, and another for one that takes its folder."""
    identity = files.read_json(run.identity) if run.identity.exists() else {}
    return files.digest_json({"run": str(run.root.resolve()), **identity})[:16]


MIRROR = WandB
