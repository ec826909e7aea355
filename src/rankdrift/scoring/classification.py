"""Classification: the log-likelihood of every class for every prompt, from the LM head or a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from rankdrift.data.batches import padded
from rankdrift.errors import UserError
from rankdrift.models.direction import padding_side
from rankdrift.scoring.batches import batches_by_length
from rankdrift.scoring.continuations import shared_stems

Tokens = tuple[int, ...]


@torch.inference_mode()
def choice_log_likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    choices: Sequence[Tokens],
    pad_id: int,
    batch_size: int,
) -> NDArray[np.float64]:
    """Return log p(choice | prompt) = sum over the choice's tokens, in nats, for an LM head.

    The sum is not divided by the choice's length: every choice is a whole answer, and their likelihoods
    are what the model assigns (lm-evaluation-harness calls the argmax ``acc``, not ``acc_norm``).
    Logits are made at the positions that predict a choice's tokens only, and one pass over a prompt
    serves every choice it can: all single-token ones, for instance.

    Parameters
    ----------
    model
        A causal language model in evaluation mode.
    prompts
        Token ids of each prompt, none empty.
    choices
        Token ids of each choice, none empty.
    pad_id
        Padding token.
    batch_size
        Prompts passed at once.

    Returns
    -------
    array
        Shape (prompts, choices), float64, from log-softmax in fp32.

    """
    result = np.full((len(prompts), len(choices)), np.nan)
    for stem, served in shared_stems(choices).items():
        for rows in batches_by_length(prompts, batch_size):
            batch = padded([prompts[row] + stem for row in rows], pad_id, "left", model.device)
            logits = model(**batch, use_cache=False, logits_to_keep=len(stem) + 1).logits
            log_probs = logits.float().log_softmax(-1)  # (rows, len(stem) + 1, vocabulary)
            for choice in served:
                tokens = torch.tensor(choices[choice], device=model.device)
                steps = torch.arange(len(tokens), device=model.device)
                result[rows, choice] = log_probs[:, steps, tokens].double().sum(-1).cpu().numpy()
    return result


@torch.inference_mode()
def class_log_likelihoods(
    model: PreTrainedModel, prompts: Sequence[Tokens], pad_id: int, batch_size: int
) -> NDArray[np.float64]:
    """Return log p(class | prompt) of a model with a classification head, in nats.

    Returns
    -------
    array
        Shape (prompts, classes), float64, from log-softmax in fp32.

    Raises
    ------
    UserError
        If a prompt ends in the padding token: transformers would read the class off another position.

    """
    # the heads of encoders read their first token, those of decoders the last one that is no padding
    ending = [number for number, prompt in enumerate(prompts) if prompt[-1] == pad_id]
    if ending:
        raise UserError(
            f"prompt {ending[0]} ends in the padding token {pad_id}; choose another padding token"
        )
    side = padding_side(model.config)
    result: dict[int, NDArray[np.float64]] = {}
    for rows in batches_by_length(prompts, batch_size):
        batch = padded([prompts[row] for row in rows], pad_id, side, model.device)
        log_probs = model(**batch, use_cache=False).logits.float().log_softmax(-1)
        result |= dict(zip(rows, log_probs.double().cpu().numpy(), strict=True))
    return np.stack([result[row] for row in range(len(prompts))])
