"""Measure checkpoints: ``python launch/analyze.py --study FOLDER``, or ``--base A --tuned B``."""

import sys

from rankdrift.cli.main import program

if __name__ == "__main__":
    program(["analyze", *sys.argv[1:]])
