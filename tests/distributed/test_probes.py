"""Probes measure the same at every ZeRO stage and number of ranks: what plain PyTorch finds, row by row."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ranks import RECIPE, job, run_of, train_jobs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import AutoTokenizer

from rankdrift import files, registry
from rankdrift.data.batches import rank_batches_apart
from rankdrift.data.dataset import load_training_data
from rankdrift.models.base import load_model
from rankdrift.spec import parse_spec
from rankdrift.zero_checkpoint.shards import open_checkpoint

STEPS, ROWS, RATE, DECAY = 3, 8, 2e-3, 0.1
DATA = {"tasks": ["topic", "describe"], "train_limit": 40, "validation_limit": 2, "max_length": 40}
TRAINING: dict[str, Any] = {
    **{"steps": STEPS, "global_batch": ROWS, "micro_batch": 1, "warmup_steps": 0, "schedule": "constant"},
    **{"learning_rate": RATE, "weight_decay": DECAY, "clip": 0, "precision": "fp32", "eval_rows": 1},
    "probe_every": 1,
}
METHODS = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 4},
    "olora": {"name": "olora", "rank": 3},
}
STAGES: tuple[int | str, ...] = (0, 1, 2, 3, "2_offload", "3_offload")
PLACES = [(stage, 2) for stage in STAGES] + [(0, 1), (3, 1)]
FEW = [(2, 2), (3, 2), (0, 1)]
CASES = [
    (method, apart, place)
    for method, apart in itertools.product(METHODS, (False, True))
    for place in (FEW if apart or method == "olora" else PLACES)
]


OTHERS = {
    "adalora": ("method.rank=2", "method.initial_rank=4", "method.full_until=0.1", "method.fixed_from=0.9",
                "method.every=1"),
    "lora_fa": ("method.rank=4",),
}  # fmt: skip
"""Methods whose parameters after each step are read from checkpoints: they have no reference here."""
OTHER_CASES = [(method, *place) for method in OTHERS for place in FEW]


def arm(method: str, apart: bool, place: tuple[int | str, int]) -> str:
    return f"{method}-{'apart' if apart else 'mixed'}-z{place[0]}-r{place[1]}"


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes")
    groups = []
    for ranks in (2, 1):
        jobs = [
            job(
                folder, arm(method, apart, place), place[0], f"training.probe_conflict={apart}".lower(),
                *(f"method.{key}={value}" for key, value in METHODS[method].items()),
            )
            for method, apart, place in CASES if place[1] == ranks
        ]  # fmt: skip
        groups.append((ranks, jobs))
    train_jobs(folder, RECIPE | {"data": DATA, "training": TRAINING, "method": {}}, groups)
    return folder


class Reference:
    """A method's steps by plain PyTorch, with the gradient of every row."""

    def __init__(self, base: Path, method: str) -> None:
        tree = {"data": DATA, "training": TRAINING, "model": {"name": str(base)}, "method": METHODS[method]}
        spec = parse_spec(tree)
        torch.manual_seed(spec.seed)
        plain = load_model(base, spec.model)
        self.base = {name: p.detach().clone() for name, p in plain.named_parameters()}
        self.model = registry.load("method", method).prepare(plain, spec.method, base).eval()
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.data = load_training_data(spec, AutoTokenizer.from_pretrained(base), "right")
        matrices = [p for p in self.trained.values() if p.ndim > 1]
        others = [p for p in self.trained.values() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=RATE)
        self.rows: list[dict[int, dict[str, Tensor]]] = []
        """By step: row -> gradient of the sum over its targets."""
        self.targets: list[dict[int, int]] = []
        self.moved: list[dict[str, tuple[float, float]]] = []
        """By step: norms of the update and of the weights after it."""
        self.weights: list[dict[str, Tensor]] = []
        for step in range(1, STEPS + 1):
            self.step(step)

    def step(self, step: int) -> None:
        numbers = [int(number) for number in self.data.order.rows(step - 1)]
        found = {number: self.gradients(number) for number in numbers}
        self.rows.append({number: gradients for number, (gradients, _) in found.items()})
        self.targets.append({number: targets for number, (_, targets) in found.items()})
        total = sum(self.targets[-1].values())
        for name, param in self.trained.items():
            param.grad = sum(gradients[name] for gradients, _ in found.values()) / total
        before = {name: param.detach().clone() for name, param in self.trained.items()}
        self.optimizer.step()
        after = {name: param.detach() for name, param in self.trained.items()}
        self.moved.append({name: (norm(now - before[name]), norm(now)) for name, now in after.items()})
        self.weights.append({name: self.now(name) for name in self.base})

    def gradients(self, number: int) -> tuple[dict[str, Tensor], int]:
        row = self.data.train[number]
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        carries = torch.from_numpy(row.carries_loss[1:].copy())
        logits = self.model(input_ids=ids).logits[0, :-1][carries]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:][carries], reduction="sum")
        found = torch.autograd.grad(loss, list(self.trained.values()))
        return dict(zip(self.trained, found, strict=True)), int(carries.sum())

    def now(self, name: str) -> Tensor:
        """Return the weight that the model computes with, adapters merged, fp64."""
        modules = dict(self.model.named_modules())
        module = modules.get(f"base_model.model.{name.removesuffix('.weight')}")
        if module is None:
            return self.trained[name].detach().double().clone()
        if not hasattr(module, "lora_A"):
            return self.base[name].double()
        factors = (getattr(module, f"lora_{side}")["default"].weight.detach().double() for side in "BA")
        left, right = factors
        return module.get_base_layer().weight.detach().double() + module.scaling["default"] * left @ right

    def stacked(self, step: int, numbers: Any) -> Tensor:
        """Return the gradient of the sum over some rows, flat, fp64."""
        parts = [[self.rows[step - 1][int(n)][name].flatten() for name in self.trained] for n in numbers]
        return sum((torch.cat(part).double() for part in parts), torch.zeros(1, dtype=torch.float64))


