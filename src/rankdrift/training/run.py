"""One run from its settings to its last step: resolve, data, model, engine, fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rankdrift.data.batches import labelled
from rankdrift.errors import UserError
from rankdrift.heartbeat.rank import Pulse
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.methods import lora
from rankdrift.models.base import load_model, stored_dtype
from rankdrift.models.compiled import compile_blocks
from rankdrift.models.liger import use_liger
from rankdrift.models.lora_products import join_products
from rankdrift.models.packing import pack_rows
from rankdrift.spec import Spec
from rankdrift.training import checkpointing, collectives, engine, forecast
from rankdrift.training.active_phases import ActivePhases
from rankdrift.training.callbacks import Callback
from rankdrift.training.callbacks.accounting import Accounting
from rankdrift.training.callbacks.allocation import Allocation
from rankdrift.training.callbacks.beating import Beating
from rankdrift.training.callbacks.evaluation import Evaluation
from rankdrift.training.callbacks.fitting import Fitting
from rankdrift.training.callbacks.guarding import Guarding
from rankdrift.training.callbacks.occupancy import Occupancy
from rankdrift.training.callbacks.probing import Probing
from rankdrift.training.callbacks.profiling import Profiling
from rankdrift.training.callbacks.recording import Recording
from rankdrift.training.callbacks.replay import Replay
from rankdrift.training.callbacks.requests import Asked
from rankdrift.training.callbacks.saving import Saving, require_space
from rankdrift.training.callbacks.stopping import Stopping
from rankdrift.training.callbacks.utilisation import Utilisation
from rankdrift.training.description import describe
from rankdrift.training.determinism import deterministic
from rankdrift.training.ds_config import stage_of
from rankdrift.training.in_use import Watch, watching
from rankdrift.training.journal import Journal, log_to
from rankdrift.training.memory import memory_of_device
from rankdrift.training.mirrors import kinds
from rankdrift.training.out_of_memory import explained
from rankdrift.training.parts import bring_folder
from rankdrift.training.places import common_folder, find_places
from rankdrift.training.same_code import require_same_code
from rankdrift.training.setup import Setup, set_up
from rankdrift.training.stop_requests import Requests
from rankdrift.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train(
    spec: Spec,
    config_path: Path,
    requests: Requests | None = None,
    further: Sequence[Callback] = (),
    pulse: Pulse | None = None,
) -> RunLayout:
    """Train one run to its last step, from its newest checkpoint if it has one.

    Every rank of a process group (``collectives.process_group``) must call it. It raises Preempted once it
    has stopped because it was asked to: by a signal, if it is given the requests that come so, or by a file.
    ``further`` callbacks come before the one that saves; ``pulse`` is this rank's where it is watched.
    """
    require_same_code()
    run = RunLayout(common_folder(StudyLayout(spec.study_root).run(spec.run_name).root))
    places = find_places(run.root)
    with collectives.alone_in(run.root, places.leads), deterministic(spec.training.deterministic):
        log_to(run.log if collectives.rank() == 0 else None)
        pulse = pulse or Pulse()
        pulse.train_in(run.root, spec.training.steps)
        setup = set_up(spec, run, config_path)
        start = checkpointing.require_resumable(run, setup.identity, places)
        setup = replace(setup, places=places, start=start)
        with explained(setup.spec, stage_of(setup.config), collectives.world_size()), watching() as watch:
            _fit(setup, requests or Requests(), further, watch, pulse)
    return run


def _fit(setup: Setup, requests: Requests, further: Sequence[Callback], watch: Watch, pulse: Pulse) -> None:
    """Train what can be trained, from where it stands."""
    run, spec = setup.run, setup.spec
    model = prepared_model(setup)
    describe(setup, model)
    if collectives.rank() == 0 and not setup.start:
        _foretell(setup, model, watch.baseline)
    phases = _phases(setup, model)
    under = engine.Engine(
        model, spec.training, setup.config, lambda name: setup.method.rate(name, spec.method), phases.of
    )
    start = checkpointing.resume(under, run, setup.places)
    require_space(setup, under, start)
    journal = _journal(setup, start) if collectives.rank() == 0 else None
    asked = Asked(requests)
    watching = (Guarding(), Profiling(), Probing(), Replay(), Utilisation(), Allocation())
    recording = (Occupancy(watch), Recording(), Accounting(), Evaluation(), *further, Stopping())
    beginning = (Beating(pulse), asked, Fitting(memory_of_device()))
    callbacks = (*beginning, *watching, *recording, Saving(asked))
    try:
        Trainer(setup, under, callbacks, start, journal, phases).fit()
    except UserError:
        if journal:
            journal.close()  # what led to it is to be seen
        raise


def _journal(setup: Setup, start: int) -> Journal:
    """Open the run's log, and the services that are shown it."""
    mirrors = [kind(setup.run, setup.spec) for kind in kinds(setup.spec.training.mirrors)]
    return Journal(setup.run, setup.spec.training.steps, start, mirrors)


