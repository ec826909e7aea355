"""CKA of every pair of layers against CKA of the pair from sums over rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankdrift.analysis.mathematics.representation import layer_grid
from rankdrift.analysis.mathematics.representation.layer_grid import layer_grid_cka
from rankdrift.analysis.mathematics.representation.moments import CrossMoments, centred
from rankdrift.errors import UserError


def readers(*layers: torch.Tensor):
    return [lambda layer=layer: layer for layer in layers]


def layers(seed: int, count: int, n: int = 30, d: int = 9) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, d, generator=generator)
    return [first + index * torch.randn(n, d, generator=generator) + 5 for index in range(count)]


def pair_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = centred(x), centred(y)
    xx, xy, yy = (float(CrossMoments.of(a, b).hsic()) for a, b in ((x, x), (x, y), (y, y)))
    return xy / (xx * yy) ** 0.5


@pytest.mark.parametrize("elements", [2**18, 100, 1])
def test_every_pair_equals_the_pair_alone(monkeypatch: pytest.MonkeyPatch, elements: int):
    monkeypatch.setattr(layer_grid, "BLOCK_ELEMENTS", elements)
    base, tuned = layers(0, 3), [*layers(0, 2), layers(1, 1, d=4)[0], layers(2, 1)[0]]
    got = layer_grid_cka(readers(*base), readers(*tuned))
    assert got.shape == (3, 4)
    for i, x in enumerate(base):
        for j, y in enumerate(tuned):
            assert float(got[i, j]) == pytest.approx(pair_cka(x, y), rel=1e-10)


def test_a_constant_layer_is_like_none():
    got = layer_grid_cka(readers(*layers(0, 2)), readers(torch.full((30, 9), 0.1), layers(0, 1)[0]))
    assert np.isnan(got[:, 0]).all()
    assert got[0, 1] == pytest.approx(1)


def test_fewer_than_four_rows_are_refused():
    with pytest.raises(UserError, match="at least 4 inputs, got 3"):
        layer_grid_cka(readers(*layers(0, 1, n=3)), readers(*layers(1, 1, n=3)))
