"""In which direction a model sees: only back (causal), or both ways (encoders)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # seconds, for those who ask no model
    from transformers import PreTrainedConfig

NO_TOKEN = -1


def is_bidirectional(config: PreTrainedConfig) -> bool:
    """Return whether a token's state is computed from those after it as well.

    Of the families that have a masked LM head, those are causal that are configured as decoders (XLM calls it
    ``causal``), and the decoders of sequence-to-sequence models.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    causal = any(getattr(config, name, False) for name in ("is_decoder", "causal", "is_encoder_decoder"))
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not causal


def padding_side(config: PreTrainedConfig) -> Literal["left", "right"]:
    """Return where batches are padded: see ``data.batches.padded``."""
    return "right" if is_bidirectional(config) else "left"


@contextmanager
def pooled_at_the_end(config: PreTrainedConfig) -> Iterator[None]:
    """Let a decoder's head read the last column, where every row that is padded on the left ends.

    transformers has it read the last token that is not ``pad_token_id``, which is another one where a prompt
    ends in that token. For as long as no token is the padding token it reads the last column. The heads of
    encoders, whose rows are padded on the right, read the first column whatever is set.
    """
    text: Any = config.get_text_config()
    pad_id, text.pad_token_id = text.pad_token_id, NO_TOKEN
    try:
        yield
    finally:
        text.pad_token_id = pad_id
