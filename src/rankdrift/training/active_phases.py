"""Which parameters train at which step of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rankdrift.errors import UserError
from rankdrift.models.families import OUTSIDE, cell_of
from rankdrift.spec.phases import Phase, PhaseSpec, phases

PROJECTIONS = ("attention", "mlp")


class ActivePhases:
    """The phases of a run and what trains in each; without a schedule one phase, in which all does.

    Parameters
    ----------
    schedule
        The method's; empty for none.
    steps
        Of the run.
    names
        Every parameter that the method trains, by name.
    always
        Names of modules that train in every phase: a new head, which would be noise.
    rests
        Names of parameters that never do.

    Raises
    ------
    UserError
        If nothing would train in a phase, or layers are not there.

    """

    def __init__(
        self,
        schedule: Sequence[PhaseSpec],
        steps: int,
        names: Iterable[str],
        always: Iterable[str] = (),
        rests: Iterable[str] = (),
    ) -> None:
        self.phases = phases(tuple(schedule) or (PhaseSpec(train="all"),), steps)
        self.scheduled = bool(schedule)
        self.always, self.rests = tuple(always), frozenset(rests)
        known = list(names)
        self.layers = 1 + max((cell_of(name).layer for name in known), default=0)
        for phase in self.phases:
            self._require_sense(phase, known)

    def at(self, step: int) -> Phase:
        """Return the phase that a step (from 1) is in."""
        return next(phase for phase in self.phases if step <= phase.last)

    def of(self, name: str) -> tuple[bool, ...]:
        """Return in which phases a parameter trains."""
        return tuple(self._trains(name, phase.spec) for phase in self.phases)

    def _trains(self, name: str, spec: PhaseSpec) -> bool:
        if name in self.rests:
            return False
        if any(f".{module}." in f".{name}" for module in self.always):
            return True
        cell = cell_of(name)
        if cell.layer == OUTSIDE:
            return spec.train == "all" and spec.layers is None
        first, last = self._range(spec)
        groups = PROJECTIONS if spec.train == "both" else (spec.train,)
        return first <= cell.layer <= last and (spec.train == "all" or cell.group in groups)

    def _range(self, spec: PhaseSpec) -> tuple[int, int]:
        half = self.layers // 2
        named = {None: (0, self.layers - 1), "early": (0, half - 1), "late": (half, self.layers - 1)}
        return spec.layers if isinstance(spec.layers, tuple) else named[spec.layers]

    def _require_sense(self, phase: Phase, names: Sequence[str]) -> None:
        _, last = self._range(phase.spec)
        place = f"method.schedule: phase {phase.number} ('{phase.spec.name}')"
        if last >= self.layers:
            raise UserError(f"{place} names block {last}; the model's last trained one is {self.layers - 1}")
        if not any(self._trains(name, phase.spec) for name in names):
            raise UserError(
                f"{place} trains nothing that the method does; choose what its targets have, or other layers"
            )
