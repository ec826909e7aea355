"""Turn a run's sharded checkpoints into folders that plain transformers and peft load.

A folder is built beside its place under a temporary name, its ``provenance.json`` written last, and
renamed; so whatever has the right name is whole. Weights are streamed from the shards to the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdrift import records
from rankdrift.checkpoint import adapters, writer
from rankdrift.checkpoint.record import CheckpointRecord, complete_steps, sync_tree
from rankdrift.checkpoint.shards import ShardedCheckpoint, ShardedTensor, open_checkpoint
from rankdrift.errors import UserError, did_you_mean
from rankdrift.layout import RunLayout, step_name

FORMAT = 1
PROVENANCE_NAME = "provenance.json"
SHARD_LIMIT = 5 * 10**9  # bytes a weights file, the usual size on model hubs
_SPARE = 64 * 2**20  # bytes beside the weights: headers, tokenizer, what a file system rounds up

Report = Callable[[str], None]  # takes one line for the user


def silent(line: str) -> None:
    """Report nothing."""


def consolidate(run: RunLayout, step: int, *, dtype: str = "fp32", progress: Report = silent) -> Path:
    """Export one checkpoint to ``exports/step-NNNNNN`` and return that folder.

    Full fine-tuning gives ``config.json`` and ``model.safetensors`` (several files and an index beyond
    5 GB), LoRA gives ``adapter_config.json`` and ``adapter_model.safetensors``. Weights are the fp32
    masters, rounded once to ``dtype`` ("fp32" or "bf16"). An export made from the same inputs is kept.

    Raises UserError where the checkpoint is incomplete, damaged or of an unknown layout, ``model/`` is
    missing, the disk is too small or not writable, or another process is exporting the same step.
    """
    if dtype not in writer.DTYPES:
        raise UserError(f"unknown dtype '{dtype}': {did_you_mean(dtype, writer.DTYPES)}")
    record = CheckpointRecord.read(run.checkpoint(step))
    with _locked(run.checkpoint(step)):
        inputs = _inputs(run, step, dtype)
        if _is_current(run.export(step), inputs):
            progress(f"{step_name(step)}: up to date")
            return run.export(step)
        export = _plan(run, record, dtype)
        with _disk_errors(run.exports), _appearing(run.export(step), export.size) as folder:
            outputs = _write_export(export, run.model, folder, _percentages(step, export.size, progress))
            records.write_json(folder / PROVENANCE_NAME, _provenance(run, record, export, inputs, outputs))
    progress(f"{step_name(step)}: {run.export(step)}")
    return run.export(step)


def consolidate_run(
    run: RunLayout, steps: Sequence[int] | None = None, *, dtype: str = "fp32", progress: Report = silent
) -> list[Path]:
    """Export the given steps, or every step whose checkpoint is whole; return their folders."""
    chosen = list(steps) if steps else complete_steps(run.checkpoints)
    if not chosen:
        raise UserError(f"{run.checkpoints}: no complete checkpoint; train with this run folder first")
    return [consolidate(run, step, dtype=dtype, progress=progress) for step in chosen]


@dataclass(frozen=True)
class _Export:
    """What one export will hold."""

    checkpoint: ShardedCheckpoint
    dtype: str
    config_name: str
    config: dict[str, Any]
    files: dict[str, dict[str, ShardedTensor]]
    """Weights files: tensors by their names on disk."""

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        tensors = (tensor for file in self.files.values() for tensor in file.values())
        return sum(writer.size_of(tensor, writer.DTYPES[self.dtype]) for tensor in tensors)


def _plan(run: RunLayout, record: CheckpointRecord, dtype: str) -> _Export:
    checkpoint = open_checkpoint(run.checkpoint(record.step))
    adapter, model = run.model / "adapter_config.json", run.model / "config.json"
    if adapter.exists():
        config = {**records.read_json(adapter), "base_model_name_or_path": record.base}
        adapters.check_config(config, adapter)
        tensors = adapters.adapter_tensors(checkpoint.tensors, checkpoint.folder)
        files = {"adapter_model.safetensors": tensors}
        return _Export(checkpoint, dtype, adapter.name, config, files)
    if not model.exists():
        raise UserError(f"{run.model}: no config.json or adapter_config.json; copy the run's folder whole")
    config = records.read_json(model)
    files = _model_files(_model_tensors(checkpoint, config), dtype)
    return _Export(checkpoint, dtype, model.name, _with_dtype(config, dtype), files)


def _model_tensors(checkpoint: ShardedCheckpoint, config: Mapping[str, Any]) -> dict[str, ShardedTensor]:
    """Return the model's tensors, shared ones once, unless loading would not tie them again."""
    tensors = dict(checkpoint.tensors)
    if config.get("tie_word_embeddings") is False:
        tensors.update({alias: tensors[owner] for alias, owner in checkpoint.aliases.items()})
    return tensors


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return the model's configuration with the dtype of the exported weights, in which they are loaded."""
    kept = {key: value for key, value in config.items() if key != "torch_dtype"}
    return {**kept, "dtype": str(writer.DTYPES[dtype]).removeprefix("torch.")}


