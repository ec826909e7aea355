"""ROUGE-L: longest common subsequence with the best reference, F-measure, 0 to 100.

The whole text is one sequence. Papers on summaries of several sentences often report ROUGE-Lsum
(rouge_lsum), which is taken sentence by sentence and is higher.
"""

from __future__ import annotations

from rankdrift.metrics._rouge import rouge_metric

METRIC = rouge_metric("rouge_l", "rougeL")
