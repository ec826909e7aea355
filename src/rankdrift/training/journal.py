"""What rank 0 writes as a run goes: metrics.jsonl, TensorBoard, train.log, status, probe tables, a bar."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from rankdrift import files
from rankdrift.layout import RunLayout
from rankdrift.training.mirrors import Mirror
from rankdrift.training.probes import Sums

logger = logging.getLogger(__name__)

PARTS = ("data", "forward", "backward", "update", "exchange", "probe", "evaluation", "save")
"""What a step's seconds go to, and behind them what is not the step's own."""
TIMES = tuple(f"seconds_{part}" for part in PARTS)
SPEED = ("tokens_per_second", "teraflops", "mfu", "padding", "memory_gib", "seconds", *TIMES)
STATUS_SECONDS = 1.0
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five of viridis', from dark to bright: matplotlib takes a third of a second to import."""
Measured = tuple[int, int, Sums, np.ndarray]
"""Step, phase, what a probe said, and its totals."""


class Journal:
    """The open files of one run. A resumed run drops what was logged after the step it resumes from.

    Parameters
    ----------
    run
        The run's folder.
    steps
        The last step.
    start
        The step that is already done; 0 for a new run.
    mirrors
        Services that are shown the scalars as well.

    """

    def __init__(self, run: RunLayout, steps: int, start: int, mirrors: Sequence[Mirror] = ()) -> None:
        self.run, self.steps, self.mirrors = run, steps, mirrors
        self._said = -math.inf
        _keep_until(run.metrics, start)
        self._metrics: TextIO = run.metrics.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(run.tensorboard), purge_step=start + 1 if start else 0)
        self._probes = {path.stem: _rows_until(path, start) for path in run.probes.glob("*.parquet")}
        for name in [name for name, kept in self._probes.items() if not kept]:
            run.probe(name).unlink()  # of a run that began anew, and may have other probes
        self._pending: dict[str, list[Measured]] = {}
        self._bar = _progress_bar()
        self._task = self._bar.add_task(run.root.name, total=steps, completed=start, loss="")
        self._bar.start()

    def metrics(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        """Log one line; the keys are those of the table ``training_metrics``."""
        self.record(step, split, values)
        text = ", ".join(f"{key} {value:.4g}" for key, value in values.items() if value is not None)
        logger.info("step %d/%d %s: %s", step, self.steps, split, text)

    def record(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        """Log one line, in the table and TensorBoard alone."""
        files.append_jsonl(self._metrics, {"step": step, "split": split, **values})
        told = {f"{split}/{key}": value for key, value in values.items() if value is not None}
        self._show(step, told)

    def probe(self, name: str, step: int, phase: int, sums: Sums, totals: np.ndarray) -> None:
        """Show a probe's scalars; its rows are made when they are written."""
        told = replace(sums, own=sums.own.new_empty(0))  # or what was summed would stay on the device
        self._pending.setdefault(name, []).append((step, phase, told, totals))
        self._show(step, {f"{name}/{key}": value for key, value in sums.scalars(totals).items()})

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars to TensorBoard as one event: its writer's own way takes a millisecond for each."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        writer: Any = self._tensorboard.file_writer
        writer.add_summary(Summary(value=scalars), step)
        for mirror in self.mirrors:
            mirror.log(step, values)

    def _picture(self, name: str, step: int, phase: int, sums: Sums, totals: np.ndarray) -> None:
        """Show a probe's values as colours, zero dark and the largest bright."""
        for key, values in sums.pictures(totals).items():
            self._tensorboard.add_image(f"{name}/{key}", coloured(values), step, dataformats="HWC")

    def progress(self, step: int, loss: float) -> None:
        """Move the bar; where the output is not a terminal, print a line now and then."""
        self._bar.update(self._task, completed=step, loss=f"loss {loss:.3f}")
        if not self._bar.console.is_terminal and (step % max(1, self.steps // 8) == 0 or step == self.steps):
            print(f"{self.run.root.name}: step {step}/{self.steps}, loss {loss:.3f}", flush=True)

    def progressed(self, step: int) -> None:
        """Say which step is done, now and then: a file a step is a tenth of a tiny model's steps."""
        if time.monotonic() - self._said > STATUS_SECONDS:
            self.status("training", step)

    def status(self, state: str, step: int, **facts: Any) -> None:
        """Say where the run stands."""
        self._said = time.monotonic()
        value = {"state": state, "step": step, "steps": self.steps, "time": files.timestamp(), **facts}
        files.write_json(self.run.status, value)

    def flush(self) -> None:
        """Bring tables and event files to the disk; called before a checkpoint says they are there."""
        for name, pending in self._pending.items():
            if pending:
                self._picture(name, *pending[-1])
                self._probes.setdefault(name, []).append(_rows(pending))
                pending.clear()
        for name, tables in self._probes.items():
            if tables:
                files.write_parquet(self.run.probe(name), pd.concat(tables, ignore_index=True))
        self._tensorboard.flush()

    def close(self) -> None:
        """Close everything; nothing more may be logged."""
        self.flush()
        for mirror in self.mirrors:
            mirror.close()
        self._bar.stop()
        self._tensorboard.close()
        self._metrics.close()


def log_to(path: Path | None) -> None:
    """Send rankdrift's log to a file and its warnings to the error stream; without a path, nowhere.

    Every rank meets the same warnings: one of them says so.
    """
    root = logging.getLogger("rankdrift")
    root.setLevel(logging.INFO)
    if path is None:
        root.handlers[:] = [logging.NullHandler()]
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    stream = logging.StreamHandler(sys.stderr)
    stream.setLevel(logging.WARNING)
    root.handlers[:] = [file, stream]


def coloured(values: np.ndarray, side: int = 12) -> np.ndarray:
    """Return a picture of a grid of values, a square each: uint8, (height, width, 3); NaN is white."""
    largest = float(np.nanmax(values, initial=0.0)) or 1.0
    places = np.linspace(0, largest, len(COLOURS))
    shades = np.stack([np.interp(values, places, shade) for shade in zip(*COLOURS, strict=True)], axis=-1)
    shades[np.isnan(values)] = 255
    return np.kron(shades, np.ones((side, side, 1))).astype(np.uint8)


def _rows(measured: Sequence[Measured]) -> pd.DataFrame:
    """Return one table of several steps: made step by step, it would take as long as measuring."""
    found = [{"step": step, "phase": phase, **sums.table(totals)} for step, phase, sums, totals in measured]
    counts = [max(map(np.size, columns.values())) for columns in found]
    return pd.DataFrame(
        {
            title: np.concatenate(
                [np.broadcast_to(columns[title], count) for columns, count in zip(found, counts, strict=True)]
            )
            for title in found[0]
        }
    )


def _keep_until(path: Path, step: int) -> None:
    """Drop what comes after a step; a run that starts anew drops everything, its step 0 too."""
    rows = [row for row in files.read_jsonl(path) if step and row["step"] <= step]
    lines = [files.json_line(row) for row in rows]
    files.write_text(path, "".join(lines))


def _rows_until(path: Path, step: int) -> list[pd.DataFrame]:
    table = files.read_table(path)
    kept = table[table["step"] <= step]
    return [kept] if len(kept) else []


def _progress_bar() -> Progress:
    console = Console(file=sys.stdout)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
