"""The weights of checkpoints that are measured matrix by matrix, each opened once in a process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rankdrift import files
from rankdrift.analysis.contract import checkpoint_inputs
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.analysis.sources.weights import TunedWeights, open_weights


def weights_of(subject: Subject) -> TunedWeights:
    """Return a checkpoint's weights, opened once for all of its matrices, and anew where files changed."""
    assert subject.tuned is not None, "the base model has no update"
    stamp = "".join(files.fingerprint(path) for path in checkpoint_inputs(subject))
    return _opened(subject.base, subject.tuned, subject.initial, stamp)


@lru_cache(maxsize=128)
def _opened(base: Path, tuned: Path, initial: Path | None, stamp: str) -> TunedWeights:
    return open_weights(base, tuned, initial)
