"""A transformer without its head, from folders of models with any head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from rankdrift.analysis.sources.models import load_backbone

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"vocab_size": 60, "max_position_embeddings": 20}


@pytest.mark.parametrize(
    ("architecture", "config"),
    [(BertForMaskedLM, BertConfig(**SIZES)), (RobertaForMaskedLM, RobertaConfig(**SIZES))],
)
def test_an_encoder_needs_no_pooler(
    tmp_path: Path, architecture: type[PreTrainedModel], config: PreTrainedConfig
) -> None:
    """Its hidden states are the library's own, of the model that was saved, which has none."""
    torch.manual_seed(0)
    model, ids = architecture(config).eval(), torch.tensor([[5, 9, 17, 30, 8]])
    assert not any("pooler" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected, found = (
            each(input_ids=ids, output_hidden_states=True).hidden_states
            for each in (model, load_backbone(tmp_path))
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