def norm(values: Tensor) -> float:
    return float(values.double().norm())


@pytest.fixture(scope="module")
def references(tiny: Path) -> dict[str, Reference]:
    return {method: Reference(tiny, method) for method in METHODS}


def table(runs: Path, case: tuple[str, bool, Any], probe: str) -> pd.DataFrame:
    return files.read_table(run_of(runs, arm(*case)).probe(probe))


def names(cases: list[tuple[str, bool, Any]]) -> list[str]:
    return [arm(*case) for case in cases]


MIXED = [case for case in CASES if not case[1]]
APART = [case for case in CASES if case[1]]


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_gradients_of_every_parameter(runs: Path, references: dict[str, Reference], case: Any) -> None:
    reference = references[case[0]]
    found = table(runs, case, "gradients").query("level == 'parameter'").set_index(["step", "parameter"])
    for step in range(1, STEPS + 1):
        total = sum(reference.targets[step - 1].values())
        for name in reference.trained:
            whole = sum(gradients[name].double() for gradients in reference.rows[step - 1].values()) / total
            assert found.loc[(step, name), "l2_norm"] == pytest.approx(norm(whole), rel=2e-4, abs=1e-9)
            assert found.loc[(step, name), "mean_abs"] == pytest.approx(
                float(whole.abs().mean()), rel=2e-4, abs=1e-9
            )


