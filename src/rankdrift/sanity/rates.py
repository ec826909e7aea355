"""The learning rates at which few rows are learnt by heart: higher than those of a study."""

from __future__ import annotations

RATES = {"full": 0.06, "last_layers": 0.06, "bitfit": 3.0, "pissa": 0.12, "lora_plus": 0.12}
"""Method -> learning rate times the width of the hidden states."""
OTHERS = 0.6
"""Of LoRA and what is like it."""


def rate_of(method: str, width: int) -> float:
    """Return a learning rate for a method, and a model with hidden states of a width."""
    return RATES.get(method, OTHERS) / width
