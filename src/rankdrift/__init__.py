"""rankdrift: what LoRA does to a language model that full fine-tuning does not, measured per checkpoint.

``score``, ``train`` and ``analyze`` are those of :mod:`rankdrift.api`, loaded when they are asked for.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
API = ("analyze", "score", "train")


def __getattr__(name: str) -> Any:
    """Return a function of the API: a command's help need not wait for pandas."""
    if name not in API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rankdrift import api

    return getattr(api, name)
