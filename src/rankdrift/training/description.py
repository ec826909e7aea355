"""What a run says of itself before it trains: settings, environment, what trains and on what."""

from __future__ import annotations

import logging
import shutil
import socket
from collections import Counter
from typing import Any

from transformers import PreTrainedModel

from rankdrift import files
from rankdrift.layout import RunLayout
from rankdrift.training import collectives
from rankdrift.training.parts import bring_folder
from rankdrift.training.setup import Setup

logger = logging.getLogger(__name__)


def describe(setup: Setup, model: PreTrainedModel) -> None:
    """Write on rank 0 what the run is: settings, environment, what an export needs besides weights."""
    run, hosts = setup.run, collectives.gather(socket.gethostname())
    if collectives.rank() == 0:
        files.write_json(run.spec, setup.spec.as_dict())
        files.write_json(run.identity, setup.identity)
        files.write_json(run.facts, _facts(setup, model))
        files.write_json(run.ds_config, setup.config)
        files.write_json(run.environment, {**files.environment(), "ranks": len(hosts), "hosts": hosts})
        run.model.mkdir(parents=True, exist_ok=True)
        setup.method.save_config(model, run.model)
        if setup.method.take_up and not setup.start:
            _keep_start(setup, model)
        setup.tokenizer.save_pretrained(run.model)
    collectives.barrier()
    if setup.method.take_up and not setup.start:
        setup.places.on_leaders(lambda: _forget_start(setup))
        bring_folder(setup.run.initial_adapter, setup.places)


def _keep_start(setup: Setup, model: Any) -> None:
    """Write the adapter as it is before training, whole or not at all: no update can be told without it."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    scratch = setup.run.initial_adapter.with_suffix(".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    tensors = {name: value.contiguous() for name, value in get_peft_model_state_dict(model).items()}
    save_file(tensors, scratch / "adapter_model.safetensors", {"format": "pt"})
    shutil.copy(setup.run.model / "adapter_config.json", scratch)
    shutil.rmtree(setup.run.initial_adapter, ignore_errors=True)  # of a run that has not come to a checkpoint
    scratch.rename(setup.run.initial_adapter)


def _forget_start(setup: Setup) -> None:
    """Remove what other machines have of a run that has not come to a checkpoint."""
    if collectives.rank():
        shutil.rmtree(setup.run.initial_adapter, ignore_errors=True)


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