def _foretell(setup: Setup, model: PreTrainedModel, baseline: int) -> None:
    """Keep what the run is expected to take, where that can be told, to be compared with what it takes."""
    try:
        forecast.keep(setup.run, forecast.forecast(setup, model, baseline))
    except UserError as error:
        logger.info("no forecast: %s", error)


def _by_its_method(setup: Setup, model: PreTrainedModel) -> PreTrainedModel:
    """Prepare the model, or take it up where the run goes on from what cannot be drawn again."""
    method, initial = setup.method, setup.run.initial_adapter
    if method.take_up is None or not setup.start:
        count = method.reads(setup.spec.method)
        if count and setup.start:  # which has how they began
            return lora.prepare(model, cast(lora.Settings, setup.spec.method), setup.base)
        rows = [_first_rows(setup, count)] if count else []
        return method.prepare(model, setup.spec.method, setup.base, *rows)
    bring_folder(initial, setup.places)
    if not initial.is_dir():
        raise UserError(
            f"{initial}: missing, and the checkpoints mean nothing without it; restore it, or train into "
            "another folder (study=NAME or output=FOLDER)"
        )
    return method.take_up(model, setup.spec.method, setup.base, initial)


def _first_rows(setup: Setup, count: int) -> dict[str, Tensor]:
    """Return the run's first rows; a classifier has no targets among its tokens."""
    data = setup.data
    steps = range(-(-count // setup.spec.training.global_batch))
    numbers = np.concatenate([data.order.rows(step) for step in steps])[:count]
    rows = labelled([data.train[number] for number in numbers], data.pad_id)
    return {key: value for key, value in rows.items() if key != "labels" or setup.spec.model.head == "lm"}


def _phases(setup: Setup, model: PreTrainedModel) -> ActivePhases:
    """Return which parameters train when; a new head does at every step."""
    names = [name for name, param in model.named_parameters() if param.requires_grad]
    method, new = setup.spec.method, getattr(model, "new_modules", ())
    rests = [name for name in names if setup.method.rests(name, method)]
    return ActivePhases(method.schedule, setup.spec.training.steps, names, new, rests)


def prepared_model(setup: Setup) -> PreTrainedModel:
    """Load the base and prepare it for the method."""
    spec = setup.spec
    # loaded in fp32, from which the engine casts. Where ranks take their parts out of the mapped file, as it
    # is stored: of a base in bf16 an fp32 copy would be twice as large, on every rank. A new head is fp32
    # what is left of a base weight needs fp32, and so does what the model makes of rows
    exact = setup.method.take_up is not None or setup.method.reads(spec.method) > 0
    as_stored = engine.divides(setup.config) and spec.model.head == "lm" and not exact
    dtype = stored_dtype(setup.base) if as_stored else torch.float32
    torch.manual_seed(spec.seed)
    model = load_model(setup.base, spec.model, setup.data.num_labels, dtype)
    if setup.packs:
        pack_rows(model)
    if spec.model.liger:
        use_liger(model)
    prepared = _by_its_method(setup, model)
    if spec.model.compile:
        compile_blocks(prepared)  # the compiler joins products as well
    elif stage_of(setup.config) < 3 and spec.model.gradient_checkpointing != "selective":
        join_products(prepared)  # not where parts of layers are gathered, nor where products are kept as made
    return prepared
