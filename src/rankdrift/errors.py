"""What a user can cause or meet that ends a command with one message, and with which exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
"""Exit code where Ctrl-C ended a command at once; the shell's convention."""


class UserError(ValueError):
    """Input that cannot be used: the message names the thing, the value, and the remedy."""

    exit_code = 2


class NotApplicableError(UserError):
    """An analysis that these models cannot have; of several that nobody named, it alone is left out."""


class IntegrityError(UserError):
    """Stored data that is not what was written: cut, altered, missing, or of another run."""

    exit_code = 3


class RankError(RuntimeError):
    """A rank of a training failed by an error of its own, or lost the others."""

    exit_code = 1


class LostRankError(RankError):
    """A rank died, hung or fell silent, or its machine did: no error of the run, which can go on."""

    exit_code = 4


class Preempted(BaseException):
    """A command was asked to stop and has; the same command goes on from there.

    Like KeyboardInterrupt no ``Exception``: a signal may raise it anywhere, also in a library that goes on
    after any Exception.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def require_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raise UserError with the near miss unless a name is known; ``what`` says what it names."""
    names = list(known)
    if name not in names:
        raise UserError(f"unknown {what} '{name}': {did_you_mean(name, names)}")


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the nearest known name, and lists what there is.

    >>> did_you_mean("sst", ["sst2", "rte"])
    "did you mean 'sst2'? Known: rte, sst2."
    """
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    suggestion = f"did you mean '{near[0]}'? " if near else ""
    return f"{suggestion}Known: {', '.join(names) or 'none'}."
