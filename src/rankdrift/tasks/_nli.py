"""How MNLI is asked, the same for texts of the kinds that were trained on and for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example
from rankdrift.tasks._fields import classified, text

CHOICES = (" entailment", " neutral", " contradiction")
COLUMNS = ("premise", "hypothesis", "label")


def nli_example(row: Mapping[str, Any]) -> Example:
    """Return the example of a row: premise, hypothesis, label."""
    premise, hypothesis = text(row, "premise"), text(row, "hypothesis")
    return classified(f"Premise: {premise}\nHypothesis: {hypothesis}\nRelation:", row, CHOICES)
