"""How many steps a run has that is told its epochs or tokens: it takes the data to know."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from rankdrift.data.mixture import Mixture
from rankdrift.spec import Spec, parse_spec


def with_steps(spec: Spec, order: Mixture, lengths: np.ndarray) -> Spec:
    """Return a spec whose steps are told, checked anew; UserError where something does not fit them.

    Parameters
    ----------
    spec
        As it was given.
    order
        The mixture: an epoch is a block of it, as many rows as it holds.
    lengths
        Tokens of every training row, shape (rows,).

    """
    training = spec.training
    if training.epochs is None and training.tokens is None:
        return spec
    if training.epochs is not None:
        epochs = Fraction(str(training.epochs))  # 1.1 is no binary number
        steps = math.ceil(epochs * order.block / training.global_batch)
    else:
        steps = _steps_of_tokens(int(training.tokens or 0), order, lengths)
    tree = spec.as_dict()
    tree["training"] |= {"steps": steps, "epochs": None, "tokens": None}
    return parse_spec(tree)


def _steps_of_tokens(tokens: int, order: Mixture, lengths: np.ndarray) -> int:
    """Return the fewest steps in which so many tokens are trained on."""
    low, high = 0, 1
    while _seen(order, lengths, high) < tokens:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _seen(order, lengths, middle) >= tokens else (middle, high)
    return high


def _seen(order: Mixture, lengths: np.ndarray, steps: int) -> int:
    return int(order.seen(steps, lengths).sum())
