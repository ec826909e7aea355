"""``training.micro_batch=auto`` finds what memory has room for, on all ranks alike, and trains the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ranks import HERE, RECIPE, job, run_of, run_ranks

from rankdrift import files
from rankdrift.layout import RunLayout

CASES = [f"{packing}-z{stage}" for packing, stage in itertools.product(("on", "off"), (2, 3))]
STEPS, SAVED, RANKS = 8, 6, 2
DATA = {"tasks": ["topic"], "train_limit": 60, "validation_limit": 2, "max_length": 40}
TRAINING = {
    **{"steps": STEPS, "global_batch": 32, "warmup_steps": 1, "eval_rows": 2, "save_every": SAVED},
    **{"probe_every": 0, "precision": "fp32", "learning_rate": 1e-3},
}
AT_REST, EACH = 1000, [10, 16]
ROOM = 130
LIMIT = AT_REST + 16 * ROOM  # the second rank has room for fewer than the first


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each case by measuring, and with a number that is given; one that is stopped and goes on, one roomy."""
    folder = tmp_path_factory.mktemp("fitting")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"data": DATA, "training": TRAINING}))
    jobs = []
    given = {"limit": LIMIT, "each": EACH}
    auto = "training.micro_batch=auto"
    for case in CASES:
        packing, stage = case.split("-z")
        cut = f"training.packing={packing}"
        jobs.append(job(folder, f"auto-{case}", int(stage), cut, auto, **given))
        jobs.append(job(folder, f"given-{case}", int(stage), cut, "training.micro_batch=1", **given))
    jobs.append(job(folder, "resumed", 2, auto, **given, stop_at=SAVED))
    jobs.append(job(folder, "resumed", 2, auto, **given))
    jobs.append(job(folder, "elsewhere", 2, auto, **given, stop_at=SAVED))
    jobs.append(job(folder, "elsewhere", 2, auto, limit=LIMIT + 2**31, each=EACH))
    jobs.append(job(folder, "roomy", 2, auto, limit=2**40, each=EACH))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(RANKS, HERE / "fitting_worker.py", str(folder / "jobs.json"))
    return folder


def seen(run: RunLayout, rank: int, time: int = -1) -> dict[str, list[int]]:
    found: dict[str, list[int]] = files.read_json(run.root / f"seen-{rank}.json")[time]
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_the_rank_with_the_least_room_decides(runs: Path, case: str) -> None:
    kept = files.read_json(run_of(runs, f"auto-{case}").micro_batch)
    assert kept["tokens"] == ROOM


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_no_step_goes_beyond_the_limit(runs: Path, case: str) -> None:
    run = run_of(runs, f"auto-{case}")
    for rank in range(RANKS):
        found = seen(run, rank)
        assert len(found["at_once"]) == STEPS
        assert max(found["peaks"]) <= LIMIT
        assert AT_REST + EACH[rank] * max(found["at_once"]) <= LIMIT
        assert found["at_once"][-1] >= 2 * found["at_once"][0]  # and room is made use of


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_the_run_is_the_one_with_a_given_number(runs: Path, case: str) -> None:
    for key in ("loss", "gradient_norm"):
        one, other = (
            [row[key] for row in files.read_jsonl(run_of(runs, f"{kind}-{case}").metrics) if key in row]
            for kind in ("auto", "given")
        )
        np.testing.assert_allclose(one, other, rtol=3e-6)


@pytest.mark.distributed
def test_a_resumed_run_takes_what_was_found(runs: Path) -> None:
    run = run_of(runs, "resumed")
    for rank in range(RANKS):
        before, after = seen(run, rank, 0), seen(run, rank, 1)
        assert before["peaks"]
        assert not after["peaks"]
        assert after["at_once"][0] > 2 * before["at_once"][0]


@pytest.mark.distributed
def test_a_run_on_another_memory_measures_anew(runs: Path) -> None:
    assert seen(run_of(runs, "elsewhere"), 0, 1)["peaks"]


@pytest.mark.distributed
def test_with_room_for_all_a_step_is_one_micro_batch(runs: Path) -> None:
    run = run_of(runs, "roomy")
    log = [row for row in files.read_jsonl(run.metrics) if row["split"] == "train"]
    tokens = log[-1]["tokens_per_second"] * log[-1]["seconds"]
    assert sum(seen(run, rank)["at_once"][-1] for rank in range(RANKS)) == pytest.approx(tokens)


@pytest.mark.gpu
@pytest.mark.distributed
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU")
def test_on_a_gpu_all_of_a_small_step_fits(tiny: Path, tmp_path: Path) -> None:
    recipe = RECIPE | {"data": DATA, "training": TRAINING | {"precision": "bf16"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    jobs = [job(tmp_path, f"z{stage}", stage, "training.micro_batch=auto") for stage in range(4)]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(1, HERE / "train_worker.py", str(tmp_path / "jobs.json"), accelerator="cuda")
    for stage in range(4):
        kept = files.read_json(run_of(tmp_path, f"z{stage}").micro_batch)
        print(json.dumps(kept["measured"]))
        tokens, peaks = zip(*kept["measured"], strict=True)
        assert list(tokens) == sorted(set(tokens))
        assert list(peaks) == sorted(peaks)
        assert kept["tokens"] >= tokens[-1]
