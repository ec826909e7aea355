"""Turn a run's sharded checkpoints into model or adapter folders: ``python launch/consolidate.py RUN``."""

import sys

from rankdrift.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["consolidate", *sys.argv[1:]]))
