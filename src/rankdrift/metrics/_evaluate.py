"""Metrics as modules of Hugging Face's evaluate, made from the same objects and without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from rankdrift import registry
from rankdrift.metrics import Answered, Metric

_CHOICE, _TEXT = datasets.Value("int32"), datasets.Value("string")
_TEXTS = datasets.Sequence(_TEXT)
_ANSWER = {"text": _TEXT, "no_answer_probability": datasets.Value("float64")}
FEATURES: Mapping[str, list[dict[str, Any]]] = {
    "choice": [{"predictions": _CHOICE, "references": _CHOICE}],
    "normalised_choice": [{"predictions": _CHOICE, "references": _CHOICE}],
    "text": [
        {"predictions": _TEXT, "references": _TEXTS},
        {"predictions": _TEXT, "references": _TEXT},
    ],
    "answer": [{"predictions": _ANSWER, "references": _TEXTS}],
}
"""What a metric reads -> the forms in which evaluate takes it."""


class EvaluateMetric(evaluate.Metric):
    """One of our metrics behind evaluate's interface; ``compute`` returns its value and parts by name."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        super().__init__(keep_in_memory=True)
        self.info.module_name = metric.name  # evaluate would name it after the class

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"rankdrift's metric {self.metric.name}, {self.metric.best} where perfect",
            citation="",
            features=[datasets.Features(form) for form in FEATURES[self.metric.reads]],
        )

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        if self.metric.reads == "answer":
            predictions = [Answered(**prediction) for prediction in predictions]
        if self.metric.reads in ("text", "answer"):
            references = [(one,) if isinstance(one, str) else tuple(one) for one in references]
        parts = self.metric.parts(predictions, references) if self.metric.parts else {}
        return {self.metric.name: self.metric.compute(predictions, references), **parts}


def as_evaluate(name: str) -> EvaluateMetric:
    """Return the metric of this name; raises UserError with the near miss if there is none."""
    return EvaluateMetric(registry.load("metric", name))
