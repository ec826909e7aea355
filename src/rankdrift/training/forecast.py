"""What a run is expected to take, from its settings, its data and its model's shapes; and what it took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from rankdrift import files
from rankdrift.data.batches import own_micro_batches
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.methods import lora
from rankdrift.models.base import config_of, load_model, stored_dtype
from rankdrift.planning.activations import (
    Architecture,
    Pass,
    Trained,
    architecture_of,
    block_gradient_bytes,
    kept_bytes,
    loss_bytes,
)
from rankdrift.planning.batches import Batches, batches_of
from rankdrift.planning.disk import Disk, export_bytes
from rankdrift.planning.forecast import Forecast
from rankdrift.planning.memory import STAGES, Machine, Zero, rank_memory
from rankdrift.planning.parameters import ModelSize, size_of, trained_parts
from rankdrift.spec import Spec
from rankdrift.training import checkpointing
from rankdrift.training.ds_config import stage_of
from rankdrift.training.memory import resident
from rankdrift.training.saves import saves
from rankdrift.training.setup import Setup, set_up
from rankdrift.zero_checkpoint.manifest import Manifest, newest

EXACT = frozenset({"llama", "mistral", "qwen2", "smollm3"})
"""``model_type`` of families whose blocks are those that the formula of activations is of."""


def foresee(spec: Spec, config_path: Path, ranks: int, baseline: int | None = None) -> Forecast:
    """Return what a run would take on so many ranks; nothing of it is written, and its weights are not read.

    ``baseline`` is that of another run, once a model has been in this process. Raises UserError for settings,
    data and configurations that training would refuse.
    """
    import rankdrift.training.run  # noqa: F401 - what a rank has in memory before its model is in this process too

    setup = set_up(spec, StudyLayout(spec.study_root).run(spec.run_name), config_path, ranks)
    empty = resident() if baseline is None else baseline
    return forecast(setup, _unread_model(setup), empty)


def _unread_model(setup: Setup) -> nn.Module:
    """Return the prepared model, its weights mapped as they are stored: of none of them more than its shape.

    Where a method starts with a decomposition of weights, or with rows of the data, an adapter of the same
    shape stands for it.
    """
    model = load_model(setup.base, setup.spec.model, setup.data.num_labels, stored_dtype(setup.base))
    settings: Any = setup.spec.method
    if setup.method.take_up or setup.method.reads(settings):
        return lora.prepare(model, settings, setup.base, init_lora_weights=False)
    return setup.method.prepare(model, settings, setup.base)


def forecast(setup: Setup, model: nn.Module, baseline: int) -> Forecast:
    """Return what a run is expected to take.

    Parameters
    ----------
    setup
        The run.
    model
        Prepared by its method, not yet in the engine; its shapes and what trains are looked at.
    baseline
        Bytes of the process before it had a model.

    """
    spec, size, stage = setup.spec, size_of(model), stage_of(setup.config)
    weight = 2 if setup.manifest.precision == "bf16" else 4
    batches = _batches(setup)
    config = config_of(setup.base)
    activations = _activations(setup, model, config, batches, weight)
    machine = Machine(batches.ranks, torch.cuda.is_available())
    memory = {
        each: rank_memory(
            size, _zero(setup.config, each), machine, weight, activations, batches.accumulation > 1
        )
        for each in STAGES
        if each or weight == 4  # stage 0 in bf16 is run as stage 1
    }
    return Forecast(
        run=spec.run_name,
        settings=spec.as_dict(),
        method=spec.method.name,
        precision=setup.manifest.precision,
        batches=batches,
        size=size,
        stage=stage,
        stages=memory,
        baseline=baseline,
        is_gpu=machine.is_gpu,
        disk=_disk(setup, size, stage, weight),
        notes=tuple(_notes(setup, config, machine)),
    )


def keep(run: RunLayout, found: Forecast) -> None:
    """Write what a run is expected to take into its folder, where its settings are already."""
    predicted = {key: value for key, value in found.as_dict().items() if key != "settings"}
    files.write_json(run.forecast, {"predicted": predicted, "measured": None})


def add_measured(run: RunLayout, **took: float | None) -> None:
    """Add to what a run that is done took: ``took`` by name, GiB, beside what is there already."""
    if not run.forecast.exists():
        return
    kept = files.read_json(run.forecast)
    files.write_json(run.forecast, {**kept, "measured": {**(kept["measured"] or {}), **took}})


def stored_bytes(run: RunLayout) -> int | None:
    """Return the bytes of a run's last checkpoint; None without one."""
    last = newest(run.checkpoints)
    stored = Manifest.read_part(run.checkpoint(last)).files.values() if last else ()
    return sum(file.size for file in stored) or None


