"""LoRA's layers with fewer passes over memory, and one product by A for all layers that share an input.

PEFT computes ``base(x) + B(A(x)) * scaling`` layer by layer: a scaled copy and a sum of the output's size,
and an input gradient for each of the products. Here B's product is added to the base's output in place, input
gradients are added up by the products themselves, and the As of queries, keys and values, of gate and up, are
one matrix. Results differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are given the same input, as Llama and its like name them."""
ADAPTER = "default"


def join_products(model: nn.Module) -> int:
    """Let the adapted layers of a PEFT model compute so where they can; return how many do.

    A layer that drops inputs out, or that is not a plain LoRA of a plain linear layer, stays as it is.
    """
    if not hasattr(model, "peft_config"):
        return 0
    from peft.tuners.lora import Linear

    adapted = {name: layer for name, layer in model.named_modules() if type(layer) is Linear}
    plain = {name: layer for name, layer in adapted.items() if _is_plain(layer)}
    joined: set[str] = set()
    for name in plain:
        if name not in joined:
            mates = [mate for mate in _mates(name) if mate in plain]
            joined.update(mates)
            group = _Group([plain[mate] for mate in mates])
            for place, layer in enumerate(group.layers):
                layer.forward = _Forward(group, place, layer.forward)
    return len(joined)


def _is_plain(layer: Any) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and list(layer.lora_A) == [ADAPTER]
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and layer.lora_B[ADAPTER].bias is None
        and not layer.lora_variant
        and not any(param.requires_grad for param in base.parameters())
    )


def _mates(name: str) -> list[str]:
    """Return the names of the layers that share a layer's input, itself included."""
    parent, _, own = name.rpartition(".")
    found = next((group for group in SHARING if own in group), (own,))
    return [f"{parent}.{mate}" for mate in found]


@dataclass
class _Group:
    """Layers that share an input. The first that is called computes for all, the others take their own."""

    layers: list[Any]
    given: Tensor | None = None
    outputs: dict[int, Tensor] = field(default_factory=dict)
    """What has been computed of ``given``, and nobody has taken yet."""
    apart: bool = False
    """A layer was not called, or with another input: they share none."""

    def output(self, place: int, given: Tensor) -> Tensor:
        if self.given is not given or place not in self.outputs:
            self.apart = self.apart or bool(self.outputs)
            if self.apart:
                self.given, self.outputs = None, {}
                return self._computed([self.layers[place]], given)[0]
            self.given, self.outputs = given, dict(enumerate(self._computed(self.layers, given)))
        found = self.outputs.pop(place)
        if not self.outputs:
            self.given = None
        return found

    def _computed(self, layers: list[Any], given: Tensor) -> tuple[Tensor, ...]:
        weights = [layer.base_layer.weight for layer in layers]
        biases = [layer.base_layer.bias for layer in layers]
        downs = [layer.lora_A[ADAPTER].weight for layer in layers]
        ups = [layer.lora_B[ADAPTER].weight for layer in layers]
        scales = [layer.scaling[ADAPTER] for layer in layers]
        found: tuple[Tensor, ...] = _Adapted.apply(given, scales, biases, *weights, *downs, *ups)
        return found


class _Forward:
    """The forward of one layer; PEFT's own where an adapter is switched off, merged or of another dtype."""

    def __init__(self, group: _Group, place: int, own: Any) -> None:
        self.group, self.place, self.own = group, place, own

    def __call__(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        layer = self.group.layers[self.place]
        dtypes = {x.dtype, layer.base_layer.weight.dtype, layer.lora_A[ADAPTER].weight.dtype}
        switched = layer.disable_adapters or layer.merged or layer.active_adapters != [ADAPTER]
        if switched or arguments or options or len(dtypes) > 1 or torch.is_autocast_enabled(x.device.type):
            found: Tensor = self.own(x, *arguments, **options)
            return found
        return self.group.output(self.place, x)


class _Adapted(torch.autograd.Function):
    """y_i = x W_i^T + b_i + s_i x A_i^T B_i^T, with gradients of x, A and B; W and b are frozen.

    x has the shape (..., in), W_i (out_i, in), A_i (r_i, in), B_i (out_i, r_i).
    """

    @staticmethod
    def forward(
        ctx: Any, given: Tensor, scales: list[float], biases: list[Tensor | None], *matrices: Tensor
    ) -> tuple[Tensor, ...]:
        x = given.reshape(-1, given.shape[-1])
        weights, downs, ups = _thirds(matrices)
        low = x @ _stacked(downs).t()
        outputs = []
        for weight, bias, up, part, scale in zip(
            weights, biases, ups, _parts(low, downs), scales, strict=True
        ):
            output = linear(x, weight, bias).addmm_(part, up.t(), alpha=scale)
            outputs.append(output.view(*given.shape[:-1], -1))
        ctx.save_for_backward(x, low, *matrices)
        ctx.scales, ctx.shape = scales, given.shape
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        x, low, *matrices = ctx.saved_tensors
        weights, downs, ups = _thirds(matrices)
        gradients = [gradient.reshape(-1, gradient.shape[-1]) for gradient in upstream]
        backs = [
            (gradient @ up).mul_(scale)
            for gradient, up, scale in zip(gradients, ups, ctx.scales, strict=True)
        ]
        back = backs[0] if len(backs) == 1 else torch.cat(backs, dim=1)
        of_ups = [
            (gradient.t() @ part).mul_(scale)
            for gradient, part, scale in zip(gradients, _parts(low, downs), ctx.scales, strict=True)
        ]
        of_downs = (back.t() @ x).split([len(down) for down in downs])
        of_input = None
        if ctx.needs_input_grad[0]:
            total = back @ _stacked(downs)
            for gradient, weight in zip(gradients, weights, strict=True):
                total.addmm_(gradient, weight)
            of_input = total.view(ctx.shape)
        return (of_input, None, None, *[None] * len(weights), *of_downs, *of_ups)


def _thirds(matrices: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    count = len(matrices) // 3
    return matrices[:count], matrices[count : 2 * count], matrices[2 * count :]


def _stacked(downs: Sequence[Tensor]) -> Tensor:
    return downs[0] if len(downs) == 1 else torch.cat(list(downs))


def _parts(low: Tensor, downs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the columns of each layer's own A."""
    return low.split([len(down) for down in downs], dim=1)
