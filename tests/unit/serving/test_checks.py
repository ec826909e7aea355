"""Models that do not say what they should are found before they are timed; each fault is planted once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankdrift.errors import IntegrityError
from rankdrift.serving.bank import Bank, Place, Served
from rankdrift.serving.checks import CLOSE, check_arm, divergence, prompt_of
from rankdrift.serving.deployed import Deployed, Tuned
from rankdrift.serving.planted import WEIGHTS
from rankdrift.spec import ModelSpec

TOKENS = 4


def with_tensors(tuned: Tuned, folder: Path, change: Callable[[str, Tensor], tuple[str, Tensor]]) -> Tuned:
    """Return a copy of an adapter with other tensors."""
    shutil.copytree(tuned.export, folder)
    tensors = load_file(tuned.export / WEIGHTS)
    save_file(dict(change(name, tensor) for name, tensor in tensors.items()), folder / WEIGHTS)
    return Tuned(tuned.arm, folder)


def test_all_ways_to_serve_an_adapter_agree(bank: Bank, adapter: Tuned, prompt: Tensor) -> None:
    found = check_arm(bank, adapter, prompt, TOKENS)
    limits = {each.check: each.limit for each in found}
    assert [each.check for each in found if each.limit] == [
        "merged against unmerged",
        "greedy text, margin where it differs",
        "rows of a mixed batch against their own adapters",
    ]
    assert limits["with the adapter against without"] is None
    effect = next(each.value for each in found if each.check == "with the adapter against without")
    assert effect > 100 * CLOSE


def test_dora_is_checked_without_a_mixed_batch(
    bank: Bank, make_adapter: Callable[..., Tuned], prompt: Tensor
) -> None:
    found = check_arm(bank, make_adapter("dora", use_dora=True), prompt, TOKENS)
    assert not any("mixed" in each.check for each in found)
    assert any(each.check == "merged against unmerged" for each in found)


def test_a_merged_model_that_differs_is_named(bank: Bank, adapter: Tuned, prompt: Tensor) -> None:
    merged = bank.served(Deployed("merged", adapter)).model
    with torch.no_grad():
        merged.model.layers[0].mlp.down_proj.weight[0, 0] += 0.1
    with pytest.raises(
        IntegrityError, match=r"^lora-r4: merged against unmerged: differs by .* nothing is timed"
    ):
        check_arm(bank, adapter, prompt, TOKENS)


def test_a_row_with_another_ones_adapter_is_seen(
    bank: Bank, adapter: Tuned, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed_up(served: Served, rows: int) -> dict[str, Any]:
        names = served.adapters
        return (
            {"adapter_names": [names[(row + (row == 2)) % len(names)] for row in range(rows)]}
            if served.is_mixed
            else {}
        )

    monkeypatch.setattr(Served, "of_rows", mixed_up)
    with pytest.raises(IntegrityError, match=r"^lora-r4: rows of a mixed batch against their own adapters"):
        check_arm(bank, adapter, prompt, TOKENS)


def test_an_adapter_whose_keys_fit_no_module_is_found_out(
    bank: Bank, adapter: Tuned, prompt: Tensor, tmp_path: Path
) -> None:
    renamed = with_tensors(adapter, tmp_path / "a", lambda name, t: (name.replace(".layers.", ".blocks."), t))
    with pytest.raises(
        IntegrityError, match=r"12 of 12 tensors fit no module of the base model \(base_model"
    ):
        check_arm(bank, renamed, prompt, TOKENS)


def test_an_adapter_of_which_one_tensor_fits_nowhere_is_found_out(
    bank: Bank, adapter: Tuned, prompt: Tensor, tmp_path: Path
) -> None:
    def change(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return (name.replace("layers.1", "layers.9") if "up_proj.lora_A" in name else name), tensor

    with pytest.raises(IntegrityError, match=r"1 of 12 tensors fit no module"):
        check_arm(bank, with_tensors(adapter, tmp_path / "a", change), prompt, TOKENS)


def test_an_adapter_that_changes_nothing_is_not_timed(
    bank: Bank, adapter: Tuned, prompt: Tensor, tmp_path: Path
) -> None:
    def change(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return name, torch.zeros_like(tensor) if "lora_B" in name else tensor

    with pytest.raises(IntegrityError, match=r"^lora-r4: with its adapter the base model says exactly what"):
        check_arm(bank, with_tensors(adapter, tmp_path / "a", change), prompt, TOKENS)


def classifiers(tiny: Path, folder: Path) -> Bank:
    return Bank(Place(tiny, ModelSpec(name="tiny", head="classifier"), labels=3), folder)


def test_what_a_classifiers_adapter_does_is_told_with_the_head_it_was_trained_with(
    tiny: Path, make_adapter: Callable[..., Tuned], prompt: Tensor, tmp_path: Path
) -> None:
    tuned = make_adapter("lora-r4", labels=3)
    effects = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # of the head that the base model is given
        found = check_arm(classifiers(tiny, tmp_path / str(seed)), tuned, prompt, TOKENS)
        effects += [each.value for each in found if each.check == "with the adapter against without"]
    assert effects[0] == effects[1] > 100 * CLOSE


def test_a_classifiers_adapter_that_changes_nothing_is_not_timed(
    tiny: Path, make_adapter: Callable[..., Tuned], prompt: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match=r"^faint: with its adapter the base model says exactly what"):
        check_arm(classifiers(tiny, tmp_path), make_adapter("faint", scale=0.0, labels=3), prompt, TOKENS)


def test_adapters_that_cannot_be_told_apart_prove_nothing(
    bank: Bank, make_adapter: Callable[..., Tuned], prompt: Tensor
) -> None:
    with pytest.raises(IntegrityError, match="too little to tell whether a row has its own"):
        check_arm(bank, make_adapter("faint", scale=1e-5), prompt, TOKENS)


def test_text_that_parts_where_no_tie_is_is_found(
    bank: Bank, adapter: Tuned, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankdrift.serving import checks

    right = checks.generate

    def wrong(served: Served, *arguments: Any) -> Any:
        answer = right(served, *arguments)
        tokens = answer.tokens.clone()
        if served.deployed.way == "unmerged":
            tokens[1, 2] = (tokens[1, 2] + 1) % 200
        return dataclasses.replace(answer, tokens=tokens)

    monkeypatch.setattr(checks, "generate", wrong)
    with pytest.raises(IntegrityError, match=r"^lora-r4: greedy text, margin where it differs"):
        check_arm(bank, adapter, prompt, TOKENS)


def test_the_divergence_is_that_of_scipy(prompt: Tensor) -> None:
    from scipy.special import softmax
    from scipy.stats import entropy

    one, other = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = entropy(softmax(one.double().numpy(), -1), softmax(other.double().numpy(), -1), axis=-1).mean()
    assert divergence(one, other) == pytest.approx(expected, rel=1e-9)


def test_prompts_are_of_different_places_and_long_enough() -> None:
    found = prompt_of([[1, 2, 3], [4, 5]], 3, 2, "cpu")
    assert found.tolist() == [[1, 2], [2, 3], [3, 4]]
    assert prompt_of([[1, 2, 3]], 2, 7, "cpu").shape == (2, 7)
