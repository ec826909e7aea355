"""Run a whole study: ``python launch/study.py [--experiment RECIPE] [key.path=value ...]``."""

import sys

from rankdrift.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
