"""LoRA-GA: LoRA whose first step is near that of full fine-tuning (Wang et al., arXiv 2407.05000).

Of the gradient G = U S V^T of a weight (outputs, inputs) on some rows, A begins as the first r right singular
directions and B as the left ones from r + 1 to 2 r, both times outputs^(1/4) / sqrt(gamma); s B A is taken
out of the base weight. (PEFT's start of that name multiplies B by the gradient's singular values instead.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from rankdrift.errors import UserError
from rankdrift.methods import _subtracted, lora
from rankdrift.settings import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

CLEAR = 1e-10
"""Square of a singular value over that of the largest, above which its directions are exact to 1e-6."""
AT_ONCE = 4
"""Rows of one backward pass."""


class Settings(_subtracted.Settings):
    """Settings of LoRA-GA."""

    name: str = "lora_ga"
    rows: PositiveInt = 32
    """Training rows whose gradient is decomposed."""
    gamma: Annotated[float, Field(gt=0)] = 16.0
    """The start of the adapters is in proportion to 1 / gamma."""


def prepare(model: PreTrainedModel, settings: Settings, base: Path, rows: Mapping[str, Tensor]) -> Any:
    """Return the model with adapters along its gradient on some rows, the weights having the rest.

    An embedding's adapter begins as LoRA's. Raises UserError for a classification head, which is new: what
    gradients say of it is noise.
    """
    from peft.tuners.lora import Linear

    if "labels" not in rows:
        raise UserError("method.name=lora_ga begins from the gradient of a language model; set model.head=lm")
    prepared: Any = lora.prepare(model, settings, base)
    layers: Any = {name: layer for name, layer in prepared.named_modules() if isinstance(layer, Linear)}
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    start: dict[str, Tensor] = {}
    for name, gradient in gradients(prepared, weights, rows).items():
        turned = gradient.T if layers[name].fan_in_fan_out else gradient
        factors = factors_of(turned, layers[name].r["default"], settings.gamma, name)
        start |= {f"{name}.lora_{kind}.weight": value for kind, value in zip("AB", factors, strict=True)}
    _subtracted.begin(prepared, start)
    prepared.peft_config["default"].init_lora_weights = "lora_ga"
    return prepared


def gradients(model: Any, weights: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of the mean loss over the rows' targets, by the names of the weights."""
    import torch

    trains = {param: param.requires_grad for param in model.parameters()}
    model.eval().requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    total = int(_targets(rows).sum())
    with torch.enable_grad():
        for part in _parts(rows):
            (model(**part).loss * (int(_targets(part).sum()) / total)).backward()
    found = {name: weight.grad for name, weight in weights.items()}
    for param, trained in trains.items():
        param.grad = None
        param.requires_grad_(trained)
    return found  # type: ignore[return-value]  # each has one


def factors_of(gradient: Tensor, rank: int, gamma: float, name: str) -> tuple[Tensor, Tensor]:
    """Return A (rank, inputs) and B (outputs, rank) from a gradient (outputs, inputs), in its dtype.

    Raises UserError where the gradient has fewer than 2 rank singular directions.
    """

    if 2 * rank > min(gradient.shape):
        raise UserError(
            f"method.rank={rank}: LoRA-GA takes {2 * rank} singular directions of the gradient of '{name}', "
            f"which has {min(gradient.shape)}; choose at most {min(gradient.shape) // 2}"
        )
    left, right = _directions(gradient.double(), 2 * rank)
    size = gradient.shape[0] ** 0.25 / gamma**0.5
    return (size * right[:, :rank].T).to(gradient), (size * left[:, rank:]).to(gradient)


def _directions(gradient: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leading left and right singular directions in columns, fp64.

    Those of the shorter side are eigenvectors of a small matrix, six times as fast as all of them; where the
    gradient has fewer that count, all are taken, or the other side's would be noise that is not orthogonal.
    """
    import torch

    wide = gradient.shape[0] < gradient.shape[1]
    tall = gradient.T if wide else gradient
    squares, vectors = torch.linalg.eigh(tall.T @ tall)  # ascending
    if squares[-count] > squares[-1] * CLEAR:
        short = vectors.flip(1)[:, :count]
        long = tall @ short / squares.flip(0)[:count].sqrt()
    else:
        long, _, rows = torch.linalg.svd(tall, full_matrices=False)
        long, short = long[:, :count], rows[:count].T
    return (short, long) if wide else (long, short)


def _parts(rows: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for first in range(0, len(rows["input_ids"]), AT_ONCE):
        yield {key: value[first : first + AT_ONCE] for key, value in rows.items()}


def _targets(rows: Mapping[str, Tensor]) -> Tensor:
    return rows["labels"][:, 1:] >= 0


METHOD = replace(
    lora.METHOD,
    name="lora_ga",
    settings=Settings,
    prepare=prepare,
    learning_rate=1e-4,
    take_up=_subtracted.take_up,
    reads=lambda settings: settings.rows,
)
