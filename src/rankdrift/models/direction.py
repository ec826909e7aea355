"""In which direction a model sees: only back (causal), or both ways (encoders)."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES


def is_bidirectional(config: PreTrainedConfig) -> bool:
    """Return whether a token's state is computed from those after it as well.

    Of the families that have a masked LM head, those are causal that are configured as decoders (XLM calls it
    ``causal``), and the decoders of sequence-to-sequence models.
    """
    causal = any(getattr(config, name, False) for name in ("is_decoder", "causal", "is_encoder_decoder"))
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not causal


def padding_side(config: PreTrainedConfig) -> Literal["left", "right"]:
    """Return where batches are padded: see ``data.batches.padded``."""
    return "right" if is_bidirectional(config) else "left"
