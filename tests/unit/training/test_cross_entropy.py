"""Losses and their derivatives against torch's, and what they make on their way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from rankdrift.training import cross_entropy as module
from rankdrift.training.cross_entropy import cross_entropies

TARGETS, CLASSES = 37, 50


@pytest.fixture(params=[1, 5 * CLASSES, 2**24], ids=["one at a time", "five", "all"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", request.param)


def drawn(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (9 * torch.randn(TARGETS, CLASSES, generator=generator)).to(dtype).requires_grad_()
    weights = torch.rand(TARGETS, generator=generator)
    return logits, torch.randint(CLASSES, (TARGETS,), generator=generator), weights


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(
    ("dtype", "loss_error", "gradient_error"),
    [(torch.float64, 1e-14, 1e-14), (torch.float32, 1e-6, 1e-6), (torch.bfloat16, 1e-6, 2**-8)],
)
def test_losses_and_gradients_are_torchs_in_double_precision(
    dtype: torch.dtype, loss_error: float, gradient_error: float
) -> None:
    logits, targets, weights = drawn(dtype)
    exact = logits.detach().double().requires_grad_()
    expected = cross_entropy(exact, targets, reduction="none")
    (expected * weights).sum().backward()
    found = cross_entropies(logits, targets)
    (found * weights.to(found.dtype)).sum().backward()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=loss_error, atol=10 * loss_error)
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    # a probability near 1 leaves no more digits of what is missing to it than fp32 has of 1
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=gradient_error, atol=1e-6)


def test_a_class_that_cannot_be_has_no_gradient() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    loss = cross_entropies(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(0.6931472)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.5, -0.5, 0.0]]


def test_no_targets_have_no_loss() -> None:
    logits = torch.zeros(0, CLASSES, requires_grad=True)
    losses = cross_entropies(logits, torch.zeros(0, dtype=torch.int64))
    losses.sum().backward()
    assert losses.shape == (0,)


class Made(TorchDispatchMode):
    """Notes the dtypes of all tensors as large as the logits that operations return."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.dtypes = size, []  # type: list[torch.dtype]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.numel() >= self.size:
            self.dtypes.append(made.dtype)
        return made


def test_nothing_in_fp32_is_as_large_as_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 5 * CLASSES)
    logits, targets, _ = drawn(torch.bfloat16)
    with Made(TARGETS * CLASSES) as made:
        cross_entropies(logits, targets).sum().backward()
    assert made.dtypes, "the gradient is as large"
    assert set(made.dtypes) == {torch.bfloat16}
    with Made(TARGETS * CLASSES) as usual:
        cross_entropy(logits.float(), targets).backward()
    assert torch.float32 in usual.dtypes
