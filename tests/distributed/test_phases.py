"""What rests stays as it is and what begins to train does: a plain PyTorch loop with an AdamW a parameter."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import RECIPE, job, run_of, train_jobs
from torch import Tensor
from transformers import AutoTokenizer

from rankdrift import files, registry
from rankdrift.data.dataset import load_training_data
from rankdrift.models.base import load_model
from rankdrift.spec import Spec, apply_overrides, parse_spec
from rankdrift.zero_checkpoint.shards import open_checkpoint

STEPS, SAVED, ROWS = 9, 4, 4  # saved within the second phase
RATE, DECAY, EPSILON, CLIP = 1e-2, 0.1, 1e-4, 0.5  # moments well above rounding
SCHEDULES = {
    "groups": ("both->mlp->attn", [(1, 3), (4, 6), (7, 9)]),
    "again": ("attn@3->mlp@6->both", [(1, 3), (4, 6), (7, 9)]),
    "layers": ("early@5->late", [(1, 5), (6, 9)]),
}
"""Name -> (as it is written, first and last step of each phase)."""
TRAINS = {
    "groups": [r"self_attn|mlp", r"mlp", r"self_attn"],
    "again": [r"self_attn", r"mlp", r"self_attn|mlp"],
    "layers": [r"layers\.0\.(self_attn|mlp)", r"layers\.[12]\.(self_attn|mlp)"],
}
"""What is found in the names that train in each phase; the tiny model has three layers."""
METHODS = {"full": ("method.name=full",), "lora": ("method.name=lora", "method.rank=4")}
STAGES: tuple[int | str, ...] = (0, 1, 2, 3, "2_offload", "3_offload")
DATA = {"tasks": ["topic"], "train_limit": 40, "validation_limit": 2, "max_length": 40}
TRAINING = {
    **{"steps": STEPS, "global_batch": ROWS, "micro_batch": 1, "warmup_steps": 0, "schedule": "constant"},
    **{"learning_rate": RATE, "weight_decay": DECAY, "epsilon": EPSILON, "clip": CLIP, "precision": "fp32"},
    **{"eval_rows": 1, "save_every": SAVED, "probe_every": 3},
}
CASES = [
    (method, schedule, restart)
    for method, (schedule, restart) in itertools.product(
        METHODS, [("groups", False), ("again", True), ("again", False), ("layers", False)]
    )
]


def settings(method: str, schedule: str, restart: bool) -> list[str]:
    return [
        *METHODS[method],
        f"method.schedule={SCHEDULES[schedule][0]}",
        f"method.restart={restart}".lower(),
    ]


def arm(method: str, schedule: str, restart: bool, stage: int | str, ranks: int) -> str:
    return f"{method}-{schedule}-{'restart' if restart else 'kept'}-z{stage}-r{ranks}"


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    groups = []
    for ranks, stages in ((2, STAGES[1:]), (1, STAGES[:1])):
        jobs = []
        for case, stage in itertools.product(CASES, stages):
            name = arm(*case, stage, ranks)
            if case[1] == "again":  # taken up within a phase and, one step off, at its edge
                at = 4 if stage in (0, 2, "3_offload") else 3
                saves = f"training.save_every={at}"
                jobs.append(job(folder, name, stage, *settings(*case), saves, stop_at=at))
                jobs.append(job(folder, name, stage, *settings(*case), saves))
            else:
                jobs.append(job(folder, name, stage, *settings(*case)))
        groups.append((ranks, jobs))
    train_jobs(folder, RECIPE | {"data": DATA, "training": TRAINING}, groups)
    return folder


class Reference:
    """One case by plain PyTorch, row by row."""

    def __init__(self, base: Path, method: str, schedule: str, restart: bool) -> None:
        overrides = [*settings(method, schedule, restart), f"model.name={base}"]
        self.spec: Spec = parse_spec(apply_overrides({"data": DATA, "training": TRAINING}, overrides))
        torch.manual_seed(self.spec.seed)
        model = load_model(base, self.spec.model)
        self.model = registry.load("method", method).prepare(model, self.spec.method, base).eval()
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.data = load_training_data(self.spec, AutoTokenizer.from_pretrained(base), "right")
        self.ends, self.trains = SCHEDULES[schedule][1], TRAINS[schedule]
        self.restart = restart
        self.norms: list[float] = []

    def run(self) -> dict[str, Tensor]:
        optimizers = {name: self.optimizer(p) for name, p in self.trained.items()}
        active: list[str] = []
        for step in range(1, STEPS + 1):
            phase = next(n for n, (first, last) in enumerate(self.ends) if first <= step <= last)
            now = [name for name in self.trained if re.search(self.trains[phase], name)]
            for name in set(now) - set(active) if self.restart and step > 1 else ():
                optimizers[name] = self.optimizer(self.trained[name])
            active = now
            self.backward(step)
            gradients = [self.trained[name].grad for name in active]
            norm = torch.nn.utils.clip_grad_norm_([self.trained[name] for name in active], CLIP)
            assert all(gradient is not None for gradient in gradients)
            self.norms.append(float(norm))
            for name in active:
                optimizers[name].step()
            self.model.zero_grad()
        return {name: value.detach() for name, value in self.trained.items()}

    def optimizer(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        decay = DECAY if parameter.ndim > 1 else 0.0
        return torch.optim.AdamW([parameter], lr=RATE, weight_decay=decay, eps=EPSILON, fused=False)

    def backward(self, step: int) -> None:
        rows = [self.data.train[index] for index in self.data.order.rows(step - 1)]
        total = sum(int(row.carries_loss[1:].sum()) for row in rows)
        for row in rows:
            ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
            logits = self.model(input_ids=ids).logits[0, :-1]
            carries = torch.from_numpy(row.carries_loss[1:])
            loss = torch.nn.functional.cross_entropy(logits[carries], ids[0, 1:][carries], reduction="sum")
            (loss / total).backward()


@pytest.fixture(scope="module")
def references(tiny: Path) -> dict[tuple[str, str, bool], tuple[dict[str, Tensor], list[float]]]:
    found = {}
    for case in CASES:
        reference = Reference(tiny, *case)
        found[case] = reference.run(), reference.norms
    return found


PLACES = [(stage, 2 if stage else 1) for stage in STAGES]


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "ranks"), PLACES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_weights_are_those_of_an_optimizer_a_group(
    runs: Path, references: dict, case: tuple[str, str, bool], stage: int | str, ranks: int
) -> None:
    expected, norms = references[case]
    run = run_of(runs, arm(*case, stage, ranks))
    stored = open_checkpoint(run.checkpoint(STEPS)).tensors
    for name, value in expected.items():
        found = stored[name].load().reshape(value.shape)
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6 * max(1.0, float(value.abs().max())))
    logged = [row for row in files.read_jsonl(run.metrics) if row["split"] == "train"]
    np.testing.assert_allclose([row["gradient_norm"] for row in logged], norms, rtol=1e-5)
    probed = files.read_table(run.probe("gradients"))
    assert dict(zip(probed["step"], probed["phase"], strict=True)) == {
        row["step"]: row["phase"] for row in logged if row["step"] % 3 == 0
    }
    assert set(probed.query("level == 'cell'")["group"]) <= {"attention", "mlp"}  # what rests has no rows
    ends = SCHEDULES[case[1]][1]
    assert [row["phase"] for row in logged] == [
        number for number, (first, last) in enumerate(ends) for _ in range(first, last + 1)
    ]
