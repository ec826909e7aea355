"""A run with all that can be checked before its model is loaded: names, data, DeepSpeed's configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rankdrift import files, registry
from rankdrift.data.batches import plan_micro_batches
from rankdrift.data.dataset import TrainingData, load_training_data
from rankdrift.data.identity import resolved_precision, run_identity
from rankdrift.data.length import with_steps
from rankdrift.data.tokens import losses
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.methods import Method
from rankdrift.models.base import config_of, hidden_size, load_tokenizer, resolve, stated_context
from rankdrift.models.compiled import require_compiler
from rankdrift.models.direction import padding_side
from rankdrift.models.liger import require_liger
from rankdrift.models.packing import why_not
from rankdrift.spec import Spec, TrainingSpec
from rankdrift.spec.identity import digest
from rankdrift.training import collectives, ds_config, engine, resume_check
from rankdrift.training.memory import memory_of_device
from rankdrift.training.mirrors import kinds
from rankdrift.training.places import TOGETHER, Places
from rankdrift.training.selection import require_logged
from rankdrift.zero_checkpoint.manifest import Manifest

logger = logging.getLogger(__name__)

ROWS_ON_CPU = 8
"""Rows at once where nobody has said how many."""


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
    packs: bool
    """Whether the rows of a micro-batch lie end to end (``models.packing``)."""
    places: Places = TOGETHER
    """Which ranks share the run's folder."""
    start: int = 0
    """The step of the checkpoint that it goes on from; 0 where there is none."""


def set_up(spec: Spec, run: RunLayout, config_path: Path, ranks: int | None = None) -> Setup:
    """Resolve names, read the data and merge the configuration; raise UserError for what cannot be.

    It is for the ranks of the process group, or for so many of which there is no group yet.
    """
    training, world_size = spec.training, ranks or collectives.world_size()
    precision = resolved_precision(spec)
    rows = _rows_at_once(training)
    micro, accumulation = plan_micro_batches(training.global_batch, rows, world_size)
    plan = ds_config.BatchPlan(micro, accumulation, world_size)
    base = resolve(spec.model.name, spec.model.revision)
    config, notes = ds_config.merge(spec, config_path, plan, precision, engine.zero_keys(), hidden_size(base))
    engine.require_nvme(config)
    if spec.model.compile:
        _require_compilable(ds_config.stage_of(config))
    if spec.model.liger:
        require_liger(config_of(base))
    for kind in kinds(training.mirrors):
        kind.require()
    for note in notes:
        logger.warning(note)
    logger.info("global batch %d = %s", training.global_batch, plan)
    tokenizer = load_tokenizer(base)
    data = load_training_data(spec, tokenizer, padding_side(config_of(base)))
    spec = with_steps(spec, data.order, data.lengths)
    _require_selected(spec)
    _warn_of_losses(data, spec.data.max_length)
    _require_room(training.micro_batch_tokens, data)
    _require_rows(training.global_batch, data)
    _require_context(data, base)
    identity = run_identity(spec, data.train, base)
    manifest = Manifest(
        step=0,
        data_position=0,
        seed=spec.seed,
        world_size=world_size,
        zero_stage=ds_config.stage_of(config),
        method=spec.method.name,
        precision=precision,
        spec_digest=digest(identity),
        base=str(base),
        base_digest=identity["base model"],
    )
    method: Method = registry.load("method", spec.method.name)
    _require_possible(method, spec, config, precision)
    environment = {**files.environment(), "ranks": world_size}
    under = resume_check.conditions(environment, config, spec.as_dict())
    packs = _packs(spec, base)
    return Setup(spec, run, method, base, tokenizer, data, plan, config, identity, manifest, under, packs)


def _require_selected(spec: Spec) -> None:
    """Raise UserError where the value that selects is never logged."""
    tasks = [registry.load("task", name) for name in spec.data.tasks]
    if problem := require_logged(spec.training, {task.name: task.metrics for task in tasks}):
        raise UserError(problem)


