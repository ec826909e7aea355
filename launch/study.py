"""Run a whole study: ``python launch/study.py [--experiment RECIPE] [key.path=value ...]``."""

import sys

from rankdrift.cli.main import program

if __name__ == "__main__":
    program(["study", "run", *sys.argv[1:]])
