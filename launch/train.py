"""Train one run: ``deepspeed launch/train.py --config ds_configs/zero2.json [key.path=value ...]``."""

import sys

from rankdrift.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