def _require_possible(method: Method, spec: Spec, config: dict[str, Any], precision: str) -> None:
    """Raise UserError where a method cannot be what it is with the other settings."""
    if spec.model.liger and method.reads(spec.method):
        raise UserError(
            f"method.name={method.name}: it puts rows through the model on a CPU before it trains, for which "
            "model.liger has no kernels; leave model.liger off"
        )
    if method.allocates:
        _require_masters(config, precision)


def _require_masters(config: dict[str, Any], precision: str) -> None:
    """Raise UserError where a method that allocates cannot see every master beside its gradient."""
    remedy = "use zero_optimization.stage 1, 2 or 3 with masters in memory"
    if ds_config.stage_of(config) == 0 and precision != "fp32":
        raise UserError(
            f"training.precision={precision} at ZeRO stage 0: masters lie apart from their gradients, and a "
            f"rank cannot be allocated by both; {remedy}"
        )
    offload = config["zero_optimization"].get("offload_optimizer") or {}
    if offload.get("device") == "nvme" or offload.get("ratio", 1.0) < 1:
        raise UserError(
            "zero_optimization.offload_optimizer: a rank is allocated by all masters, which are not in one "
            f"place where they are offloaded to NVMe, or in part; {remedy}"
        )


def _rows_at_once(training: TrainingSpec) -> int:
    """Return the most rows of a micro-batch: where they are yet to be found, what DeepSpeed is to be told."""
    if training.micro_batch != "auto":
        return training.micro_batch
    if memory_of_device():
        return training.global_batch
    logger.info("training.micro_batch=auto is %d on a CPU", ROWS_ON_CPU)
    return ROWS_ON_CPU


def _require_compilable(stage: int) -> None:
    """Raise UserError where blocks cannot be compiled."""
    if stage == 3:
        raise UserError(
            "model.compile: at ZeRO stage 3 the parts of a block are gathered while it runs, which cannot be "
            "compiled; use stage 0, 1 or 2, or leave it off"
        )
    require_compiler()


def _require_room(micro_batch_tokens: int | None, data: TrainingData) -> None:
    """Raise UserError where a row alone is above the budget of a micro-batch."""
    longest = int(data.lengths.max())
    if micro_batch_tokens is not None and micro_batch_tokens < longest:
        raise UserError(
            f"training.micro_batch_tokens={micro_batch_tokens} has no room for the longest row, of {longest} "
            f"tokens; set it to at least {longest}, or lower data.max_length"
        )


def _require_rows(global_batch: int, data: TrainingData) -> None:
    """Raise UserError where a step would have rows twice."""
    if len(data.train) < global_batch:
        raise UserError(
            f"training.global_batch={global_batch}, but there are {len(data.train)} training rows: a step "
            f"would have rows twice; set it to at most {len(data.train)}, or train on more rows"
        )


def _require_context(data: TrainingData, base: Path) -> None:
    """Raise UserError where a row is longer than what the model reads."""
    longest, room = int(data.lengths.max()), stated_context(base)
    if room is not None and longest > room:
        raise UserError(
            f"data.max_length: the longest row has {longest} tokens, and {base} reads {room} at most; set it "
            f"to {room} or less"
        )


def _packs(spec: Spec, base: Path) -> bool:
    """Return whether rows are packed; raise UserError where they have to be and cannot."""
    packing = spec.training.packing
    if packing == "off":
        return False
    obstacle = why_not(config_of(base), spec.model.attention, spec.model.head)
    if obstacle and packing == "on":
        raise UserError(f"training.packing=on: {obstacle}; use packing=auto, which fills rows up instead")
    if obstacle:
        logger.info("rows are filled up to the longest of a micro-batch, not packed: %s", obstacle)
    return obstacle is None


def _warn_of_losses(data: TrainingData, max_length: int) -> None:
    """Warn of rows that lose tokens, or are lost."""
    for split, rows in (("train", data.train), ("validation", data.validation)):
        for line in losses(rows.counts, split, max_length):
            logger.warning(line)
