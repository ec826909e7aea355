"""ROUGE-2: overlap of pairs of words with the best reference, F-measure, 0 to 100."""

from __future__ import annotations

from rankdrift.metrics._rouge import rouge_metric

METRIC = rouge_metric("rouge2", "rouge2")
