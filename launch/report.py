"""Draw a study's figures and write its report: ``python launch/report.py outputs/demo``."""

import sys

from rankdrift.cli.main import program

if __name__ == "__main__":
    program(["report", *sys.argv[1:]])
