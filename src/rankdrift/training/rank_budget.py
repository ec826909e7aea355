"""AdaLoRA's rank budget (arXiv 2303.10512, sections 3.2 and 3.3): which triplets keep their lambda.

The importance of an element is the product of running means of |w dL/dw| and of its deviation; that of a
triplet the sum of its lambda's, and of the means over its row of Q and its column of P.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankdrift.methods.adalora import Settings

VALUES, ROWS, COLUMNS = ".lora_E.", ".lora_A.", ".lora_B."


@dataclass
class RankBudget:
    """The triplets of a run so far; the same on every rank."""

    settings: Settings
    steps: int
    """Of the run."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of every parameter that trains."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What a checkpoint keeps: ``mean <name>``, ``deviation <name>``, ``kept <name of a lambda>``."""

    @property
    def names(self) -> list[str]:
        """The parameters of triplets."""
        return [name for name in self.shapes if any(kind in name for kind in (VALUES, ROWS, COLUMNS))]

    @property
    def full_until(self) -> int:
        """The last step at which every triplet is kept."""
        return int(self.settings.full_until * self.steps)

    @property
    def fixed_from(self) -> int:
        """The step at which triplets are chosen for the last time."""
        return max(1, int(self.settings.fixed_from * self.steps))

    def triplets(self, step: int) -> int:
        """Return how many triplets there are to be at a step, over all modules."""
        modules = sum(VALUES in name for name in self.shapes)
        first, last = self.settings.begun_rank * modules, self.settings.rank * modules
        if step <= self.full_until:
            return first
        if step >= self.fixed_from:
            return last
        left = 1 - (step - self.full_until) / (self.fixed_from - self.full_until)
        return int((first - last) * left**3 + last)

    def observes(self, step: int) -> bool:
        """Return whether importances count at a step."""
        return step <= self.fixed_from

    def observe(self, sensitivities: Mapping[str, Tensor]) -> None:
        """Take up |w dL/dw| of every element, by names, before a step's update."""
        one, other = self.settings.importance_decay, self.settings.uncertainty_decay
        for name in self.names:
            seen = sensitivities[name]
            mean = self.state.get(f"mean {name}", torch.zeros_like(seen))
            deviation = self.state.get(f"deviation {name}", torch.zeros_like(seen))
            mean = one * mean + (1 - one) * seen
            self.state[f"mean {name}"] = mean
            self.state[f"deviation {name}"] = other * deviation + (1 - other) * (seen - mean).abs()

    def kept(self, step: int) -> dict[str, Tensor] | None:
        """Return which lambdas a step's update leaves, by names, bool (rank, 1); None where it leaves all."""
        due = step > self.full_until and step % self.settings.every == 0 and step < self.fixed_from
        if due or step == self.fixed_from:
            return self._chosen(step)
        if step < self.fixed_from:
            return None
        return {name: self.state[f"kept {name}"].bool() for name in self.names if VALUES in name}

    def _chosen(self, step: int) -> dict[str, Tensor]:
        scores = {name: self._scores(name) for name in self.names if VALUES in name}
        every = torch.cat([score.flatten() for score in scores.values()])
        gone = len(every) - self.triplets(step)
        threshold = every.kthvalue(gone).values if gone else every.new_tensor(-torch.inf)
        chosen = {name: score > threshold for name, score in scores.items()}
        self.state |= {f"kept {name}": each.to(torch.float32) for name, each in chosen.items()}
        return chosen

    def _scores(self, name: str) -> Tensor:
        """Return the importance of a module's triplets, shape (rank, 1)."""
        rows = self._importance(name.replace(VALUES, ROWS)).mean(1, keepdim=True)
        columns = self._importance(name.replace(VALUES, COLUMNS)).mean(0).unsqueeze(1)
        return self._importance(name) + rows + columns

    def _importance(self, name: str) -> Tensor:
        return self.state[f"mean {name}"] * self.state[f"deviation {name}"]
