"""Whether the base model can be loaded, is finite, and answers."""

from __future__ import annotations

import torch

from rankdrift.data.dataset import num_labels
from rankdrift.errors import UserError
from rankdrift.models.base import load_model, resolve
from rankdrift.spec import Spec

TOKENS = 8


def check_model(spec: Spec) -> str:
    """Return how large the model is; raise UserError for what is wrong with it."""
    base = resolve(spec.model.name, spec.model.revision)
    model = load_model(base, spec.model, num_labels(spec)).eval()
    for name, param in model.named_parameters():
        if not torch.isfinite(param).all():
            raise UserError(f"{base}: '{name}' holds NaN or infinity; get the model again")
    tokens = torch.arange(TOKENS).view(1, -1) % model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    if not torch.isfinite(logits).all():
        raise UserError(f"{base}: its logits are NaN or infinite in fp32; use another model")
    count = sum(param.numel() for param in model.parameters())
    return f"{type(model).__name__}, {count:,} parameters, all finite"
