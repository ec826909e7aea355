"""EVA: LoRA whose A begins as leading directions of what a layer reads (Paischer et al., arXiv 2410.07170).

B is 0, so that the run begins as the base. Every module keeps its rank: none is moved between modules. The
directions are those of all inputs at once, which need no criterion of convergence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankdrift.errors import UserError
from rankdrift.methods import lora
from rankdrift.settings import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(lora.Settings):
    """Settings of EVA."""

    name: str = "eva"
    rows: PositiveInt = 32
    """Training rows whose tokens are looked at, put through the model at once."""


def prepare(model: PreTrainedModel, settings: Settings, base: Path, rows: Mapping[str, Tensor]) -> Any:
    """Return the model with adapters whose A are the directions of their inputs on some rows.

    An embedding reads tokens, which have no directions: its adapter begins as LoRA's.
    """
    import torch
    from peft.tuners.lora import Linear

    prepared: Any = lora.prepare(model, settings, base)
    modules: dict[str, Any] = dict(prepared.named_modules())
    layers: dict[str, Any] = {name: each for name, each in modules.items() if isinstance(each, Linear)}
    reading = _Reading(rows["attention_mask"].bool(), settings.adapter_rank)
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: reading.read(name, given[0]))
        for name, layer in layers.items()
    ]
    network = prepared.get_base_model()
    if network.get_output_embeddings() not in layers.values():
        network = network.base_model  # no logits are made that nobody reads
    with torch.no_grad():
        network.eval()(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            begun = layer.lora_A["default"].weight
            begun.copy_(reading.of(name, len(begun)))
    return prepared


@dataclass
class _Reading:
    """The leading directions of what layers read; those that are given the same tensor share theirs."""

    is_token: Tensor
    """Shape (rows, tokens): false where a row is filled up."""
    most: int
    """How many directions are kept."""
    found: dict[str, Tensor] = field(default_factory=dict)
    last: tuple[Tensor, Tensor] | None = None
    """What was given last, and its directions."""

    def read(self, name: str, given: Tensor) -> None:
        """Take up what a layer is given, shape (rows, tokens, inputs)."""
        if self.last is None or self.last[0] is not given:
            self.last = given, directions(given[self.is_token].double(), self.most)
        self.found[name] = self.last[1]

    def of(self, name: str, count: int) -> Tensor:
        """Return a layer's directions, shape (count, inputs); raise UserError where there are fewer."""
        found = self.found[name]
        if len(found) < count:
            raise UserError(
                f"method.rank={count}: the inputs of '{name}' have {len(found)} directions on the rows that "
                "method.rows says; raise it, or lower the rank"
            )
        return found[:count]


def directions(inputs: Tensor, most: int) -> Tensor:
    """Return the leading principal directions of inputs, orthonormal rows, the largest variance first.

    Parameters
    ----------
    inputs
        Shape (tokens, width), in float64.
    most
        How many at most; there are fewer where the inputs, less their mean, have a lower rank.

    Returns
    -------
    Tensor
        Shape (directions, width). The largest entry of each is positive: the sign is nobody's.

    """
    import torch

    centred = inputs - inputs.mean(0)
    wide = centred.shape[0] < centred.shape[1]
    gram = centred @ centred.T if wide else centred.T @ centred
    variances, vectors = torch.linalg.eigh(gram)  # ascending
    rank = int((variances > variances[-1] * 1e-12).sum()) if variances[-1] > 0 else 0
    leading = vectors.flip(1)[:, : min(rank, most)]
    rows = (centred.T @ leading if wide else leading).T
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign()


METHOD = replace(
    lora.METHOD, name="eva", settings=Settings, prepare=prepare, reads=lambda settings: settings.rows
)
