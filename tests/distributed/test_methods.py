"""What every method must keep, trained under ZeRO: resumed and frozen to the bit, exported exactly."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from ranks import RECIPE, job, run_of, train_jobs
from torch import Tensor
from transformers import AutoModelForCausalLM

from rankdrift import files, registry
from rankdrift.analysis.sources.weights import open_weights
from rankdrift.cli.main import main
from rankdrift.data.batches import labelled
from rankdrift.data.dataset import load_training_data
from rankdrift.export.adapter_update import LowRankUpdate
from rankdrift.export.consolidate import consolidate
from rankdrift.export.contents import Options
from rankdrift.layout import RunLayout
from rankdrift.methods import Method
from rankdrift.models.base import load_model, load_tokenizer
from rankdrift.spec import ModelSpec, Spec, apply_overrides, parse_spec
from rankdrift.zero_checkpoint.optimizer_state import open_training_state
from rankdrift.zero_checkpoint.shards import open_checkpoint

pytestmark = pytest.mark.distributed

STEPS, SAVED = 4, 2
IDS = torch.tensor([[5, 9, 30, 31, 7, 60, 2]])
TRAINING = {
    **{"steps": STEPS, "global_batch": 4, "micro_batch": 2, "warmup_steps": 1, "eval_rows": 1},
    **{
        "learning_rate": 5e-3,
        "epsilon": 1e-4,
        "save_every": SAVED,
        "save_steps": [1],
        "probe_every": 0,
        "precision": "fp32",
    },
}
DATA = {"tasks": ["topic"], "train_limit": 20, "validation_limit": 2, "max_length": 40}
VARIANTS: dict[str, tuple[str, ...]] = {
    **{name: () for name in registry.names("method")},
    "bitfit": ("method.norms=true",),
    "adalora": (
        "method.rank=2",
        "method.initial_rank=4",
        "method.full_until=0.25",
        "method.fixed_from=0.75",
        "method.every=2",
    ),
    "eva": ("method.rows=6",),
    "lora_ga": ("method.rows=6",),
    "full-frozen": ("method.freeze=[embeddings,norms]",),
    "lora-patterns": (
        "method.rank_pattern={q_proj: 2, 'layers.1.mlp.up_proj': 3}",
        "method.alpha_pattern={q_proj: 7}",
        "method.layers=[1,2]",
    ),
    "lora-embedding": (
        "method.targets=[q_proj]",
        "method.modules_to_save=[embed_tokens]",
    ),
    "lora-tokens": ("method.targets=[q_proj]", "method.trainable_token_indices=[33,101,0]"),
}
PLACES = [(0, 1), (2, 2), (3, 1), (3, 2)]
"""(ZeRO stage, ranks)."""


def method_of(variant: str) -> Method:
    found: Method = registry.load("method", variant.split("-")[0])
    return found


CASES = [(variant, stage, ranks) for variant in VARIANTS for stage, ranks in PLACES]


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case to its end, and again from its first checkpoint."""
    folder = tmp_path_factory.mktemp("methods")
    groups: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for variant, stage, ranks in CASES:
        settings = (f"method.name={variant.split('-')[0]}", *VARIANTS[variant])
        name = f"{variant}-z{stage}-r{ranks}"
        groups[ranks].append(job(folder, name, stage, *settings))
        begun = {"copy_of": str(run_of(folder, name).root), "copy_step": SAVED}
        groups[ranks].append(job(folder, f"{name}-resumed", stage, *settings, **begun))
    train_jobs(folder, RECIPE | {"data": DATA, "training": TRAINING}, list(groups.items()))
    return folder


def run_at(folder: Path, variant: str, stage: int, ranks: int) -> RunLayout:
    return run_of(folder, f"{variant}-z{stage}-r{ranks}")


def weights(run: RunLayout, step: int = STEPS) -> dict[str, Tensor]:
    return {name: each.load() for name, each in open_checkpoint(run.checkpoint(step)).tensors.items()}


@functools.cache
def prepared(variant: str, base: Path) -> Any:
    """The model before training, as the run's seed draws it."""
    settings = {**RECIPE, "data": DATA, "training": TRAINING, "method": {"name": variant.split("-")[0]}}
    spec = parse_spec(apply_overrides(settings, list(VARIANTS[variant])))
    method = method_of(variant)
    rows = [first_rows(spec, base, count)] if (count := method.reads(spec.method)) else []
    torch.manual_seed(spec.seed)
    return method.prepare(load_model(base, ModelSpec()), spec.method, base, *rows)


