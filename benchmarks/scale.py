"""How long do status, tables and report of a large study take, in how much memory, and what breaks first?

    python benchmarks/scale.py --folder FOLDER --runs 10 30 100            three studies of five seeds an arm
    python benchmarks/scale.py --folder FOLDER --runs 100 --seeds 1        4,950 pairs of arms

Makes each study below FOLDER unless it is there (``made_study.py``: no training; 7 GB at 100 runs x 20
checkpoints x 224 matrices), then times the commands as a user runs them, each in a fresh process, with the
seconds of the CPU, which other work on the machine changes little, and the peak of resident memory: ``study
status --json``; ``analyze`` of all that has parts up to date, which joins them into tables; ``analyze`` of
what compares runs; the same again, with nothing left to do; ``report``. One that takes more than ``--memory``
GiB or ``--minutes`` is ended, and stated as such. With several numbers of runs, the exponent is that of the
number between the first and the last.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
CALL = "import sys; from rankdrift.cli.main import program; program(sys.argv[1:])"
COMPARISONS = ("comparisons", "item_contrasts", "predictors", "searches", "seed_contrasts", "task_vectors")
JOINED = ("checkpoint_gradients", "drift", "forecasts", "gradients", "performance", "probes", "spectra")
JOINED += ("training", "variants", "vectors")
GIB, POLL = 2**30, 0.1
MEASURED = ("seconds", "cpu_seconds", "peak_gib")


def timed(command: Sequence[str], memory: float, minutes: float) -> dict[str, Any]:
    """Return the seconds and peak memory of a process, or why it was ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as made:
        peak, broke, watched = 0.0, "", psutil.Process(made.pid)
        while not _has_ended(made):
            peak = max(peak, _resident(watched))
            if peak > memory:
                broke = f"more than {memory:g} GiB"
            elif time.perf_counter() - began > 60 * minutes:
                broke = f"more than {minutes:g} min"
            if broke:
                made.kill()
                break
            time.sleep(POLL)
        error = made.stderr.read().decode()[-500:] if made.stderr else ""
        _, status, used = os.wait4(made.pid, 0)
        made.returncode = os.waitstatus_to_exitcode(status)
    if made.returncode and not broke:
        raise SystemExit(f"{' '.join(command[3:])}: exit code {made.returncode}: {error}")
    found = {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_gib": round(used.ru_maxrss / 2**20, 3),
    }
    found |= {"ended": broke} if broke else {}
    print(" ".join(command[3:]), json.dumps(found), file=sys.stderr, flush=True)
    return found


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process has ended; it stays to be waited for, with what it used."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _resident(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / GIB
    except psutil.NoSuchProcess:
        return 0.0


def made(folder: Path, runs: int, arguments: argparse.Namespace) -> Path:
    """Return the study of so many runs, which is made if it is not there."""
    sizes = {"runs": runs} | {name: getattr(arguments, name) for name in SIZES}
    root = folder / "-".join(f"{name}{size}" for name, size in sizes.items())
    if not root.exists():
        options = [f"--{name}={size}" for name, size in sizes.items()]
        subprocess.run(
            [sys.executable, str(HERE / "made_study.py"), str(root), *options],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    return root


def measured(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what every command took of one study, and what it left."""
    tables = root / "tables"
    for path in (*root.glob("report.*"), *tables.glob("[!.]*.*")):
        path.unlink()
    shutil.rmtree(root / "figures", ignore_errors=True)

    def of(*command: str) -> dict[str, Any]:
        return timed([sys.executable, "-c", CALL, *command], arguments.memory, arguments.minutes)

    study = ["--study", str(root)]
    statuses = [of("study", "status", str(root), "--json") for _ in range(arguments.repeats)]
    found = {"status": {name: statistics.median(s[name] for s in statuses) for name in MEASURED}}
    found["join"] = of("analyze", *JOINED, *study)
    found["join"] |= {"tables_bytes": sum(path.stat().st_size for path in tables.glob("[!.]*.*"))}
    rows = {path.name.split(".")[0]: json.loads(path.read_text())["rows"] for path in tables.glob("*.json")}
    found["join"] |= {"rows": sum(rows.values()), "rows_of_the_longest": max(rows.values(), default=0)}
    for name in COMPARISONS:
        found[name] = of("analyze", name, *study)
    found["nothing_to_do"] = of("analyze", *JOINED, *COMPARISONS, *study)
    found["report"] = of("report", str(root))
    page = root / "report.html"
    if page.exists():
        found["report"] |= {"html_bytes": page.stat().st_size, "figures": page.read_text().count("<img ")}
    return found


def exponents(found: dict[int, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return with what power of the number of runs seconds and memory grow, from the first to the last."""
    first, last = min(found), max(found)
    if first == last:
        return {}
    return {
        command: {
            name: round(math.log(of[name] / found[first][command][name]) / math.log(last / first), 2)
            for name in MEASURED
        }
        for command, of in found[last].items()
        if "ended" not in of | found[first][command]
    }


SIZES = ("seeds", "checkpoints", "matrices", "width")


def main() -> None:
    """Make, measure, print and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where studies are made, and stay")
    parser.add_argument("--runs", type=int, nargs="+", default=[100])
    parser.add_argument("--seeds", type=int, default=5, help="runs of an arm")
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--matrices", type=int, default=224)
    parser.add_argument("--width", type=int, default=64, help="singular values of a matrix")
    parser.add_argument("--repeats", type=int, default=3, help="of status; the others run once")
    parser.add_argument("--memory", type=float, default=12.0, metavar="GIB")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--output", type=Path, help="JSON of the figures")
    arguments = parser.parse_args()
    found = {}
    for runs in sorted(arguments.runs):
        found[runs] = measured(made(arguments.folder.resolve(), runs, arguments), arguments)
        print(json.dumps({runs: found[runs]}, indent=2), flush=True)
    if arguments.output:
        from rankdrift import files  # here, so that what is started does not begin with our memory

        settings = {name: getattr(arguments, name) for name in SIZES}
        result = {"settings": settings, "runs": found, "exponents": exponents(found)}
        files.write_json(arguments.output, result | {"environment": files.environment()})


if __name__ == "__main__":
    main()