@pytest.mark.distributed
@pytest.mark.parametrize("case", MIXED, ids=names(MIXED))
def test_updates_are_those_that_the_optimizer_made(
    runs: Path, references: dict[str, Reference], case: Any
) -> None:
    reference = references[case[0]]
    found = table(runs, case, "updates").query("level == 'parameter'").set_index(["step", "parameter"])
    for step, moved in enumerate(reference.moved, 1):
        for name, (update, after) in moved.items():
            row = found.loc[(step, name)]
            # entries whose gradients vanish take steps that rounding decides on
            assert row["update_norm"] == pytest.approx(update, rel=5e-3)
            assert row["weight_norm"] == pytest.approx(after, rel=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize("case", MIXED, ids=names(MIXED))
def test_drift_is_that_of_the_dense_update(runs: Path, references: dict[str, Reference], case: Any) -> None:
    reference = references[case[0]]
    found = table(runs, case, "drift").query("level == 'parameter'").set_index(["step", "parameter"])
    changed = sorted(set(found.index.get_level_values("parameter")))
    assert len(changed) == len(reference.trained) // (1 if case[0] == "full" else 2)
    for step, weights in enumerate(reference.weights, 1):
        for name in changed:
            row, base = found.loc[(step, name)], reference.base[name].double()
            update = weights[name] - base
            assert row["update_norm"] == pytest.approx(norm(update), rel=5e-3)
            assert row["base_norm"] == pytest.approx(norm(base), rel=1e-6)
            if case[0] == "full":
                assert np.isnan(row["stable_rank"])
                continue
            sigma = np.linalg.svd(update.numpy(), compute_uv=False)
            shares = sigma[sigma > 1e-5 * sigma[0]] / sigma.sum()  # beyond: rounding of W0 - s B0 A0
            top = np.linalg.svd(base.numpy(), compute_uv=False)[0]
            assert row["sigma1_ratio"] == pytest.approx(sigma[0] / top, rel=5e-3)
            assert row["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=5e-3)
            assert row["entropy_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-2)


@pytest.mark.distributed
@pytest.mark.parametrize("case", MIXED, ids=names(MIXED))
def test_noise_is_that_of_the_rows(runs: Path, references: dict[str, Reference], case: Any) -> None:
    reference = references[case[0]]
    found = table(runs, case, "noise").query("level == 'global'").set_index("step")
    for step in range(1, STEPS + 1):
        targets = reference.targets[step - 1]
        total, count = sum(targets.values()), len(targets)
        mean = reference.stacked(step, targets) / total
        errors = [
            float((reference.stacked(step, [n]) - t * mean).square().sum()) / t for n, t in targets.items()
        ]
        trace = sum(errors) / (count - 1)  # by its definition, not by the sum of squares
        row = found.loc[step]
        assert (row["micro_batches"], row["targets"]) == (count, total)
        assert row["noise_trace"] == pytest.approx(trace, rel=1e-3)
        square = float(mean.square().sum()) - trace / total
        assert row["gradient_square"] == pytest.approx(square, rel=1e-3, abs=1e-3 * trace / total)


@pytest.mark.distributed
@pytest.mark.parametrize("case", APART, ids=names(APART))
def test_conflict_is_that_of_halves_of_the_tasks_rows(
    runs: Path, references: dict[str, Reference], case: Any
) -> None:
    reference, (_, ranks) = references[case[0]], case[2]
    found = table(runs, case, "conflict").query("level == 'global'").set_index("step")
    data = reference.data
    for step in range(1, STEPS + 1):
        window = data.order.rows(step - 1)
        labels, lengths = data.train.tasks_of(window), data.lengths
        halves: dict[tuple[int, int], list[int]] = {}
        for rank in range(ranks):
            batches = rank_batches_apart(window, labels, lengths, rank, ranks, int(lengths.max()), packs=True)
            seen = [0, 0]
            for batch in batches:
                if len(batch):
                    task = int(data.train.tasks_of(batch[0]))
                    half = seen[task] % 2 if ranks == 1 else rank
                    halves.setdefault((task, half), []).extend(map(int, batch))
                    seen[task] += 1
        means = {
            key: reference.stacked(step, rows) / sum(reference.targets[step - 1][n] for n in rows)
            for key, rows in halves.items()
        }
        row = found.loc[step]
        if len(means) < 4:
            assert np.isnan(row["inner_product"])
            continue
        (a, b), (c, d) = ([means[task, half] for half in (0, 1)] for task in (0, 1))
        scale = norm(a) * norm(c)
        assert row["inner_product"] == pytest.approx(float((a + b) @ (c + d)) / 4, abs=1e-4 * scale)
        assert row["square"] == pytest.approx(float(a @ b), rel=1e-3, abs=1e-4 * norm(a) * norm(b))
        assert row["other_square"] == pytest.approx(float(c @ d), rel=1e-3, abs=1e-4 * norm(c) * norm(d))
        assert row["observed_square"] == pytest.approx(norm((a + b) / 2) ** 2, rel=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize("method", METHODS)
def test_tasks_apart_are_the_same_step(runs: Path, method: str) -> None:
    for place in FEW:
        losses = [
            [row["loss"] for row in files.read_jsonl(run_of(runs, arm(method, apart, place)).metrics)
             if row["split"] == "train"]
            for apart in (False, True)
        ]  # fmt: skip
        np.testing.assert_allclose(*losses, rtol=2e-5)


@pytest.fixture(scope="module")
def other_runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    groups = []
    for ranks in (2, 1):
        cases = [case for case in OTHER_CASES if case[2] == ranks]
        jobs = [
            job(folder, f"{method}-z{stage}-r{ranks}", stage, f"method.name={method}", *OTHERS[method])
            for method, stage, _ in cases
        ]
        groups.append((ranks, jobs))
    train_jobs(folder, RECIPE | {"data": DATA, "training": {**TRAINING, "save_every": 1}}, groups)
    return folder


def weights_after(folder: Path, case: tuple[str, Any, int], step: int) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(run_of(folder, "{}-z{}-r{}".format(*case)).checkpoint(step))
    return {name: tensor.load().double() for name, tensor in checkpoint.tensors.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("case", OTHER_CASES, ids=["-".join(map(str, case)) for case in OTHER_CASES])
def test_drift_is_that_of_the_checkpoints_factors(other_runs: Path, case: tuple[str, Any, int]) -> None:
    path = run_of(other_runs, "{}-z{}-r{}".format(*case)).probe("drift")
    found = files.read_table(path).query("level == 'parameter'").set_index(["step", "parameter"])
    assert len(found) == STEPS * 21
    for step in range(1, STEPS + 1):
        now = weights_after(other_runs, case, step)
        for name in (name for name in now if ".lora_B." in name):
            right = now[name.replace("lora_B", "lora_A")]
            scale = 2.0
            if case[0] == "adalora":
                right = right * now[name.replace("lora_B", "lora_E").removesuffix(".weight")]
                scale = 8 / (4 + 1e-5)
            sigma = np.linalg.svd((scale * now[name] @ right).numpy(), compute_uv=False)
            module = name.removeprefix("base_model.model.").partition(".lora_B")[0]
            row = found.loc[(step, f"{module}.weight")]
            assert row["update_norm"] == pytest.approx(norm(torch.from_numpy(sigma)), rel=1e-4, abs=1e-9)
            if sigma[0]:  # AdaLoRA may have left a module nothing
                stable = (sigma**2).sum() / sigma[0] ** 2
                assert row["stable_rank"] == pytest.approx(stable, rel=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize("place", FEW, ids=str)
def test_what_adalora_takes_away_is_no_update(other_runs: Path, place: tuple[Any, int]) -> None:
    case = ("adalora", *place)
    path = run_of(other_runs, "{}-z{}-r{}".format(*case)).probe("updates")
    found = files.read_table(path).query("level == 'parameter'").set_index(["step", "parameter"])
    taken = 0
    for step in range(2, STEPS + 1):
        before, now = (weights_after(other_runs, case, number) for number in (step - 1, step))
        for name in (name for name in now if ".lora_E." in name):
            moved = (now[name] - before[name])[now[name] != 0]
            taken += len(now[name]) - len(moved)
            assert found.loc[(step, name), "update_norm"] == pytest.approx(norm(moved), rel=1e-3, abs=1e-9)
    assert taken


def documented(root: Path) -> set[str]:
    text = (root / "docs" / "tensorboard.md").read_text()
    tags = re.findall(r"`((?:train|validation|drift|updates|noise|conflict)/[^`]+)`", text)
    return {tag for tag in tags if " " not in tag}


@pytest.mark.distributed
def test_tensorboard_shows_what_the_page_says_and_nothing_else(root: Path, runs: Path) -> None:
    shown: set[str] = set()
    for case in CASES:
        events = EventAccumulator(str(run_of(runs, arm(*case)).tensorboard)).Reload()
        tags = events.Tags()
        shown |= {*tags["scalars"], *tags["images"]}
        if case[0] != "full":
            (picture,) = events.Images("drift/relative_update_norm_by_layer_and_module")
            assert (picture.width, picture.height) == (7 * 12, 3 * 12)
    plain = {re.sub(r"topic~describe|describe~topic", "TASK~TASK", tag) for tag in shown}
    plain = {re.sub(r"/(topic|describe)/", "/TASK/", tag) for tag in plain}
    elsewhere = {"train/phase", "validation/TASK/METRIC", "train/seconds_save", "train/seconds_evaluation"}
    assert plain - documented(root) == set()
    assert documented(root) - plain - elsewhere == set()
