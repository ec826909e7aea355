"""The learning rates at which few rows are learnt by heart, in tens of steps: higher than those of a study.

Found on the tiny model and on SmolLM2-135M; of whole weights they go with 1 / width of the hidden states, of
adapters, biases and norms with its root.
"""

from __future__ import annotations

import math

WHOLE = {"full": 0.1, "last_layers": 0.1}
"""Method that trains whole weights -> its rate times the width."""
PARTS = {"bitfit": 0.4, "pissa": 0.016, "lora_plus": 0.004}
"""Method -> its rate times the root of the width."""
ADAPTERS = 0.032
"""The same of every other one."""


def rate_of(method: str, width: int) -> float:
    """Return a learning rate for a method, and a model with hidden states of a width."""
    if method in WHOLE:
        return WHOLE[method] / width
    return PARTS.get(method, ADAPTERS) / math.sqrt(width)
