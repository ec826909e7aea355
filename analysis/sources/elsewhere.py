"""Weights that another machine or a storage holds: which there are, and what is in them, as was said there.

Tables of a run travel, its weights do not (``studies/away.py``). Whether what depends on weights is current
is told by what is in them, so their identity is kept where the tables are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from rankdrift import files
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout

Weights = Callable[["Iterable[Subject]"], AbstractContextManager[None]]
"""Has the weights of checkpoints here for as long as a block lasts, or says where they are."""


@dataclass(frozen=True)
class Held:
    """What a machine or a storage holds of one run."""

    node: str
    """The machine's name, or the storage's URL."""
    folder: str
    """The run's folder there."""
    steps: dict[int, str]
    """Step -> where its weights are, relative to the run's folder."""
    contents: dict[str, str]
    """File or folder -> identity of what is in it, as ``files.content_digest`` or a manifest gives it."""

    @property
    def is_storage(self) -> bool:
        """Whether a storage holds it (``studies/storage.py``), which every machine reaches."""
        return "://" in self.node

    @classmethod
    def of(cls, run: RunLayout) -> Held | None:
        """Return what another machine or a storage holds of a run; None where nobody has said so."""
        if not run.held.exists():
            return None
        tree = files.read_json(run.held)
        return cls(**{**tree, "steps": {int(step): path for step, path in tree["steps"].items()}})

    def keep(self, run: RunLayout) -> None:
        """Write it into the run's folder."""
        files.write_json(run.held, asdict(self))


def content_elsewhere(path: Path) -> str | None:
    """Return the identity of what is in a file or folder of a run that another machine holds, or None."""
    for folder in path.parents[:2]:
        if held := Held.of(RunLayout(folder)):
            return held.contents.get(str(path.relative_to(folder)))
    return None


def held_elsewhere(subject: Subject) -> Held | None:
    """Return who holds a checkpoint's weights, where they are not here."""
    if subject.tuned is None or subject.run_dir is None or subject.tuned.exists():
        return None
    return Held.of(RunLayout(subject.run_dir))


@contextlib.contextmanager
def none_elsewhere(subjects: Iterable[Subject]) -> Iterator[None]:
    """Bring nothing: raise UserError where the weights of a checkpoint are elsewhere."""
    require_here(subjects)
    yield


def require_here(subjects: Iterable[Subject]) -> None:
    """Raise UserError where the weights of a checkpoint are on another machine, or in a storage."""
    for subject in subjects:
        if (held := held_elsewhere(subject)) and held.is_storage:
            raise UserError(
                f"{subject.tuned}: these weights are in {held.node}; 'rankdrift study run' brings them for "
                "what needs them"
            )
        if held:
            raise UserError(
                f"{subject.tuned}: node {held.node} holds these weights; give the cluster (--ray), or "
                f"bring them with: rankdrift gather {subject.run_dir} --from HOST:{held.folder}"
            )


def is_checkpoint_elsewhere(folder: Path) -> bool:
    """Return whether a folder that is not here is a checkpoint of a run on another machine."""
    run = RunLayout(folder.parent.parent)
    return folder.parent == run.checkpoints and not folder.exists() and content_elsewhere(folder) is not None