def first_rows(spec: Spec, base: Path, count: int) -> dict[str, Tensor]:
    """The first rows that the run trains on, in its order."""
    data = load_training_data(spec, load_tokenizer(base), "left")
    numbers = np.concatenate([data.order.rows(step) for step in range(count)])[:count]
    return labelled([data.train[number] for number in numbers], data.pad_id)


IDENTITIES = ["-".join(map(str, case)) for case in CASES]


@pytest.mark.parametrize(("variant", "stage", "ranks"), CASES, ids=IDENTITIES)
def test_a_resumed_run_has_the_same_bits(runs: Path, variant: str, stage: int, ranks: int) -> None:
    run = run_at(runs, variant, stage, ranks)
    whole = weights(run)
    resumed = weights(run_of(runs, f"{variant}-z{stage}-r{ranks}-resumed"))
    assert whole.keys() == resumed.keys()
    for file in run.model.rglob("*.json"):
        again = run_of(runs, f"{variant}-z{stage}-r{ranks}-resumed").model / file.relative_to(run.model)
        assert files.read_json(file) == files.read_json(again)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize(("variant", "stage", "ranks"), CASES, ids=IDENTITIES)
def test_what_is_frozen_stays_and_all_else_moves(
    runs: Path, tiny: Path, variant: str, stage: int, ranks: int
) -> None:
    start = dict(prepared(variant, tiny).named_parameters())
    found = weights(run_at(runs, variant, stage, ranks))
    stored = {name for name, value in start.items() if value.requires_grad}
    assert stored <= found.keys()
    trained = {name for name in stored if not method_of(variant).rests(name, None)}
    for name in found.keys() & start.keys():  # without ZeRO names of tied weights are stored, too
        value = found[name]
        moved = not torch.equal(value.reshape(start[name].shape), start[name].detach())
        taken = ".lora_E." in name and not value.any()  # AdaLoRA has left the module nothing
        assert moved == (name in trained) or taken, name


@pytest.mark.parametrize(("variant", "stage", "ranks"), CASES, ids=IDENTITIES)
def test_losses_do_not_depend_on_stage_and_ranks(runs: Path, variant: str, stage: int, ranks: int) -> None:
    one, other = (
        [row["loss"] for row in files.read_jsonl(run_at(runs, variant, *place).metrics)]
        for place in ((stage, ranks), (0, 1))
    )
    assert one[-1] < one[1]  # and something is learnt
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(("variant", "stage", "ranks"), CASES, ids=IDENTITIES)
def test_plain_libraries_reload_the_export_and_its_update_is_exact(
    runs: Path, tiny: Path, variant: str, stage: int, ranks: int
) -> None:
    run = run_at(runs, variant, stage, ranks)
    export = consolidate(run, STEPS)
    trained = prepared(variant, tiny)
    before = {name: value.detach().clone() for name, value in trained.named_parameters()}
    with torch.no_grad():
        for name, value in weights(run).items():
            if name in before:
                trained.get_parameter(name).copy_(value.reshape(before[name].shape))
        expected = trained.eval()(input_ids=IDS).logits
        for name, value in before.items():
            trained.get_parameter(name).copy_(value)
    adapts = method_of(variant).exclude_frozen
    reloaded: Any = AutoModelForCausalLM.from_pretrained(tiny if adapts else export)
    if adapts:
        reloaded = PeftModel.from_pretrained(reloaded, str(export))
    with torch.no_grad():
        torch.testing.assert_close(reloaded.eval()(input_ids=IDS).logits, expected)
    base = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    merged = reloaded.merge_and_unload() if adapts else reloaded
    dense = {name: value.double() - base[name].double() for name, value in merged.state_dict().items()}
    tuned = open_weights(tiny, export)
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    for projection in tuned.projections:
        update, name = tuned.update(projection), tuned.base.names[projection]
        rounding = 2**-22 * (float(merged.state_dict()[name].abs().max()) + largest_product(update))
        torch.testing.assert_close(update.dense().double(), dense[name], rtol=0, atol=rounding)


def largest_product(update: Any) -> float:
    """By what PEFT's merge rounds where factors cancel: the largest sum of a product's absolute values."""
    if not isinstance(update, LowRankUpdate):
        return 0.0
    return float((update.scale * update.left.double().abs() @ update.right.double().abs()).max())


