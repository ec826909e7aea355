"""Check this machine before hours are spent on it: packages, GPUs, memory, disk, network, an all-reduce."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

MARKS = {"fine": "[green]fine[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), help="folder that runs would write to"
    )
    parser.add_argument("--ranks", type=int, help="of the exchange; default: one a GPU, at least 2")
    parser.add_argument("--json", action="store_true", help="print a list instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Check, print what is found as it is; return 1 where something is bad."""
    import dataclasses

    import torch  # takes seconds, which --help need not wait for
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rankdrift.doctor.checks import all_checks

    console = Console()
    table = Table("check", "", "what was found", "what to do")
    found = []
    ranks = arguments.ranks or max(2, torch.cuda.device_count())
    with console.status("") as status:
        for name, check in all_checks(arguments.output, ranks):
            status.update(f"checking {name} ...")
            for finding in check():
                found.append(finding)
                table.add_row(name, MARKS[finding.state], escape(finding.what), escape(finding.remedy))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    else:
        console.print(table)
    return int(any(finding.state == "bad" for finding in found))
