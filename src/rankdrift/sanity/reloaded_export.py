"""Whether a run's last checkpoint, consolidated, is the trained model to plain transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rankdrift.data.dataset import num_labels
from rankdrift.errors import IntegrityError, UserError
from rankdrift.export.consolidate import consolidate
from rankdrift.export.contents import ADAPTER_CONFIG
from rankdrift.layout import RunLayout
from rankdrift.models.base import resolve
from rankdrift.models.direction import pooled_at_the_end
from rankdrift.sanity.observing import Answer
from rankdrift.spec import Spec
from rankdrift.training import collectives
from rankdrift.verify.reload import ROUNDING
from rankdrift.verify.verify import Verdict, find, verify
from rankdrift.zero_checkpoint.manifest import complete_steps


def check_export(spec: Spec, run: RunLayout, trained: Answer) -> str:
    """Return how far the export's logits are from the trained model's; raise UserError beyond rounding.

    Parameters
    ----------
    spec
        The run's settings.
    run
        Its folder, with a checkpoint of the weights that ``trained`` is of.
    trained
        What the model in training answered; the one that is loaded computes in the same arithmetic.

    """
    steps = complete_steps(run.checkpoints)
    if not steps:
        raise UserError("the run left no complete checkpoint")
    export = consolidate(run, steps[-1])
    _verify(run)
    found = _plain_logits(spec, export, trained)
    largest = float(trained.logits.abs().max())
    difference = float((found - trained.logits).abs().max())
    allowed = largest * max(ROUNDING, 8 * torch.finfo(trained.dtype).eps)
    figures = f"logits differ by {difference:.2g} of {largest:.2g} (rounding may make {allowed:.2g})"
    if not difference <= allowed:  # NaN, too
        raise IntegrityError(f"the export of step {steps[-1]} is not the trained model: {figures}")
    kind = "adapter" if (export / ADAPTER_CONFIG).is_file() else "model"
    return f"step {steps[-1]} saved, consolidated and verified; reloaded {kind}'s {figures}"


def _verify(run: RunLayout) -> None:
    """Raise IntegrityError, with the first line that says so, where the checkpoint or export is damaged."""
    lines: list[str] = []
    if verify(find(run.root, lines.append), lines.append) != Verdict.WELL:
        wrong = next(line for line in lines if "DAMAGED" in line or "CANNOT BE CHECKED" in line)
        raise IntegrityError(wrong.strip().replace(f"{run.root}/", ""))


def _plain_logits(spec: Spec, export: Path, asked: Answer) -> Tensor:
    classifies = spec.model.head == "classifier"
    auto: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    if (export / ADAPTER_CONFIG).is_file():
        options = {"num_labels": num_labels(spec)} if classifies else {}
        base = auto.from_pretrained(
            resolve(spec.model.name, spec.model.revision), dtype=torch.float32, **options
        )
        model: Any = PeftModel.from_pretrained(base, str(export))
    else:
        model = auto.from_pretrained(export, dtype=torch.float32)
    model = model.to(collectives.device(), asked.dtype).eval()
    moved = {name: value.to(collectives.device()) for name, value in asked.inputs.items()}
    with torch.no_grad(), pooled_at_the_end(model.config):
        logits: Tensor = model(**moved).logits.float().cpu()
    return logits
