"""Score a run's exported checkpoints: ``python launch/score.py RUN [--step N ...] [--base]``."""

import sys

from rankdrift.cli.main import program

if __name__ == "__main__":
    program(["score", *sys.argv[1:]])
