"""General text: loss as transformers gives it, divergences as SciPy gives them, batches change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.special import log_softmax, rel_entr, softmax
from transformers import Gemma2Config, Gemma2ForCausalLM

from rankdrift.data.general_text import TextWindow
from rankdrift.errors import UserError
from rankdrift.scoring import retention
from rankdrift.scoring.retention import GeneralText, Reference, divergences, measure_windows

PAD = 0
MEASURES = ["nll", "kl_from_base", "kl_to_base", "top1_agreement"]


def a_text(prompts, batch_size=3):
    windows = [
        TextWindow(ids, index=10 + number, document=number // 2, words=4)
        for number, ids in enumerate(prompts)
        if len(ids) > 1
    ]
    return GeneralText(tuple(windows), PAD, batch_size)


@torch.no_grad()
def logits_of(model, window):
    return model(input_ids=torch.tensor([window.input_ids])).logits[0, :-1].double().numpy()


@pytest.mark.parametrize("chunk", [2, 256])
def test_loss_is_transformers_own(model, prompts, monkeypatch, chunk):
    monkeypatch.setattr(retention, "CHUNK_TOKENS", chunk)
    text = a_text(prompts)
    table = measure_windows(model, text)
    for row, window in zip(table.to_dict("records"), text.windows, strict=True):
        ids = torch.tensor([window.input_ids])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        assert (row["index"], row["words"]) == (window.index, window.words)
        assert row["tokens"] == len(window.input_ids) - 1
        assert row["nll"] / row["tokens"] == pytest.approx(loss.item(), abs=1e-5)
    assert list(table.columns) == ["index", "document", "words", "tokens", "nll"]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_divergences_of_windows_are_scipys(model, other, prompts, batch_size):
    text = a_text(prompts, batch_size)
    table = measure_windows(model, text, Reference.of(other, text))
    for row, window in zip(table.to_dict("records"), text.windows, strict=True):
        tuned, base = logits_of(model, window), logits_of(other, window)
        p, q = softmax(base, axis=-1), softmax(tuned, axis=-1)
        targets = np.array(window.input_ids[1:])
        expected = {
            "nll": -log_softmax(tuned, axis=-1)[np.arange(len(targets)), targets].sum(),
            "kl_from_base": rel_entr(p, q).sum(),
            "kl_to_base": rel_entr(q, p).sum(),
            "top1_agreement": (p.argmax(-1) == q.argmax(-1)).sum(),
        }
        assert {name: row[name] for name in MEASURES} == pytest.approx(expected, abs=2e-4)


def test_the_base_against_itself_has_not_moved(model, prompts):
    text = a_text(prompts)
    table = measure_windows(model, text, Reference.of(model, text))
    assert (table[["kl_from_base", "kl_to_base"]] == 0).all().all()
    assert (table["top1_agreement"] == table["tokens"]).all()


def test_an_adapter_is_measured_and_its_base_is_not_disturbed(build, prompts):
    text = a_text(prompts)
    settings = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    reference = Reference.of(build(1), text)
    adapted = get_peft_model(build(1), settings).eval()
    merged = get_peft_model(build(1), settings)
    merged.load_state_dict(adapted.state_dict())
    table = measure_windows(adapted, text, reference)
    expected = measure_windows(merged.merge_and_unload().eval(), text, reference)
    np.testing.assert_allclose(table, expected, rtol=1e-4, atol=1e-4)
    assert (table["kl_from_base"] > 0).all()


def test_divergence_formulas_on_a_small_vocabulary():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(7), 5), rng.dirichlet(np.ones(7), 5)
    found = divergences(torch.tensor(p).log(), torch.tensor(q).log())
    np.testing.assert_allclose(found["kl_from_base"], rel_entr(p, q).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(found["kl_to_base"], rel_entr(q, p).sum(-1), rtol=1e-12)


def test_a_model_that_diverged_is_refused(build, prompts):
    model = build(1)
    model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        measure_windows(model, a_text(prompts))


def test_a_model_that_caps_its_logits_is_refused(prompts):
    """Gemma 2 passes its head's output through a tanh, which the measures here would leave out."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(
        vocab_size=97,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=1.0,
        initializer_range=0.5,
        **shape,
    )
    with pytest.raises(UserError, match="gemma2"):
        measure_windows(Gemma2ForCausalLM(config).eval(), a_text(prompts))
