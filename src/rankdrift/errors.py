"""The errors a user can cause or meet, each of which ends a command with one message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used (exit code 2): the message names the thing, the value, and the remedy."""


class IntegrityError(UserError):
    """Stored data that is not what was written (exit code 3): cut, altered, missing, or of another run."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the nearest known name, and lists what there is.

    >>> did_you_mean("sst", ["sst2", "rte"])
    "did you mean 'sst2'? Known: rte, sst2."
    """
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    suggestion = f"did you mean '{near[0]}'? " if near else ""
    return f"{suggestion}Known: {', '.join(names) or 'none'}."
