"""Train one run: ``deepspeed launch/train.py --config ds_configs/zero2.json [key.path=value ...]``."""

import sys

from rankdrift.cli.main import program

if __name__ == "__main__":
    program(["train", *sys.argv[1:]])
