"""Turn a run's sharded checkpoints into folders that plain transformers and peft load.

Weights are streamed from the shards to the file; ``provenance.json`` is written last and says what an
export was made from, so that the same export is not made twice.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError
from rankdrift.export import contents, safetensors_writer
from rankdrift.export.atomic_folder import appearing, disk_errors, locked, restore
from rankdrift.export.contents import Export, Options
from rankdrift.layout import RunLayout, step_name
from rankdrift.progress import byte_lines
from rankdrift.zero_checkpoint.checksums import stored_file
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps, sync_tree
from rankdrift.zero_checkpoint.storage_sums import StorageSums

FORMAT = 2
PROVENANCE_NAME = "provenance.json"
DEFAULTS = Options()

Report = Callable[[str], None]  # takes one line for the user


def silent(line: str) -> None:
    """Report nothing."""


def consolidate(run: RunLayout, step: int, options: Options = DEFAULTS, progress: Report = silent) -> Path:
    """Export one checkpoint to ``exports/step-NNNNNN`` (merged: ``merged/step-NNNNNN``); return that folder.

    Full fine-tuning gives ``config.json`` and ``model.safetensors`` (several files and an index beyond
    ``options.shard_size``), LoRA gives ``adapter_config.json`` and ``adapter_model.safetensors``, merged LoRA
    a model as full fine-tuning does. Weights are the fp32 masters, rounded once. An export made from the same
    inputs is kept.

    Raises UserError where the checkpoint is incomplete or of an unknown layout, ``model/`` is missing, the
    disk is too small or not writable, or another process is exporting the same step; IntegrityError where the
    checkpoint, or the base model to merge with, is damaged.
    """
    manifest = Manifest.read(run.checkpoint(step))
    target = options.target(run, step)
    with locked(run.checkpoint(step)), disk_errors(target.parent):
        restore(target)
        inputs = _inputs(run, manifest, options)
        if _is_current(target, inputs):
            progress(f"{step_name(step)}: up to date")
            return target
        export = contents.plan(run, manifest, options)
        with appearing(target, export.size) as folder:
            outputs = write_export(export, folder, written_bytes(step, export.size, progress))
            _require_same(run.checkpoint(step), manifest)
            files.write_json(folder / PROVENANCE_NAME, _provenance(run, manifest, export, inputs, outputs))
    progress(f"{step_name(step)}: {target}")
    return target


def consolidate_run(
    run: RunLayout,
    steps: Sequence[int] | None = None,
    options: Options = DEFAULTS,
    jobs: int = 1,
    progress: Report = silent,
) -> list[Path]:
    """Export the given steps, or every step whose checkpoint is whole; return their folders.

    ``jobs`` processes share the steps; more than one say a line for each step that is done.
    """
    chosen = list(steps) if steps else complete_steps(run.checkpoints)
    if not chosen:
        raise UserError(f"{run.checkpoints}: no complete checkpoint; train with this run folder first")
    if min(jobs, len(chosen)) == 1:
        return [consolidate(run, step, options, progress) for step in chosen]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(chosen)), spawn) as pool:
        futures = {step: pool.submit(consolidate, run, step, options) for step in chosen}
        try:
            for step, future in futures.items():
                progress(f"{step_name(step)}: {future.result()}")
        finally:  # the first failure ends what has not begun
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures.values()]


def write_export(export: Export, folder: Path, written: safetensors_writer.Progress) -> dict[str, Any]:
    """Fill the folder; return each file's size and checksum. What is read is compared with its CRC-32."""
    for name, source in export.copied.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    files.write_json(folder / export.config_name, export.config)
    if len(export.files) > 1:
        weight_map = {name: file for file, tensors in export.files.items() for name in tensors}
        index = {"metadata": {"total_size": export.size}, "weight_map": weight_map}
        files.write_json(folder / "model.safetensors.index.json", index)
    stored = {path: stored_file(path) for path in folder.rglob("*") if path.is_file()}
    dtype, sums = safetensors_writer.DTYPES[export.options.dtype], StorageSums(export.checkpoint.sources)
    for name, tensors in export.files.items():
        stored[folder / name] = safetensors_writer.write_safetensors(
            folder / name, tensors, dtype, written, sums
        )
    sums.check()
    sync_tree(folder)
    return {
        path.relative_to(folder).as_posix(): dataclasses.asdict(file) for path, file in sorted(stored.items())
    }


def _require_same(checkpoint: Path, manifest: Manifest) -> None:
    """Raise where the files that were read are no longer those the manifest is of: the run may go on."""
    if Manifest.read(checkpoint) != manifest:
        raise IntegrityError(f"{checkpoint}: replaced while it was read; consolidate it again")


def _provenance(
    run: RunLayout,
    manifest: Manifest,
    export: Export,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "run": run.root.resolve().name,
        "step": manifest.step,
        "method": manifest.method,
        "merged": export.options.merge,
        "base": {"folder": manifest.base, "digest": manifest.base_digest},
        "spec_digest": manifest.spec_digest,
        "dtype": export.options.dtype,
        "tied": dict(export.checkpoint.aliases),
        "inputs": inputs,
        "outputs": outputs,
        "checkpoint": dataclasses.asdict(manifest),
        "environment": files.environment(),
    }


def _inputs(run: RunLayout, manifest: Manifest, options: Options) -> dict[str, Any]:
    """Return what an export is made from; an export that states the same is up to date."""
    if not run.model.is_dir():
        raise UserError(f"{run.model}: no such folder; it holds the configuration that an export needs")
    model = {path.name: files.digest_file(path) for path in run.model.rglob("*") if path.is_file()}
    return {
        "format": FORMAT,
        "options": dataclasses.asdict(options),
        "checkpoint": files.digest_json(dataclasses.asdict(manifest)),
        "model": files.digest_json(model),
    }


def _is_current(export: Path, inputs: Mapping[str, Any]) -> bool:
    if not (export / PROVENANCE_NAME).exists():
        return False
    provenance = files.read_json(export / PROVENANCE_NAME)
    if provenance.get("inputs") != inputs:
        return False
    sizes = {export / name: output["size"] for name, output in provenance["outputs"].items()}
    return all(path.exists() and path.stat().st_size == size for path, size in sizes.items())


def written_bytes(step: int, total: int, report: Report) -> safetensors_writer.Progress:
    """Return a counter of bytes that reports how far a long export is."""
    done, say = 0, byte_lines(report, step_name(step))

    def written(count: int) -> None:
        nonlocal done
        done += count
        say(done, total)

    return written
