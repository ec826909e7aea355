"""A run with all that can be checked before its model is loaded: names, data, DeepSpeed's configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankdrift import files, registry
from rankdrift.data.batches import BatchOrder, plan_micro_batches
from rankdrift.data.dataset import load_rows
from rankdrift.data.tokens import TokenizedRows
from rankdrift.layout import RunLayout
from rankdrift.methods import Method
from rankdrift.models.base import hidden_size, load_tokenizer, resolve
from rankdrift.spec import Spec
from rankdrift.training import ds_config, engine, resume_check
from rankdrift.zero_checkpoint.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Rows of both splits, and the order of the training rows."""

    train: TokenizedRows
    validation: TokenizedRows
    order: BatchOrder
    lengths: np.ndarray
    """Tokens of every training row, shape (rows,)."""
    pad_id: int
    """Token that fills a row up; masked."""


@dataclass(frozen=True)
class Setup:
    """A run with all that can be checked before the model is loaded."""

    spec: Spec
    run: RunLayout
    method: Method
    base: Path
    tokenizer: PreTrainedTokenizerBase
    data: TrainingData
    plan: ds_config.BatchPlan
    config: dict[str, Any]
    """DeepSpeed's configuration, merged."""
    manifest: Manifest
    """What every checkpoint of this run states, at step 0."""
    conditions: dict[str, Any]
    """What its last bits depend on besides the experiment (``resume_check.conditions``)."""


def set_up(spec: Spec, run: RunLayout, config_path: Path) -> Setup:
    """Resolve names, read the data and merge the configuration; raise UserError for what cannot be."""
    training = spec.training
    precision = resolved_precision(spec)
    micro, accumulation = plan_micro_batches(training.global_batch, training.micro_batch, engine.world_size())
    plan = ds_config.BatchPlan(micro, accumulation, engine.world_size())
    base = resolve(spec.model.name, spec.model.revision)
    config, notes = ds_config.merge(spec, config_path, plan, precision, engine.zero_keys(), hidden_size(base))
    engine.require_nvme(config)
    for note in notes:
        logger.warning(note)
    logger.info("global batch %d = %s", training.global_batch, plan)
    tokenizer = load_tokenizer(base)
    manifest = Manifest(
        step=0,
        data_position=0,
        seed=spec.seed,
        world_size=engine.world_size(),
        zero_stage=ds_config.stage_of(config),
        method=spec.method.name,
        precision=precision,
        spec_digest=spec.digest(),
        base=str(base),
        base_digest=files.weights_digest(base),
    )
    method: Method = registry.load("method", spec.method.name)
    data = load_data(spec, tokenizer)
    under = resume_check.conditions({**files.environment(), "ranks": engine.world_size()}, config)
    return Setup(spec, run, method, base, tokenizer, data, plan, config, manifest, under)


def resolved_precision(spec: Spec) -> str:
    """Return "fp32" or "bf16": bf16 on a GPU and fp32 on a CPU unless the recipe says otherwise."""
    if spec.training.precision != "auto":
        return spec.training.precision
    return "bf16" if torch.cuda.is_available() else "fp32"


def load_data(spec: Spec, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    """Return the tokenised rows of both splits."""
    train_rows = load_rows(spec, "train", tokenizer)
    order = BatchOrder(len(train_rows.rows), spec.training.global_batch, spec.seed)
    lengths = np.array([len(row.input_ids) for row in train_rows.rows])
    validation = load_rows(spec, "validation", tokenizer)
    return TrainingData(train_rows, validation, order, lengths, tokenizer.pad_token_id)


def describe(setup: Setup, model: PreTrainedModel) -> None:
    """Write on rank 0 what the run is: settings, environment, what an export needs besides weights."""
    if engine.rank() == 0:
        run = setup.run
        files.write_json(run.spec, setup.spec.as_dict())
        files.write_json(run.ds_config, setup.config)
        files.write_json(run.environment, {**files.environment(), "ranks": engine.world_size()})
        run.model.mkdir(parents=True, exist_ok=True)
        setup.method.save_config(model, run.model)
        setup.tokenizer.save_pretrained(run.model)
    engine.barrier()
