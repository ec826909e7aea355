"""When which parameters train: the phases of a run.

A schedule is written as ``both->mlp->attn`` or ``early@0.25->late``, or as a list of phases with layers. Each
phase ends at a step, or at a fraction of all steps; without any ends they are equally long.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from rankdrift.errors import did_you_mean
from rankdrift.settings import NonNegativeInt, PositiveInt, Section

ARROW, END = "->", "@"
WORDS = {
    "attn": ("attention", None),
    "attention": ("attention", None),
    "mlp": ("mlp", None),
    "both": ("both", None),
    "all": ("all", None),
    "early": ("both", "early"),
    "late": ("both", "late"),
}
"""What may stand between arrows -> what trains, and in which layers."""


class PhaseSpec(Section):
    """A part of a run in which some of the parameters that the method trains do, and the others rest."""

    train: Literal["attention", "mlp", "both", "all"] = "both"
    """Projections of the blocks, or (all) whatever the method trains: norms, embeddings and head as well."""
    layers: Literal["early", "late"] | tuple[NonNegativeInt, NonNegativeInt] | None = None
    """The first half of the blocks (up to the last that the method trains), the second half, or from one to
    another (from 0, both included)."""
    until: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Its last step, or the fraction of all steps that is done then; of the last phase, None."""

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: Any) -> Any:
        if isinstance(layers, tuple) and layers[0] > layers[1]:
            raise ValueError(
                f"layers={list(layers)} begin behind their end: give the first and the last block"
            )
        return layers

    @property
    def name(self) -> str:
        """What tables and logs call it."""
        layers = "-".join(map(str, self.layers)) if isinstance(self.layers, tuple) else self.layers
        return self.train if layers is None else f"{self.train}:{layers}"


class Phase(NamedTuple):
    """A phase at its place in a run."""

    number: int
    """From 0."""
    first: int
    """Its first step."""
    last: int
    """Its last step."""
    spec: PhaseSpec


def written(schedule: str) -> list[dict[str, Any]]:
    """Return the phases of a schedule that is written with arrows; raise ValueError for a word unknown.

    >>> written("both->mlp@0.5->late")
    [{'train': 'both'}, {'train': 'mlp', 'until': 0.5}, {'train': 'both', 'layers': 'late'}]
    """
    found = []
    for part in schedule.split(ARROW):
        word, _, end = (piece.strip() for piece in part.partition(END))
        if word not in WORDS:
            raise ValueError(
                f"'{word}' in '{schedule}' is no group that a phase can train: {did_you_mean(word, WORDS)}"
            )
        train, layers = WORDS[word]
        found.append(
            {"train": train}
            | ({"layers": layers} if layers else {})
            | ({"until": _number(end)} if end else {})
        )
    return found


def _number(end: str) -> int | float:
    try:
        return int(end) if end.isdigit() else float(end)
    except ValueError:
        raise ValueError(f"'{END}{end}' is neither a step nor a fraction of the steps") from None


def phases(schedule: tuple[PhaseSpec, ...], steps: int) -> list[Phase]:
    """Return the phases of a run of so many steps, one after the other, from its first step to its last.

    Raises
    ------
    ValueError
        Where they overlap, leave a gap, or are not all given an end.

    """
    ends = _ends(schedule, steps)
    found, first = [], 1
    for number, (spec, last) in enumerate(zip(schedule, ends, strict=True)):
        if last < first:
            raise ValueError(
                f"phase {number} ('{spec.name}') would end at step {last}, before its first, {first}: phases "
                "overlap; give ends that ascend"
            )
        found.append(Phase(number, first, last, spec))
        first = last + 1
    return found


def _ends(schedule: tuple[PhaseSpec, ...], steps: int) -> list[int]:
    given = [spec.until for spec in schedule]
    if not any(given):
        return [steps * (number + 1) // len(schedule) for number in range(len(schedule))]
    if None in given[:-1]:
        raise ValueError(
            f"phase {given.index(None)} ('{schedule[given.index(None)].name}') has no end, others have: give "
            "until to all but the last, or to none"
        )
    ends = [end if isinstance(end, int) else round(end * steps) for end in given if end is not None]
    if given[-1] is None:
        ends.append(steps)
    if ends[-1] != steps:
        raise ValueError(
            f"the last phase ends at step {ends[-1]} of training.steps={steps}, "
            f"{'which leaves a gap' if ends[-1] < steps else 'behind it'}: leave its until out"
        )
    return ends


def read_schedule(value: Any) -> Any:
    """Return a schedule's phases from what a recipe may hold: a text with arrows, or a list."""
    return tuple(written(value)) if isinstance(value, str) else value
