"""The loss: a sum over targets, so that shares of a global batch add up however it is cut.

The mean is taken once, over all targets of the global batch: with the mean of each micro-batch instead,
the result would depend on the cut (huggingface/transformers issue 34191).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from rankdrift.data.batches import IGNORED


def target_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy over the targets, in nats, fp32.

    Parameters
    ----------
    logits
        Shape (rows, positions, vocabulary): the last ``positions`` positions of each row, or
        (rows, classes) for a classification head.
    labels
        Shape (rows, length) with -100 where there is no target, or (rows,).

    """
    if labels.ndim == 1:
        return cross_entropy(logits.float(), labels.to(logits.device), reduction="sum")
    kept = logits.shape[1]
    following = labels[:, labels.shape[1] - kept + 1 :].to(logits.device)
    carries = following != IGNORED
    # only positions with a target are cast: the logits of a batch are its largest tensor
    return cross_entropy(logits[:, :-1][carries].float(), following[carries], reduction="sum")