def _batches(setup: Setup) -> Batches:
    data, training = setup.data, setup.spec.training
    longest = int(data.lengths.max())
    budget = training.micro_batch_tokens or setup.plan.micro_batch * longest
    if training.micro_batch == "auto" and torch.cuda.is_available():
        budget = longest  # a row at once is what it begins with

    def cut(step: int, rank: int) -> list[Any]:
        window = data.order.rows(step)
        return own_micro_batches(window, data.lengths, rank, setup.plan.world_size, budget, setup.packs)

    makes_text = setup.spec.model.head == "lm"
    return batches_of(data, training.steps, setup.plan.world_size, setup.packs, makes_text, cut)


def _activations(
    setup: Setup, model: nn.Module, config: PreTrainedConfig, batches: Batches, weight: int
) -> int:
    """Return the most that a micro-batch keeps, with what its loss and its largest backward pass add."""
    shape = _architecture(setup, config)
    trained = trained_parts(model, shape.layers)
    return max(_of_pass(shape, trained, setup, tokens, places, weight) for tokens, places in batches.at_once)


def _of_pass(
    shape: Architecture, trained: Trained, setup: Setup, tokens: int, places: int, weight: int
) -> int:
    one = Pass(tokens, places, setup.packs, setup.spec.model.gradient_checkpointing)
    kept = kept_bytes(shape, trained, one, weight)
    return kept + max(loss_bytes(shape, one, weight), block_gradient_bytes(shape, tokens, weight))


def _architecture(setup: Setup, config: PreTrainedConfig) -> Architecture:
    try:
        shape = architecture_of(config)
    except KeyError as error:
        raise UserError(
            f"{setup.base}: its configuration has no {error.args[0]}, from which memory is planned; this "
            "model's memory can be measured alone (training.steps=2)"
        ) from None
    if setup.spec.model.head == "classifier":
        return replace(shape, vocabulary=setup.data.num_labels)
    return shape


def _zero(config: dict[str, Any], stage: int) -> Zero:
    """Return a configuration's knobs as they would be at a stage."""
    zero = config["zero_optimization"]
    devices = {
        key: (zero.get(key) or {}).get("device", "none") for key in ("offload_optimizer", "offload_param")
    }
    default = Zero(stage)
    return Zero(
        stage=stage,
        bucket=int(zero.get("reduce_bucket_size", default.bucket)),
        overlap=bool(zero.get("overlap_comm")) and stage in (1, 2),  # stage 3 has one bucket all the same
        optimizer_on_host=stage > 0 and devices["offload_optimizer"] != "none",
        weights_on_host=stage == 3 and devices["offload_param"] != "none",
        live=int(zero.get("stage3_max_live_parameters", default.live)),
    )


def _disk(setup: Setup, size: ModelSize, stage: int, weight: int) -> Disk:
    is_adapter = setup.method.exclude_frozen
    frozen = (size.aliases if stage < 3 else 0) if is_adapter else size.frozen
    count = saves(setup.spec.training)
    # running means of what an allocation goes by, whole; every rank writes them at stage 3
    writers = setup.plan.world_size if stage == 3 else 1
    importances = 8 * size.trained * writers if setup.method.allocates else 0
    export = export_bytes(size, is_adapter)
    return Disk(
        checkpoint=checkpointing.predicted_bytes(size.trained, frozen, stage, weight) + importances,
        saves=count.written,
        kept=count.at_once,
        export=2 * export if setup.method.take_up else export,  # plain LoRA of twice the rank
        exports=count.kept,
    )


def _notes(setup: Setup, config: PreTrainedConfig, machine: Machine) -> list[str]:
    notes = []
    if config.get_text_config().model_type not in EXACT:
        notes.append(
            f"activations are estimated by Llama's blocks, which those of {config.model_type!r} are not"
        )
    if machine.is_gpu:
        notes.append("figures of a GPU are arithmetic alone: none of them has been measured")
        if setup.spec.training.micro_batch == "auto":
            notes.append(
                "micro_batch=auto: activations are those of one row, and grow to what there is room for"
            )
    if setup.spec.model.compile or setup.spec.model.liger:
        notes.append("fused kernels keep less than is counted")
    return notes
