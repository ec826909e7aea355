"""Turn a run's sharded checkpoints into model or adapter folders: ``python launch/consolidate.py RUN``."""

import sys

from rankdrift.cli.main import program

if __name__ == "__main__":
    program(["consolidate", *sys.argv[1:]])
