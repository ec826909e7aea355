"""What commands share where they declare and check their arguments."""

from __future__ import annotations

import argparse
from typing import Any


def positive(text: str) -> int:
    """Return a number of things, of which there is one at least."""
    return at_least(1, text, "give 1 or more")


def count(text: str) -> int:
    """Return a number of things, of which there may be none."""
    return at_least(0, text, "give 0 or more")


def at_least(least: int, text: str, remedy: str) -> int:
    """Return a number; raise what argparse prints, with the remedy, where it is less than the least."""
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{text}: {remedy}")
    return number


def add_action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """Declare one of the things that a command does."""
    description = f"{summary[0].upper()}{summary[1:]}."
    added: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=description)
    return added
