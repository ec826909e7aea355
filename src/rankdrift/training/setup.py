"""A run with all that can be checked before its model is loaded: names, data, DeepSpeed's configuration."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankdrift import files, registry
from rankdrift.data.batches import BatchOrder, Side, plan_micro_batches
from rankdrift.data.dataset import load_rows
from rankdrift.data.identity import resolved_precision, run_identity
from rankdrift.data.tokens import TokenizedRows, losses
from rankdrift.layout import RunLayout
from rankdrift.methods import Method
from rankdrift.models.base import config_of, hidden_size, load_tokenizer, resolve
from rankdrift.models.direction import padding_side
from rankdrift.spec import Spec
from rankdrift.spec.identity import digest
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
    side: Side
    """Where it is put."""

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return what became of each task's rows, split by split: task -> split -> counts."""
        splits = {"train": self.train, "validation": self.validation}
        return {
            task: {split: asdict(rows.counts[task]) for split, rows in splits.items()}
            for task in self.train.counts
        }


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
    identity: dict[str, Any]
    """What makes the run the run it is (``spec.identity``)."""
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
    data = load_data(spec, tokenizer, padding_side(config_of(base)))
    _tell(data, spec.data.max_length)
    identity = run_identity(spec, data.train.rows, base)
    manifest = Manifest(
        step=0,
        data_position=0,
        seed=spec.seed,
        world_size=engine.world_size(),
        zero_stage=ds_config.stage_of(config),
        method=spec.method.name,
        precision=precision,
        spec_digest=digest(identity),
        base=str(base),
        base_digest=identity["base model"],
    )
    method: Method = registry.load("method", spec.method.name)
    environment = {**files.environment(), "ranks": engine.world_size()}
    under = resume_check.conditions(environment, config, spec.model.attention)
    return Setup(spec, run, method, base, tokenizer, data, plan, config, identity, manifest, under)


def _tell(data: TrainingData, max_length: int) -> None:
    """Warn of rows that lose tokens, or are lost."""
    for split, rows in (("train", data.train), ("validation", data.validation)):
        for line in losses(rows.counts, split, max_length):
            logger.warning(line)


def load_data(spec: Spec, tokenizer: PreTrainedTokenizerBase, side: Side) -> TrainingData:
    """Return the tokenised rows of both splits."""
    train_rows = load_rows(spec, "train", tokenizer)
    order = BatchOrder(len(train_rows.rows), spec.training.global_batch, spec.seed)
    lengths = np.array([len(row.input_ids) for row in train_rows.rows])
    validation = load_rows(spec, "validation", tokenizer)
    return TrainingData(train_rows, validation, order, lengths, tokenizer.pad_token_id, side)


def describe(setup: Setup, model: PreTrainedModel) -> None:
    """Write on rank 0 what the run is: settings, environment, what an export needs besides weights."""
    if engine.rank() == 0:
        run = setup.run
        files.write_json(run.spec, setup.spec.as_dict())
        files.write_json(run.identity, setup.identity)
        files.write_json(run.facts, _facts(setup, model))
        files.write_json(run.ds_config, setup.config)
        files.write_json(run.environment, {**files.environment(), "ranks": engine.world_size()})
        run.model.mkdir(parents=True, exist_ok=True)
        setup.method.save_config(model, run.model)
        setup.tokenizer.save_pretrained(run.model)
    engine.barrier()


def _say(run: RunLayout, line: str) -> None:
    logger.info(line)
    print(f"{run.root.name}: {line}", flush=True)


def _facts(setup: Setup, model: PreTrainedModel) -> dict[str, Any]:
    """Return what is trained, and on what, in numbers; and say it."""
    adapted = Counter(name.rpartition(".")[2] for name in setup.method.adapted(model))
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    total = sum(param.numel() for param in model.parameters())
    if adapted:
        kinds = ", ".join(f"{count} {kind}" for kind, count in adapted.items())
        _say(setup.run, f"{setup.spec.method.name} adapts {adapted.total()} modules: {kinds}")
    _say(setup.run, f"{trained:,} of {total:,} parameters train")
    return {
        "adapted_modules": dict(adapted),
        "adapted": adapted.total(),
        "trainable_parameters": trained,
        "parameters": total,
        "data": setup.data.counts(),
    }
