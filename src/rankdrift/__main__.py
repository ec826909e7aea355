"""``python -m rankdrift`` is the ``rankdrift`` command."""

from rankdrift.cli.main import program

if __name__ == "__main__":
    program()
