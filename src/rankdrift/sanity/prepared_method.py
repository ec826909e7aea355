"""Whether a method trains as many elements as its settings say, by a count that does not ask PEFT."""

from __future__ import annotations

from typing import Any

import torch

from rankdrift import registry
from rankdrift.data.dataset import num_labels
from rankdrift.errors import UserError
from rankdrift.methods import Method, lora
from rankdrift.models.base import load_model, resolve
from rankdrift.sanity.expected_counts import expected_count
from rankdrift.sanity.plain_model import read_plain
from rankdrift.spec import Spec
from rankdrift.training.active_phases import ActivePhases


def check_method(spec: Spec) -> str:
    """Return how many elements train; raise UserError where they are others than the closed form says.

    The phases of the experiment are tried on the names of what trains as well.
    """
    base = resolve(spec.model.name, spec.model.revision)
    torch.manual_seed(spec.seed)
    model = load_model(base, spec.model, num_labels(spec))
    plain = read_plain(model)
    method: Method = registry.load("method", spec.method.name)
    # where rows decide how adapters begin, plain ones stand for them: they have the same shapes
    settings: Any = spec.method
    prepare: Any = lora.prepare if method.reads(settings) else method.prepare
    prepared = prepare(model, settings, base)
    trained = {name: param for name, param in prepared.named_parameters() if param.requires_grad}
    rests = [name for name in trained if method.rests(name, spec.method)]
    phases = ActivePhases(spec.method.schedule, spec.training.steps, trained, plain.new_modules, rests)
    found = sum(param.numel() for name, param in trained.items() if name not in rests)
    expected = expected_count(spec.method, plain)
    total = sum(param.numel() for param in prepared.parameters())
    if expected is not None and found != expected:
        raise UserError(
            f"{found:,} of {total:,} parameters train, {spec.method.name} has {expected:,} by the shapes of "
            f"the modules ({found - expected:+,}); look at what methods/{spec.method.name}.py marks"
        )
    how = "as by the shapes" if expected is not None else f"no closed form of {spec.method.name} is known"
    phased = f", in {len(phases.phases)} phases" if phases.scheduled else ""
    return f"{found:,} of {total:,} parameters train{phased}, {how}"
