"""The gradient probe's sums and cells, without ranks."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from rankdrift.models.families import Cell, cell_of
from rankdrift.training.probes._levels import Levels
from rankdrift.training.probes.gradients import _statistics, shard_sums


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("model.layers.11.self_attn.q_proj.weight", Cell(11, "attention", "")),
        ("model.layers.0.mlp.down_proj.weight", Cell(0, "mlp", "")),
        ("model.layers.3.post_attention_layernorm.weight", Cell(3, "norm", "")),
        ("model.norm.weight", Cell(-1, "norm", "")),
        ("transformer.h.1.ln_2.weight", Cell(1, "norm", "")),
        ("bert.encoder.layer.3.output.LayerNorm.weight", Cell(3, "norm", "")),
        ("model.embed_tokens.weight", Cell(-1, "embed", "")),
        ("lm_head.weight", Cell(-1, "head", "")),
        ("score.weight", Cell(-1, "head", "")),
        ("base_model.model.score.modules_to_save.default.weight", Cell(-1, "head", "")),
        ("base_model.model.model.layers.2.self_attn.v_proj.lora_A.default.weight", Cell(2, "attention", "A")),
        ("base_model.model.model.layers.2.mlp.up_proj.lora_B.default.weight", Cell(2, "mlp", "B")),
        ("base_model.model.model.embed_tokens.lora_embedding_B.default", Cell(-1, "embed", "B")),
    ],
)
def test_cells(name: str, cell: Cell) -> None:
    assert cell_of(name) == cell


def test_statistics_of_parts_add_up_to_numpys_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, generator=generator) + 0.3 for n in (7, 50, 13)]
    parts[1][:20] = 0
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    totals = shard_sums(parts).numpy()
    table = _statistics(Levels(names, single=True), np.array([7, 50, 13]), totals)
    rows = pd.DataFrame(table).set_index(["level", "layer", "group", "parameter"])
    for key, members in {
        ("parameter", 0, "mlp", names[1]): parts[1:2],
        ("cell", 0, "mlp", ""): parts[1:2],
        ("layer", 0, "", ""): parts[:2],
        ("group", -1, "head", ""): parts[2:],
        ("global", -1, "", ""): parts,
    }.items():
        whole = torch.cat(members).double().numpy()
        found = rows.loc[key]
        assert found["numel"] == whole.size
        assert found["l2_norm"] == pytest.approx(np.linalg.norm(whole))
        assert found["mean_abs"] == pytest.approx(np.abs(whole).mean())
        assert found["std"] == pytest.approx(whole.std())
        assert found["zero_fraction"] == pytest.approx((whole == 0).mean())


def test_a_constant_gradient_has_no_spread() -> None:
    sums = shard_sums([torch.full((3,), 0.1)]).numpy()
    columns = _statistics(Levels(["model.layers.0.mlp.up_proj.weight"]), np.array([3]), sums)
    found = pd.DataFrame(columns).iloc[0]
    # the two terms of the variance cancel: the root of fp32's eps times the mean is left
    assert found["std"] == pytest.approx(0.0, abs=5e-4 * 0.1)
    assert math.isclose(found["l2_norm"], 0.1 * math.sqrt(3), rel_tol=1e-6)
