"""Whether a run that is there is the one that is asked for: by content, and before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.data.dataset import load_rows
from rankdrift.data.identity import run_identity
from rankdrift.data.length import with_steps
from rankdrift.data.mixture import Mixture
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.models.base import load_tokenizer, resolve
from rankdrift.spec import Spec, read_spec
from rankdrift.spec.identity import differences, recorded
from rankdrift.studies.cell_record import is_finished

REMEDY = "choose another study (study=NAME), or delete it"


def with_steps_told(specs: Sequence[Spec], base: Path) -> list[Spec]:
    """Return the runs with their steps told, where epochs or tokens say them: it takes the rows to know."""
    if not any(spec.training.is_open for spec in specs):
        return list(specs)
    rows = load_rows(specs[0], "train", load_tokenizer(base))  # all arms train on the same ones
    batches = [spec.training.global_batch for spec in specs]
    orders = [
        Mixture(rows.sizes, batch, spec.seed, spec.data.mixture)
        for spec, batch in zip(specs, batches, strict=True)
    ]
    return [with_steps(spec, order, rows.lengths) for spec, order in zip(specs, orders, strict=True)]


def refuse_other_runs(study: StudyLayout, specs: Sequence[Spec], base: Path) -> None:
    """Raise UserError, before anything is written, if a run's folder holds another experiment."""
    held = [(spec, run) for spec in specs if (run := study.run(spec.run_name)).spec.exists()]
    if not held:
        return
    rows = load_rows(specs[0], "train", load_tokenizer(base))  # all arms train on the same ones
    for spec, run in held:
        identity = run_identity(spec, rows, base)
        if not run.identity.exists():
            raise UserError(f"{run.root}: holds a run without {run.identity.name}; {REMEDY}")
        # what is recorded may change while a run goes on, but not of one that is over
        over = read_spec(run.spec) if is_finished(run) else None
        _refuse(str(run.root), files.read_json(run.identity), over, spec, identity)


def refuse_other(where: str, found: Mapping[str, Any], over: Spec, spec: Spec) -> None:
    """Raise UserError if what is kept somewhere of a finished run is of another experiment.

    Parameters
    ----------
    where
        Its place, for the message.
    found, over
        Its identity and its settings.
    spec
        The run that is asked for.

    """
    base = resolve(spec.model.name, spec.model.revision)
    (told,) = with_steps_told([spec], base)
    rows = load_rows(told, "train", load_tokenizer(base))
    _refuse(where, found, over, told, run_identity(told, rows, base))


def _refuse(
    where: str, found: Mapping[str, Any], over: Spec | None, spec: Spec, identity: Mapping[str, Any]
) -> None:
    changed = differences(found, identity)
    if not changed and over is not None:
        changed = differences(recorded(over), recorded(spec))
    if changed:
        raise UserError(f"{where}: holds a run with other settings ({'; '.join(changed)}); {REMEDY}")
