"""The record of a benchmark in a study's folder: what was asked, checked and measured, on which machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rankdrift import files
from rankdrift.layout import StudyLayout

COLUMNS = ("round", "arm", "way", "quantity", "load", "batch", "prompt_tokens", "value")
"""Of a sample. ``batch`` and ``prompt_tokens`` are 0 where no request is measured, ``load`` is empty where a
model in this process answers one at a time."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """One check that was made before anything was timed."""

    check: str
    arm: str
    value: float
    limit: float | None
    """None where the value is stated, and nothing is required of it: in bf16 rounding decides."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found."""

    checks: Sequence[Checked]
    samples: pd.DataFrame
    """A row a value; COLUMNS."""
    costs: Sequence[Mapping[str, Any]] = ()
    """Of every model and size: floating-point operations and bytes of a first pass and of a further one."""
    disk: Sequence[Mapping[str, Any]] = ()


def write_record(study: StudyLayout, served_by: Mapping[str, Any], found: Measured) -> None:
    """Write what was found; the record is last, so that it never stands beside other samples.

    Parameters
    ----------
    study
        Whose models were served.
    served_by
        ``engine``, ``device`` and ``dtype``, and what was asked.
    found
        The measurements.

    """
    study.deployment.unlink(missing_ok=True)
    study.deployment.parent.mkdir(parents=True, exist_ok=True)
    files.write_parquet(study.deployment_samples, found.samples)
    files.write_json(
        study.deployment,
        {
            **served_by,
            "checks": [dataclasses.asdict(each) for each in found.checks],
            "costs": list(found.costs),
            "disk": list(found.disk),
            "environment": files.environment(),
            "written": files.timestamp(),
        },
    )
