"""Draw a study's figures and write its report: ``python launch/report.py outputs/demo``."""

import sys

from rankdrift.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
