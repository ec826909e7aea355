"""Measure checkpoints: ``python launch/analyze.py --study FOLDER``, or ``--base A --tuned B``."""

import sys

from rankdrift.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["analyze", *sys.argv[1:]]))
