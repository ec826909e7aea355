"""What is left out of a run that only tries an experiment: whatever happens beside its steps."""

from __future__ import annotations

from typing import Any

ALONE: dict[str, Any] = {
    **{"epochs": None, "tokens": None, "log_every": 1, "profile": ()},
    **{"eval_every": None, "eval_steps": (), "eval_items": 0, "best": "validation/loss", "patience": None},
    **{"save_every": None, "save_steps": (), "keep_last": None, "keep_every": None, "keep_best": None},
    "mirrors": (),
}
"""Settings of ``training`` under which a run of given ``steps`` does nothing else, but for its last save."""