@pytest.mark.parametrize(("variant", "stage", "ranks"), CASES, ids=IDENTITIES)
def test_checkpoint_and_export_verify(runs: Path, variant: str, stage: int, ranks: int) -> None:
    run = run_at(runs, variant, stage, ranks)
    export = consolidate(run, STEPS)
    assert main(["verify", str(run.checkpoint(STEPS))]) == 0
    assert main(["verify", str(export), "--reload"]) == 0


@pytest.mark.parametrize(("stage", "ranks"), PLACES)
def test_b_learns_faster_with_lora_plus(runs: Path, stage: int, ranks: int) -> None:
    """B starts at 0 in both, and its first gradient is the same; A's is 0."""
    plain, faster = (weights(run_at(runs, name, stage, ranks), 1) for name in ("lora", "lora_plus"))
    compared = [name for name in plain if "lora_B" in name]
    assert len(compared) == 21
    for name in compared:
        torch.testing.assert_close(faster[name], 16 * plain[name], rtol=1e-5, atol=1e-9)
    for name in (name for name in plain if "lora_A" in name):
        assert torch.equal(faster[name], plain[name])


@pytest.mark.parametrize(("stage", "ranks"), PLACES)
def test_adalora_is_left_its_rank(runs: Path, stage: int, ranks: int) -> None:
    """Four triplets for each of 21 modules to begin with; as many of them at step 2 as the budget says."""
    counts = []
    for step in (1, 2, 4):
        found = weights(run_at(runs, "adalora", stage, ranks), step)
        counts.append(sum(int(each.count_nonzero()) for name, each in found.items() if ".lora_E." in name))
    assert counts == [84, 47, 42]


@pytest.mark.parametrize(("stage", "ranks"), PLACES)
def test_the_penalty_of_adalora_does_not_depend_on_stage_and_ranks(
    runs: Path, stage: int, ranks: int
) -> None:
    """The loss hardly sees it while lambda is small; P and Q do."""
    one, other = (weights(run_at(runs, "adalora", *place)) for place in ((stage, ranks), (0, 1)))
    for name in (name for name in one if ".lora_A." in name or ".lora_B." in name):
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("stage", "ranks"), PLACES)
def test_a_resumed_run_has_the_importances_of_adalora(runs: Path, stage: int, ranks: int) -> None:
    """To the bit: which triplets stay may be the same without what came before."""
    name = f"adalora-z{stage}-r{ranks}"
    one, other = (
        open_training_state(run_of(runs, each).checkpoint(STEPS)).kept for each in (name, f"{name}-resumed")
    )
    assert len(one) == 7 * 21  # means and deviations of three, and what is left
    assert one.keys() == other.keys()
    for key, stored in one.items():
        assert torch.equal(stored.load(), other[key].load()), key


@pytest.mark.parametrize(("stage", "ranks"), PLACES)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if method_of(name).exclude_frozen])
def test_merged_is_unmerged(runs: Path, tiny: Path, variant: str, stage: int, ranks: int) -> None:
    run = run_at(runs, variant, stage, ranks)
    adapted: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny), str(consolidate(run, STEPS))
    )
    merged = AutoModelForCausalLM.from_pretrained(consolidate(run, STEPS, Options(merge=True)))
    with torch.no_grad():
        found, expected = (model.eval()(input_ids=IDS).logits for model in (merged, adapted))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_the_adapter_it_began_with_a_run_does_not_go_on(runs: Path, tmp_path: Path) -> None:
    run = run_at(runs, "pissa", 2, 2)
    copy = tmp_path / "s" / "runs" / run.root.name
    shutil.copytree(run.root, copy)
    (copy / "checkpoints" / f"step-{STEPS:06d}").rename(tmp_path / "last")
    shutil.rmtree(RunLayout(copy).initial_adapter)
    (tmp_path / "recipe.yaml").write_text((runs / "recipe.yaml").read_text())
    jobs = [job(tmp_path, "pissa-z2-r2", 2, "method.name=pissa")]
    with pytest.raises(AssertionError, match="initial_adapter: missing, and the checkpoints mean nothing"):
        train_jobs(tmp_path, RECIPE | {"data": DATA, "training": TRAINING}, [(1, jobs)])
