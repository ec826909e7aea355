"""Which cache a model keeps of the tokens it has read, and what can be done with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer


def cache_layers(model: PreTrainedModel) -> list[object]:
    """Return the layers of a model's cache, as one pass over one token leaves it; none if it keeps none.

    What a configuration says of its layers is not asked: the cache that the model makes is what counts.
    """
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    cache = getattr(model(input_ids=token, use_cache=True), "past_key_values", None)
    return list(cache.layers) if isinstance(cache, Cache) else []


def can_be_shared(layers: Sequence[object]) -> bool:
    """Return whether a cache may serve several rows that go on differently after gaps of padding.

    So may keys and values of all tokens. Sliding windows count columns, the padding's among them, and states
    of recurrent layers hold no tokens that a mask could hide.
    """
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def can_be_padded(layers: Sequence[object]) -> bool:
    """Return whether rows padded on the left may be generated with the cache, and rows taken out of it."""
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def rows_of(cache: Cache, rows: Sequence[int]) -> Cache:
    """Return a cache of some rows, any of them several times; the given one stays as it is."""
    taken = copy.copy(cache)
    taken.layers = [copy.copy(layer) for layer in cache.layers]
    taken.batch_select_indices(torch.tensor(rows))
    return taken
