"""Every family is padded, adapted and given a head as its own model would have it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families import DECODERS, ENCODERS, FAMILIES, saved
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankdrift import registry
from rankdrift.data.batches import filled, padded
from rankdrift.data.dataset import load_rows
from rankdrift.errors import UserError
from rankdrift.methods.lora import Settings, adapted_modules, prepare
from rankdrift.models.base import load_model, load_tokenizer
from rankdrift.models.direction import padding_side
from rankdrift.models.families import GROUPS, roles
from rankdrift.models.targets import target_modules
from rankdrift.scoring.answers import answer
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.scoring.items import task_items
from rankdrift.spec import Spec, parse_spec

HEADS = [(family, head) for family in DECODERS for head in ("lm", "classifier")]
HEADS += [(family, "classifier") for family in ENCODERS]
FUSED = ("phi3", "gpt2", "neox", "falcon")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")
    return lambda family: saved(family, root / family)


def a_spec(head: str) -> Spec:
    data = {"tasks": ["topic"], "train_limit": 5, "validation_limit": 5, "max_length": 140}
    return parse_spec({"model": {"head": head}, "data": data})


def opened(folder: Path, head: str) -> PreTrainedModel:
    torch.manual_seed(1)
    return load_model(folder, a_spec(head).model, 4).eval()


@torch.no_grad()
def alone(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    """The logits that the family's own code gives for one row, told nothing of padding or positions."""
    return model(input_ids=torch.tensor(np.asarray(ids)[None], dtype=torch.int64)).logits[0]


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_a_padded_training_batch_is_its_rows_alone(folder_of: Callable, family: str, head: str) -> None:
    folder = folder_of(family)
    model, tokenizer = opened(folder, head), load_tokenizer(folder)
    rows = load_rows(a_spec(head), "train", tokenizer)
    assert len({len(row.input_ids) for row in rows}) > 1
    pad_id, sequences = tokenizer.pad_token_id, [row.input_ids for row in rows]
    if head == "lm":
        batch = {"input_ids": filled(rows, pad_id).input_ids}
    else:
        batch = padded(sequences, pad_id, padding_side(model.config))
    with torch.no_grad():
        logits = model(**batch).logits
    for row, found in zip(rows, logits, strict=True):
        expected = alone(model, row.input_ids)
        own = found[: len(row.input_ids)] if head == "lm" else found
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_scores_of_a_padded_batch_are_its_rows_alone(folder_of: Callable, family: str, head: str) -> None:
    folder = folder_of(family)
    model, tokenizer = opened(folder, head), load_tokenizer(folder)
    items = task_items(a_spec(head), registry.load("task", "topic"), "test", tokenizer, 512)
    found = answer(model, items.requests, Detokenizer.of(tokenizer), 8 * 96)
    if head == "classifier":
        expected = [alone(model, np.array(asked.prompt)).log_softmax(-1).numpy() for asked in items.requests]
    else:
        expected = [likelihood(model, asked.context, asked.continuation) for asked in items.requests]
        found = [told.log_likelihood for told in found]
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5, atol=1e-4)


def likelihood(model: PreTrainedModel, prompt: tuple[int, ...], choice: tuple[int, ...]) -> float:
    logits = alone(model, np.array(prompt + choice)).log_softmax(-1)
    return float(sum(logits[len(prompt) + n - 1, token] for n, token in enumerate(choice)))


def in_blocks(model: PreTrainedModel) -> set[str]:
    """The linear layers in a model's blocks, found by what they are and not by their names."""
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(name.startswith(f"{block}.") for block in lists)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_adapt_all_that_they_stand_for(folder_of: Callable, family: str) -> None:
    """``both`` is every linear layer of the blocks, and attention and mlp divide them."""
    folder = folder_of(family)
    head = "classifier" if family in ENCODERS else "lm"
    adapted = {}
    for group in ("attention", "mlp", "both"):
        model = prepare(opened(folder, head), Settings(rank=2, targets=group), folder)
        heads = {"score", "classifier", "pooler"}
        adapted[group] = {n for n in adapted_modules(model) if not heads & set(n.split("."))}
    assert adapted["both"] == in_blocks(opened(folder, head))
    assert adapted["attention"] | adapted["mlp"] == adapted["both"]
    assert not adapted["attention"] & adapted["mlp"]
    assert {role for name in adapted["attention"] for role in roles(name)} == set(GROUPS["attention"])
    assert all("attn" in name or "attention" in name for name in adapted["attention"])


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_values_alone_are_refused_where_keys_are_fused(folder_of: Callable, family: str) -> None:
    model = opened(folder_of(family), "classifier" if family in ENCODERS else "lm")
    if family.split()[0] in FUSED:
        with pytest.raises(UserError, match=r"'qv': '.*' of \w+ computes k_proj as well, which the group"):
            target_modules(model, "qv")
    else:
        ends = tuple(target_modules(model, "qv"))
        names = [name for name, _ in model.named_modules() if name.endswith(ends)]
        assert {role for name in names for role in roles(name)} == {"q_proj", "v_proj"}
        assert len(names) == 4


def test_a_group_that_might_leave_something_out_is_refused(folder_of: Callable) -> None:
    model = opened(folder_of("llama"), "lm")
    model.model.layers[1].mlp.router = nn.Linear(32, 4)
    with pytest.raises(UserError, match=r"'mlp': it is not known what mlp\.router in the blocks of Llama"):
        target_modules(model, "mlp")
    del model.model.layers[1].mlp.router, model.model.layers[1].self_attn.o_proj
    with pytest.raises(UserError, match=r"'both': o_proj not found in block 1 of LlamaForCausalLM; name"):
        target_modules(model, "both")


@pytest.mark.parametrize(
    ("family", "new"),
    [("bert", ["bert.pooler.dense", "classifier"]), ("roberta", ["classifier"]),
     ("deberta", ["classifier", "pooler"]), ("gpt2", ["score"])],
)  # fmt: skip
def test_what_the_base_lacks_trains_whole(folder_of: Callable, family: str, new: list[str]) -> None:
    folder = folder_of(family)
    model = opened(folder, "classifier")
    assert model.new_modules == new
    adapted = prepare(model, Settings(rank=2, targets="attention"), folder)
    trained = {name for name, param in adapted.named_parameters() if param.requires_grad}
    whole = {name for name in trained if "lora_" not in name}
    assert {name.split(".modules_to_save")[0].removeprefix("base_model.model.") for name in whole} == set(new)


def test_a_model_that_lacks_weights_is_refused(folder_of: Callable, tmp_path: Path) -> None:
    """Transformers would draw them at random and go on."""
    shutil.copytree(folder_of("llama"), tmp_path / "part")
    path = tmp_path / "part" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    for head in ("lm", "classifier"):
        with pytest.raises(UserError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight \(1 "):
            opened(tmp_path / "part", head)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_lm_head_on_a_model_that_sees_both_ways_is_refused(folder_of: Callable, family: str) -> None:
    with pytest.raises(UserError, match=r"sees the tokens that it would predict; use model\.head=classifier"):
        opened(folder_of(family), "lm")


def test_encoders_are_given_their_special_tokens(folder_of: Callable) -> None:
    tokenizer = load_tokenizer(folder_of("bert"))
    row = load_rows(a_spec("classifier"), "train", tokenizer)[0]
    text = tokenizer.decode(row.input_ids).split()
    assert (text[0], text[-1]) == ("[CLS]", "[SEP]")
    assert "".join(text[-7:-1]) == "Topic:"
