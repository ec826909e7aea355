"""Gradients of encoders' classification heads, which read the first token, against rows one by one; those of
next tokens of causal models alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf

from rankdrift.analysis.contract import Params
from rankdrift.analysis.measures.checkpoint_gradients import ANALYSIS
from rankdrift.analysis.sources.differentiable import open_model
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import UserError
from rankdrift.models.families import Cell, cell_of

LENGTHS = (5, 3, 8, 5, 12, 4, 8, 5, 3, 6)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"vocab_size": 60, "num_labels": 3, "max_position_embeddings": 20}


def class_rows() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    ids = [generator.integers(3, SIZES["vocab_size"], size=length).tolist() for length in LENGTHS]
    return pd.DataFrame({"task": "topic", "input_ids": ids, "labels": [[i % 3] for i in range(len(ids))]})


def mean_loss_gradient(model: hf.PreTrainedModel, rows: pd.DataFrame) -> torch.Tensor:
    """Autograd of transformers' own loss, a row at a time, so that nothing is padded."""
    for row in rows.itertuples():
        loss = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor(row.labels)).loss
        (loss / len(rows)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        (hf.BertForSequenceClassification, hf.BertConfig(**SIZES, initializer_range=0.2)),
        (hf.RobertaForSequenceClassification, hf.RobertaConfig(**SIZES, initializer_range=0.2)),
    ],
)
def test_a_head_on_the_first_token_is_given_no_padding(
    tmp_path: Path, architecture: type[hf.PreTrainedModel], config: hf.PreTrainedConfig
) -> None:
    """Padded on the left, BERT's head would read padding; RoBERTa counts positions from its padding token."""
    torch.manual_seed(0)
    model, rows, inputs = architecture(config).eval(), class_rows(), tmp_path / "rows.parquet"
    model.save_pretrained(tmp_path / "model")
    rows.to_parquet(inputs)
    subject = Subject("run", "full", 0, ("topic",), 1, 5, base=tmp_path / "model", tuned=tmp_path / "model")
    table = ANALYSIS.compute(subject, Params(cache=tmp_path, gradient_inputs=inputs))["checkpoint_gradients"]
    row = table[table["level"] == "global"].iloc[0]
    expected = mean_loss_gradient(model, rows)
    assert row["l2_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    assert row["mean_abs"] * row["numel"] == pytest.approx(float(expected.abs().sum()), rel=1e-4)
    assert sorted(table["layer"].unique()) == [-1, 0, 1]


BART_SIZES = {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
BART_SIZES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 20}
XLM_SIZES = {"vocab_size": 60, "emb_dim": 32, "n_layers": 2, "n_heads": 4}


def depends_on_what_follows(model: hf.PreTrainedModel) -> bool:
    """Whether the first token's logits change with the last token: the definition of not being causal."""
    with torch.no_grad():
        one, other = (model(input_ids=torch.tensor([[5, 9, 17, last]])).logits[0, 0] for last in (20, 21))
    return not torch.equal(one, other)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES)), "bert"),
        (lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES)), "roberta"),
        (lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(**XLM_SIZES)), "xlm"),
    ],
)
def test_a_model_that_sees_what_follows_has_no_next_token_gradients(
    tmp_path: Path, model: Callable[[], hf.PreTrainedModel], name: str
) -> None:
    made = model().eval()
    assert depends_on_what_follows(made)
    made.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path}: a model of type '{name}' sees the tokens it would"):
        open_model(tmp_path, None, classifies=False)


@pytest.mark.parametrize(
    "model",
    [
        lambda: hf.BertLMHeadModel(hf.BertConfig(**SIZES, is_decoder=True)),
        lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(**XLM_SIZES, causal=True)),
        lambda: hf.BartForCausalLM(hf.BartConfig(**BART_SIZES)),
    ],
    ids=["bert", "xlm", "bart"],
)
def test_families_of_masked_heads_may_be_causal(
    tmp_path: Path, model: Callable[[], hf.PreTrainedModel]
) -> None:
    model().save_pretrained(tmp_path)
    assert not depends_on_what_follows(open_model(tmp_path, None, classifies=False).model)


def test_a_whole_sequence_to_sequence_model_is_not_said_to_see_what_follows(tmp_path: Path) -> None:
    """Its decoder is causal; transformers finds no embedding for it, which lies outside it."""
    hf.BartForConditionalGeneration(hf.BartConfig(**BART_SIZES)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lm_head\.weight, model\.decoder\.embed_tokens\.weight missing"):
        open_model(tmp_path, None, classifies=False)


@pytest.mark.parametrize(
    ("parameter", "cell"),
    [
        ("bert.encoder.layer.7.attention.self.query.weight", Cell(7, "attention")),
        ("bert.encoder.layer.7.attention.output.LayerNorm.weight", Cell(7, "norm")),
        ("roberta.encoder.layer.0.intermediate.dense.weight", Cell(0, "mlp")),
        ("roberta.embeddings.LayerNorm.bias", Cell(-1, "norm")),
        ("bert.embeddings.word_embeddings.weight", Cell(-1, "embed")),
        ("classifier.out_proj.weight", Cell(-1, "head")),
    ],
)
def test_encoders_have_the_cells_of_decoders(parameter: str, cell: Cell) -> None:
    assert cell_of(parameter) == cell
