"""The small runs that are tried in an experiment's place: its settings, but for few rows and few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankdrift.spec import Spec, parse_spec
from rankdrift.spec.trials import ALONE

ROWS = 10
"""Rows that a run learns by heart; more where ranks cannot share them."""
BATCH = 5
"""Rows of a step: another seed has others in its first one."""
EVALUATED = 2
"""Validation rows; there is little to be learnt of them."""


def shared_out(ranks: int) -> tuple[int, int]:
    """Return the rows of a small run and those of a step: of several steps, which so many ranks can share.

    >>> [shared_out(ranks) for ranks in (1, 2, 4, 16)]
    [(10, 5), (12, 4), (12, 4), (32, 16)]
    """
    batch = ranks * max(1, round(BATCH / ranks))
    return batch * max(2, -(-ROWS // batch)), batch


def small(spec: Spec, arm: str, output: Path, ranks: int, steps: int, rate: float) -> Spec:
    """Return the experiment as a small run: a constant rate, few rows, its last step alone is saved.

    Its phases are left out: all that the method trains does at every step. Of several tasks each has its
    share of the rows.
    """
    rows, batch = shared_out(ranks)
    tree: dict[str, Any] = spec.as_dict()
    tree |= {"study": "check", "arm": arm, "output": str(output)}
    most = -(-rows // len(spec.data.tasks))
    tree["data"] |= {"train_limit": min(spec.data.train_limit or most, most), "mixture": {}}
    tree["method"] |= {"schedule": [], "restart": False}
    training = spec.training
    micro = batch // ranks if training.micro_batch == "auto" else training.micro_batch
    tree["training"] |= {
        **ALONE,
        "steps": steps,
        "global_batch": batch,
        "micro_batch": micro,
        "learning_rate": rate,
    }
    tree["training"] |= {"schedule": "constant", "warmup_steps": 0, "warmup_ratio": None}
    tree["training"] |= {"probe_every": min(1, training.probe_every) * steps, "eval_rows": EVALUATED}
    return parse_spec(tree)
