"""What one export of a checkpoint holds: a model folder, an adapter folder, or a merged model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError, did_you_mean
from rankdrift.export import merge, peft_names, safetensors_writer
from rankdrift.export.initial_adapter import as_plain_lora
from rankdrift.export.safetensors_writer import Weight
from rankdrift.layout import INITIAL_ADAPTER, RunLayout
from rankdrift.zero_checkpoint.manifest import Manifest
from rankdrift.zero_checkpoint.shards import ShardedCheckpoint, open_checkpoint

MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
NOT_ADAPTERS = {ADAPTER_CONFIG, MODEL_CONFIG, GENERATION_CONFIG}
COPIED = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.jinja")
"""Files of a tokenizer, by the names transformers gives them."""
SHARD_SIZE = 5 * 10**9  # bytes a weights file, the usual size on model hubs


@dataclass(frozen=True)
class Options:
    """What kind of export is wanted."""

    dtype: str = "fp32"
    """Of the weights: fp32 (the masters as they are), bf16 or fp16 (rounded once)."""
    shard_size: int = SHARD_SIZE
    """Bytes a weights file of a model at most; a larger tensor gets a file of its own."""
    merge: bool = False
    """A whole model of a LoRA run, in place of its adapter."""

    def __post_init__(self) -> None:
        if self.dtype not in safetensors_writer.DTYPES:
            raise UserError(
                f"unknown dtype '{self.dtype}': {did_you_mean(self.dtype, safetensors_writer.DTYPES)}"
            )
        if self.shard_size < 1:
            raise UserError(f"shard size {self.shard_size}: give at least one byte")

    def target(self, run: RunLayout, step: int) -> Path:
        """Return the folder that the export of a step becomes."""
        return run.merged(step) if self.merge else run.export(step)


@dataclass(frozen=True)
class Export:
    """What one export will hold."""

    checkpoint: ShardedCheckpoint
    options: Options
    config_name: str
    config: Mapping[str, Any]
    copied: Mapping[str, Path]
    """Files taken over as they are: tokenizer, generation config."""
    files: Mapping[str, Mapping[str, Weight]]
    """Weights files: tensors by their names on disk."""

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        tensors = (tensor for file in self.files.values() for tensor in file.values())
        return sum(
            safetensors_writer.size_of(tensor, safetensors_writer.DTYPES[self.options.dtype])
            for tensor in tensors
        )


def plan(run: RunLayout, manifest: Manifest, options: Options) -> Export:
    """Return what an export will hold; only indices and headers are read.

    Raises UserError where the run's ``model`` folder is missing or the adapter cannot be merged,
    IntegrityError where the checkpoint or the base model is not what it was.
    """
    checkpoint = open_checkpoint(run.checkpoint(manifest.step))
    adapter = (run.model / ADAPTER_CONFIG).exists()
    if options.merge and not adapter:
        raise UserError(f"{run.root}: no LoRA run, its exports are whole models already; leave out --merge")
    if options.merge:
        return _merged(run, manifest, checkpoint, options)
    if adapter:
        return _adapter(run.model, checkpoint, options, _files_of(run.model, NOT_ADAPTERS), manifest.base)
    if not (run.model / MODEL_CONFIG).exists():
        raise UserError(f"{run.model}: no config.json or adapter_config.json; copy the run's folder whole")
    return _model(run.model, checkpoint, options, _files_of(run.model, without={MODEL_CONFIG}))


def plan_folder(settings: Path, checkpoint: ShardedCheckpoint, options: Options) -> Export:
    """Return what an export of a checkpoint that no run of ours wrote will hold; raises as :func:`plan`.

    Beside its settings lie files that belong to the training: of others only the tokenizer's are taken over.
    """
    copied = {path.name: path for pattern in COPIED for path in sorted(settings.glob(pattern))}
    if (settings / ADAPTER_CONFIG).exists():
        return _adapter(settings, checkpoint, options, copied)
    if (settings / GENERATION_CONFIG).exists():
        copied[GENERATION_CONFIG] = settings / GENERATION_CONFIG
    return _model(settings, checkpoint, options, copied)


def _model(
    settings: Path, checkpoint: ShardedCheckpoint, options: Options, copied: Mapping[str, Path]
) -> Export:
    config = files.read_json(settings / MODEL_CONFIG)
    tensors: dict[str, Weight] = dict(checkpoint.tensors)
    if config.get("tie_word_embeddings") is False:  # loading would not tie them again
        tensors.update({alias: tensors[owner] for alias, owner in checkpoint.aliases.items()})
    return Export(
        checkpoint=checkpoint,
        options=options,
        config_name=MODEL_CONFIG,
        config=_with_dtype(config, options.dtype),
        copied=copied,
        files=_model_files(tensors, options),
    )


def _adapter(
    settings: Path,
    checkpoint: ShardedCheckpoint,
    options: Options,
    copied: Mapping[str, Path],
    base: str | None = None,
) -> Export:
    path = settings / ADAPTER_CONFIG
    config = {**files.read_json(path), **({"base_model_name_or_path": base} if base else {})}
    peft_names.check_config(config, path)
    stored = peft_names.adapter_tensors(checkpoint.tensors, checkpoint.folder)
    tensors, config = as_plain_lora(stored, config, settings)
    return Export(
        checkpoint=checkpoint,
        options=options,
        config_name=ADAPTER_CONFIG,
        config=config,
        copied=copied,
        files={"adapter_model.safetensors": tensors},
    )


def _merged(run: RunLayout, manifest: Manifest, checkpoint: ShardedCheckpoint, options: Options) -> Export:
    base = Path(manifest.base)
    _check_base(base, manifest)
    settings = run.model / ADAPTER_CONFIG
    stated = files.read_json(settings)
    task = stated.get("task_type")
    source = run.model if (run.model / MODEL_CONFIG).exists() else base
    if source is base and task != "CAUSAL_LM":
        raise UserError(f"{run.model}: no config.json, which a merged {task} model needs; leave out --merge")
    stored = peft_names.adapter_tensors(checkpoint.tensors, checkpoint.folder)
    tensors, adapter = as_plain_lora(stored, stated, run.model)
    model = merge.merged_model(tensors, adapter, settings, base, merge.architecture(source, task))
    config = _with_dtype(files.read_json(source / MODEL_CONFIG), options.dtype)
    copied = _files_of(run.model, without={ADAPTER_CONFIG, MODEL_CONFIG, "README.md"})
    if (base / GENERATION_CONFIG).exists():
        copied.setdefault(GENERATION_CONFIG, base / GENERATION_CONFIG)
    return Export(
        checkpoint=checkpoint,
        options=options,
        config_name=MODEL_CONFIG,
        config=config | ({"tie_word_embeddings": False} if model.untied else {}),
        copied=copied,
        files=_model_files(model.tensors, options),
    )


def _check_base(base: Path, manifest: Manifest) -> None:
    if not base.is_dir():
        raise UserError(f"{base}: the base model of this run is not there; put it back, or do not merge")
    found = files.weights_digest(base)
    if found != manifest.base_digest:
        raise IntegrityError(
            f"{base}: its weights are not those the run started from (digest {found[:12]}, was "
            f"{manifest.base_digest[:12]}); restore them, or export the adapter alone (without --merge)"
        )


def _files_of(folder: Path, without: set[str]) -> dict[str, Path]:
    """Return all files below a folder but some, by their names relative to it."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path
        for name, path in sorted(files.items())
        if name not in without and not name.startswith(f"{INITIAL_ADAPTER}/")
    }


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the model's configuration with the dtype of the exported weights, in which they are loaded."""
    kept = {key: value for key, value in config.items() if key != "torch_dtype"}
    return {**kept, "dtype": str(safetensors_writer.DTYPES[dtype]).removeprefix("torch.")}


def _model_files(tensors: Mapping[str, Weight], options: Options) -> dict[str, dict[str, Weight]]:
    parts = safetensors_writer.split(tensors, safetensors_writer.DTYPES[options.dtype], options.shard_size)
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{n:05d}-of-{len(parts):05d}.safetensors": part for n, part in enumerate(parts, start=1)}
