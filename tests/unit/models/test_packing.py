"""Rows that lie end to end are their rows alone: losses and gradients, in every family that packs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from families import DECODERS, LLAMA, NAMES, VOCABULARY
from families import llama as smallest
from transformers import AutoModelForCausalLM, PreTrainedModel

from rankdrift.data.batches import packed
from rankdrift.data.tokens import Row
from rankdrift.methods.lora import Settings, prepare
from rankdrift.models.packing import FAMILIES, pack_rows, why_not
from rankdrift.training.loss import BatchLoss

WINDOW = 6
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "initializer_range": 0.2}
MOE = LLAMA | {"num_experts_per_tok": 2}
OTHERS = {
    "cohere": lambda: hf.CohereConfig(**LLAMA),
    "gemma": lambda: hf.GemmaConfig(**LLAMA, head_dim=8),
    "gemma3 window": lambda: hf.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=WINDOW),
    "glm": lambda: hf.GlmConfig(**LLAMA, head_dim=8),
    "gpt_bigcode": lambda: hf.GPTBigCodeConfig(**GPT),
    "granite": lambda: hf.GraniteConfig(**LLAMA, logits_scaling=3.0),
    "mistral window": lambda: hf.MistralConfig(**LLAMA, sliding_window=WINDOW),
    "mixtral": lambda: hf.MixtralConfig(**MOE, num_local_experts=4),
    "olmo": lambda: hf.OlmoConfig(**LLAMA),
    "olmo2": lambda: hf.Olmo2Config(**LLAMA),
    "phi": lambda: hf.PhiConfig(**NAMES, intermediate_size=48),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**MOE, num_experts=4, moe_intermediate_size=16),
    "smollm3": lambda: hf.SmolLM3Config(**LLAMA, no_rope_layers=[1, 0]),
    "starcoder2": lambda: hf.Starcoder2Config(**LLAMA),
}
CASES: dict[str, Any] = {**DECODERS, **OTHERS}
PACKING = [name for name, make in CASES.items() if make().model_type in FAMILIES]


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CASES[name]()).eval()


def some_rows() -> list[Row]:
    """Rows whose targets are at the end, in the middle, everywhere, and nowhere but at the first token."""
    draw = np.random.default_rng(0)
    carries = [[0, 0, 0, 1, 1], [1], [0] * 6 + [1] * 3 + [0] * 4, [1] * 8]
    own = [draw.integers(2, 250, len(each), dtype=np.int32) for each in carries]
    return [Row(ids, np.array(each, bool), None, "task", 0) for ids, each in zip(own, carries, strict=True)]


def batch_loss(model: Any) -> BatchLoss:
    engine: Any = SimpleNamespace(
        forward=lambda batch, **options: model(**batch, **options).logits, module=model
    )
    data: Any = SimpleNamespace(train=SimpleNamespace(tasks=["task"]))
    return BatchLoss(engine, data, "lm")


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
    model.zero_grad()
    return found


def losses_alone(model: Any, rows: list[Row]) -> torch.Tensor:
    """The family's own sums of losses, of one row at a time, told nothing of positions."""
    sums = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        likely = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        following = [n for n in range(1, len(ids)) if row.carries_loss[n]]
        sums.append(-sum((likely[n - 1, ids[n]] for n in following), torch.tensor(0.0)))
    return torch.stack(sums)


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(own.abs().max()) for own in expected.values())
    for name, own in expected.items():
        torch.testing.assert_close(found[name], own, rtol=1e-5, atol=2e-6 * scale, msg=name)


def test_every_family_that_packs_is_tested() -> None:
    assert {CASES[name]().model_type for name in PACKING} == set(FAMILIES)


@pytest.mark.parametrize("name", PACKING)
def test_losses_and_gradients_are_those_of_rows_alone(name: str) -> None:
    model, rows = model_of(name), some_rows()
    alone = losses_alone(model, rows)
    alone.sum().backward()
    expected = gradients(model)
    pack_rows(model)
    together = batch_loss(model).of_each(rows)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)
    batch_loss(model).of_all(rows).backward()
    assert_alike(gradients(model), expected)


@pytest.mark.parametrize("name", PACKING)
def test_a_model_that_packs_passes_rows_by_themselves_as_before(name: str) -> None:
    model = model_of(name)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [1, 1, 7, 8, 9, 10, 11, 12]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][1, :2] = 0
    options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 1, "eos_token_id": None}
    with torch.no_grad():
        expected = model(**batch).logits, model.generate(**batch, **options)
        pack_rows(model)
        found = model(**batch).logits, model.generate(**batch, **options)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    assert found[1].tolist() == expected[1].tolist()


def test_what_is_recomputed_in_the_backward_pass_is_packed_too() -> None:
    model = model_of("llama").train()
    pack_rows(model)
    batch_loss(model).of_all(some_rows()).backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch_loss(model).of_all(some_rows()).backward()
    assert_alike(gradients(model), expected)


def test_adapters_of_every_matrix_learn_the_same(tmp_path: Any) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(smallest(vocab_size=VOCABULARY, tie_word_embeddings=False))
    base.save_pretrained(tmp_path)
    model = prepare(base, Settings(rank=2, targets="all"), tmp_path).eval()
    with torch.no_grad():
        for name, own in model.named_parameters():
            if "lora" in name:
                own.normal_(std=0.3)
    losses_alone(model, some_rows()).sum().backward()
    expected = gradients(model)
    assert {"embed_tokens", "lm_head"} <= {part for name in expected for part in name.split(".")}
    pack_rows(model)
    batch_loss(model).of_all(some_rows()).backward()
    assert_alike(gradients(model), expected)


def test_no_logits_are_made_but_those_of_targets() -> None:
    model, shapes = model_of("llama"), []
    pack_rows(model)
    model.get_output_embeddings().register_forward_hook(lambda *seen: shapes.append(tuple(seen[2].shape)))
    batch_loss(model).of_all(some_rows())
    assert shapes == [(1, 2 + 0 + 3 + 7, VOCABULARY)]


def test_a_row_s_first_token_carries_no_loss_and_none_predicts_another_row_s() -> None:
    batch = packed(some_rows())
    assert batch.lengths == [5, 1, 13, 8]
    assert batch.predicting.tolist() == [2, 3, 11, 12, 13, *range(19, 26)]
    assert batch.targets.tolist() == batch.input_ids[0, batch.predicting + 1].tolist()
    assert batch.rows.tolist() == [0, 0, 2, 2, 2, *[3] * 7]


@pytest.mark.parametrize(
    ("name", "attention", "head", "reason"),
    [
        ("llama", "auto", "classifier", "reads one position a row"),
        ("llama", "eager", "lm", "takes a mask alone"),
        ("falcon alibi", "auto", "lm", "models of type 'falcon' are not known to keep packed rows apart"),
        ("gemma2", "auto", "lm", "models of type 'gemma2'"),
    ],
)
def test_what_cannot_be_packed_says_why(name: str, attention: str, head: str, reason: str) -> None:
    assert reason in str(why_not(CASES[name](), attention, head))
