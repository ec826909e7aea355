"""Turn a sharded checkpoint of the Hugging Face Trainer or of accelerate into a model or adapter folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.export import contents
from rankdrift.export.atomic_folder import appearing, disk_errors, locked, restore
from rankdrift.export.consolidate import (
    DEFAULTS,
    PROVENANCE_NAME,
    Report,
    silent,
    write_export,
    written_bytes,
)
from rankdrift.export.contents import Options
from rankdrift.zero_checkpoint.shards import open_checkpoint
from rankdrift.zero_checkpoint.trainer_folder import SETTINGS, TrainerFolder

TARGET = "consolidated"
"""Folder of the export, below the checkpoint's, unless another is named."""


def consolidate_folder(
    source: TrainerFolder,
    target: Path | None = None,
    model: Path | None = None,
    options: Options = DEFAULTS,
    progress: Report = silent,
) -> Path:
    """Export the fp32 masters of a checkpoint with the settings and tokenizer beside it; return the folder.

    Parameters
    ----------
    source
        The checkpoint.
    target
        The folder that the export becomes; ``consolidated`` in the checkpoint's unless it is given.
    model
        Where ``config.json`` or ``adapter_config.json`` and the tokenizer are; beside the shards by default.
    options
        Format and size of the weights files; an adapter is exported as one, not merged.
    progress
        Takes one line for the user.

    Raises
    ------
    UserError
        Where there are no settings, the layout is not known, or the disk is too small.
    IntegrityError
        Where shards are missing or damaged.

    """
    settings, target = model or source.folder, target or source.folder / TARGET
    if not any((settings / name).is_file() for name in SETTINGS):
        raise UserError(
            f"{source.folder}: no config.json or adapter_config.json beside the shards; name the folder "
            "of the model it was trained from with --model"
        )
    if options.merge:
        raise UserError(
            f"{source.folder}: --merge needs a run's folder; export the adapter, merge it with peft"
        )
    with locked(source.shards), disk_errors(target.parent):
        restore(target)
        inputs = {"options": dataclasses.asdict(options), "shards": files.fingerprint(source.shards)}
        if _is_current(target, inputs):
            progress(f"{target}: up to date")
            return target
        export = contents.plan_folder(settings, open_checkpoint(source.shards), options)
        progress(f"{source.shards}: fp32 masters, {export.size / 1e9:.2f} GB as {options.dtype}")
        with appearing(target, export.size) as folder:
            outputs = write_export(export, folder, written_bytes(source.step, export.size, progress))
            stated: dict[str, Any] = {"step": source.step, "inputs": inputs, "outputs": outputs}
            stated |= {"tied": dict(export.checkpoint.aliases), "dtype": options.dtype}
            files.write_json(folder / PROVENANCE_NAME, stated | {"environment": files.environment()})
    progress(f"{target}: written")
    return target


def _is_current(target: Path, inputs: dict[str, Any]) -> bool:
    provenance = target / PROVENANCE_NAME
    return provenance.is_file() and files.read_json(provenance).get("inputs") == inputs
