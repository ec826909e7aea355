"""What commands share where they declare and check their arguments."""

from __future__ import annotations

import argparse
from typing import Any


def positive(text: str) -> int:
    """Return a number of things, of which there is one at least."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return number


def count(text: str) -> int:
    """Return a number of things, of which there may be none."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: give 0 or more")
    return number


def add_action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """Declare one of the things that a command does."""
    description = f"{summary[0].upper()}{summary[1:]}."
    added: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=description)
    return added
