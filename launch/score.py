"""Score a run's exported checkpoints: ``python launch/score.py RUN [--step N ...] [--base]``."""

import sys

from rankdrift.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
