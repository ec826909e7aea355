"""Macro F1, 0 to 1: the unweighted mean of F1 over the classes that occur, two or more.

A value of the whole set, not a mean over items.
"""

from __future__ import annotations

from rankdrift.metrics import Metric
from rankdrift.metrics._f1 import macro_f1

METRIC = Metric(name="f1_macro", reads="choice", best=1.0, compute=macro_f1)
