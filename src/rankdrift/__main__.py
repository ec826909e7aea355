"""``python -m rankdrift`` is the ``rankdrift`` command."""

import sys

from rankdrift.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
