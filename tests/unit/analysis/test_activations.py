"""Which tokens' states are kept, how rows are batched, whose rows they are; and models without their head."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from rankdrift.analysis.sources import activations
from rankdrift.analysis.sources.activations import States, TokenRows
from rankdrift.analysis.sources.models import load_backbone

WIDTH = 32
SIZES = {"vocab_size": 60, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 40}


@pytest.mark.parametrize(
    ("length", "share", "positions"),
    [(3, 5, [0, 1, 2]), (3, 3, [0, 1, 2]), (10, 1, [5]), (10, 2, [2, 7]), (7, 3, [1, 3, 5])],
)
def test_tokens_kept_are_the_middles_of_equal_parts(length: int, share: int, positions: list[int]):
    rows = TokenRows(Path("rows"), ((0,) * length,) * 4)
    assert rows.kept_tokens(share) == [positions] * 4  # 4 d tokens over 4 rows: d each


def test_the_tokens_kept_do_not_grow_with_the_inputs():
    kept = TokenRows(Path("rows"), ((0,) * 50,) * 40).kept_tokens(32)
    assert sum(map(len, kept)) == 3 * 40 <= 4 * 32
    assert sum(map(len, TokenRows(Path("rows"), ((0,) * 50,) * 400).kept_tokens(32))) == 400


def test_every_token_belongs_to_its_input(tmp_path: Path):
    states = States(tmp_path / "states.npy", TokenRows(tmp_path, ((1, 2), (3,), (4, 5, 6))))
    np.save(states.path, np.zeros((2, 3 + 3 + 6, WIDTH), dtype=np.float32))
    assert states.inputs_of("token").tolist() == [0, 0, 1, 2, 2, 2]
    assert states.inputs_of("mean").tolist() == states.inputs_of("last_token").tolist() == [0, 1, 2]


def test_padding_is_not_averaged_even_where_it_is_not_a_number():
    hidden = torch.tensor([[[float("nan")], [1.0], [3.0]], [[5.0], [6.0], [10.0]]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert activations.mean_over_tokens(hidden, mask).tolist() == [[2.0], [7.0]]


def test_batches_hold_every_row_once_within_the_budget(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activations, "BATCH_TOKENS", 20)
    lengths = [9, 2, 30, 1, 5, 5, 12, 3]
    batches = list(activations.length_batches(lengths))
    assert sorted(itertools.chain(*batches)) == list(range(8))
    assert all(len(each) * max(lengths[i] for i in each) <= 20 for each in batches if 2 not in each)
    assert batches[0] == [3, 1, 7, 4]


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        (hf.LlamaModel, hf.LlamaConfig(**SIZES)),
        (hf.BertModel, hf.BertConfig(**SIZES)),
        (hf.RobertaModel, hf.RobertaConfig(**SIZES, pad_token_id=1)),
        (hf.OPTModel, hf.OPTConfig(**SIZES, word_embed_proj_dim=WIDTH, ffn_dim=48, pad_token_id=1)),
    ],
)
def test_padding_moves_no_positions(
    tmp_path: Path, architecture: type[hf.PreTrainedModel], config: hf.PreTrainedConfig
) -> None:
    """The library's own states of each row alone; RoBERTa counts positions from behind its padding token."""
    torch.manual_seed(0)
    model = architecture(config).eval()
    inputs = TokenRows(tmp_path, ((5, 9, 17, 30, 8), (44, 3), (7,), (21, 2, 50, 51, 52, 53, 54)))
    states = States(tmp_path / "states.npy", inputs)
    activations.record_states(model, inputs, states.path)
    kept, start = inputs.kept_tokens(WIDTH), 0
    for row, positions in zip(inputs.rows, kept, strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[1][0]
        found = states.rows(1, "token")[start : start + len(positions)]
        torch.testing.assert_close(found, alone[positions], rtol=1e-4, atol=1e-5)
        start += len(positions)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [(hf.BertForMaskedLM, hf.BertConfig(**SIZES)), (hf.RobertaForMaskedLM, hf.RobertaConfig(**SIZES))],
)
def test_an_encoder_needs_no_pooler(
    tmp_path: Path, architecture: type[hf.PreTrainedModel], config: hf.PreTrainedConfig
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