def _model_files(tensors: dict[str, ShardedTensor], dtype: str) -> dict[str, dict[str, ShardedTensor]]:
    parts = writer.split(tensors, writer.DTYPES[dtype], SHARD_LIMIT)
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{n:05d}-of-{len(parts):05d}.safetensors": part for n, part in enumerate(parts, start=1)}


def _write_export(export: _Export, model: Path, folder: Path, written: writer.Progress) -> dict[str, Any]:
    """Fill the folder; return each file's size and SHA-256."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    records.write_json(folder / export.config_name, export.config)
    if len(export.files) > 1:
        weight_map = {name: file for file, tensors in export.files.items() for name in tensors}
        index = {"metadata": {"total_size": export.size}, "weight_map": weight_map}
        records.write_json(folder / "model.safetensors.index.json", index)
    digests = {path: records.digest_file(path) for path in folder.rglob("*") if path.is_file()}
    for name, tensors in export.files.items():
        path = folder / name
        digests[path] = writer.write_safetensors(path, tensors, writer.DTYPES[export.dtype], written)
    sync_tree(folder)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in sorted(digests.items())
    }


def _provenance(
    run: RunLayout,
    record: CheckpointRecord,
    export: _Export,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "run": run.root.resolve().name,
        "step": record.step,
        "method": record.method,
        "base": {"folder": record.base, "digest": record.base_digest},
        "spec_digest": record.spec_digest,
        "dtype": export.dtype,
        "tied": dict(export.checkpoint.aliases),
        "inputs": inputs,
        "outputs": outputs,
        "checkpoint": dataclasses.asdict(record),
        "environment": records.environment(),
    }


def _inputs(run: RunLayout, step: int, dtype: str) -> dict[str, Any]:
    """Return what an export is made from; an export that states the same is up to date."""
    if not run.model.is_dir():
        raise UserError(f"{run.model}: no such folder; it holds the configuration that an export needs")
    checkpoint, model = records.fingerprint(run.checkpoint(step)), records.fingerprint(run.model)
    return {"format": FORMAT, "dtype": dtype, "checkpoint": checkpoint, "model": model}


def _is_current(export: Path, inputs: Mapping[str, Any]) -> bool:
    if not (export / PROVENANCE_NAME).exists():
        return False
    provenance = records.read_json(export / PROVENANCE_NAME)
    if provenance.get("inputs") != inputs:
        return False
    files = {export / name: output["size"] for name, output in provenance["outputs"].items()}
    return all(path.exists() and path.stat().st_size == size for path, size in files.items())


@contextlib.contextmanager
def _locked(checkpoint: Path) -> Iterator[None]:
    """Hold the checkpoint's folder against a second export of it; a killed process lets go of it."""
    descriptor = os.open(checkpoint, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{checkpoint}: another process is consolidating it; wait for it to end") from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _appearing(target: Path, size: int) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place on success, and is gone on failure."""
    temporary, old = target.with_name(f".{target.name}.tmp"), target.with_name(f".{target.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process: the lock says nobody else's
    temporary.mkdir(parents=True)
    try:
        _check_space(target.parent, size)
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        records.sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise UserError(
            f"{folder}: {free / 1e9:.2f} GB free where the export needs {(size + _SPARE) / 1e9:.2f} GB; "
            "free some space, or export in bf16"
        )


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot write the export ({error}); choose a writable folder") from error


def _percentages(step: int, total: int, report: Report) -> writer.Progress:
    """Return a counter of bytes that reports every tenth of the total."""
    done = reported = 0

    def written(count: int) -> None:
        nonlocal done, reported
        done += count
        if (tenths := 10 * done // total) > reported:
            reported = tenths
            report(f"{step_name(step)}: {10 * tenths} % of {total / 1e9:.2f} GB")

    return written
