"""Which cache a model keeps of the tokens it has read, and rows taken out of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Return whether a model's cache holds keys and values of tokens, and nothing else.

    Then rows may be padded on the left, go on from one another's tokens, and leave a batch. The states of
    recurrent layers are made of all tokens, the padding's among them, which no mask can hide. What the
    configuration says of the layers is not asked: the cache that one pass over one token leaves is what
    counts.
    """
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    cache = getattr(model(input_ids=token, use_cache=True), "past_key_values", None)
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    return isinstance(cache, Cache) and all(type(layer) in known for layer in cache.layers)


def rows_of(cache: Cache, rows: Sequence[int]) -> Cache:
    """Return a cache of some rows, any of them several times; the given one stays as it is."""
    taken = copy.copy(cache)
    taken.layers = [copy.copy(layer) for layer in cache.layers]
    taken.batch_select_indices(torch.tensor(rows))
    return taken
