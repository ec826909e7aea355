"""Each check of an experiment fails for what it is for, and no other one does; without a defect all pass."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from forked import run_forked
from ranks import HERE
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankdrift.sanity.results import EVERY_ARM, OF_ARM, OF_EXPERIMENT

pytestmark = pytest.mark.distributed

# the random tiny model's own head gives no token much probability: nothing but full could learn ten rows
CLASSIFIER: dict[str, Any] = {
    "model": {"name": "tiny", "head": "classifier"},
    "data": {"tasks": ["topic"], "train_limit": 40, "validation_limit": 8},
    "arms": {
        "lora": {"method": {"name": "lora", "rank_pattern": {"q_proj": 2}}},
        "full": {"method": {"name": "full"}},
    },
}
LORA, FULL = ["--arm", "lora"], ["--arm", "full"]
AS_TEXT = [*FULL, "model.head=lm"]
PASSED = dict.fromkeys(OF_ARM, "passed")
TRAINED = OF_ARM.index("logging")


def after(check: str) -> dict[str, str]:
    """The states of an arm in which a check fails and what comes behind it is not run."""
    at = OF_ARM.index(check)
    return PASSED | {check: "failed"} | dict.fromkeys(OF_ARM[at + 1 :], "not run")


def but(check: str) -> dict[str, str]:
    """The states of an arm in which one check fails, and only that."""
    return PASSED | {check: "failed"}


class Case(NamedTuple):
    """A defect, how it is tried, and what is to be seen."""

    defect: str
    arguments: list[str]
    check: str
    states: dict[str, str] | None
    """Of the arm's checks; None where the experiment's own checks end all."""
    says: str
    others: bool = False
    """Whether there is another arm, which is well."""


CASES = [
    Case(
        "norms_train_as_well",
        [],
        "method",
        after("method"),
        "(+384); look at what methods/lora.py marks",
        True,
    ),
    Case("rank_pattern_is_ignored", LORA, "method", after("method"), "parameters train, lora has"),
    Case("foreign_token", LORA, "data", None, "row 1 has the token 258, the model's are 0 to 257"),
    Case("label_out_of_range", LORA, "data", None, "row 3 has the label 4, the task has 4 choices"),
    Case("no_target", AS_TEXT, "data", None, "row 5 has no target to learn"),
    Case("wrong_label", AS_TEXT, "data", None, "and learns to say"),
    Case(
        "projection_is_cut_off",
        FULL,
        "gradients",
        but("gradients"),
        "up_proj.weight' should train, and has no",
    ),
    Case("frozen_gets_a_gradient", LORA, "gradients", but("gradients"), "norm.weight' should not train"),
    Case("gradient_is_infinite", LORA, "gradients", after("gradients"), "is not finite at step 1"),
    Case("forward_fails", [], "gradients", after("gradients"), "RuntimeError: no kernel for this", True),
    Case("rank_is_killed", [], "gradients", after("gradients"), "a rank was killed by SIGKILL", True),
    Case(
        "", [*LORA, "--learning-rate", "1e-9", "--steps", "12"], "overfit", but("overfit"), "after 12 steps"
    ),
    Case(
        "loss_is_not_told_to_tensorboard", FULL, "logging", but("logging"), "TensorBoard has no train/loss of"
    ),
    Case("a_line_is_lost", FULL, "logging", but("logging"), "metrics.jsonl has no train/loss of step 2"),
    Case("another_loss_is_logged", FULL, "logging", but("logging"), "at step 1, it was"),
    Case("adapter_is_drawn_without_the_seed", LORA, "seeds", but("seeds"), "a second time: loss"),
    Case("seed_is_ignored", LORA, "seeds", but("seeds"), "nothing depends on the seed"),
    Case("other_alpha_is_exported", LORA, "reload", but("reload"), "is not the trained model: logits differ"),
    Case(
        "another_weight_is_trained_than_exported", FULL, "reload", but("reload"), "is not the trained model"
    ),
    Case("export_is_cut", FULL, "reload", but("reload"), "DAMAGED"),
]
MODELS = {"not-finite": "'model.norm.weight' holds NaN", "not-whole": "no weights for model.norm.weight"}
METHODS = ["rslora", "lora_plus", "lora_fa", "dora", "pissa", "olora", "last_layers", "bitfit"]


def spoilt(kind: str, tiny: Path, folder: Path) -> Path:
    """A model's folder with a defect."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    state = model.state_dict()
    if kind == "not-finite":
        state["model.norm.weight"][3] = torch.nan
    else:
        del state["model.norm.weight"]
    model.save_pretrained(folder / kind, state_dict=state)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / kind)
    return folder / kind


def named(case: Case) -> str:
    return case.defect or "learning_rate_is_too_low"


@pytest.fixture(scope="module")
def defects(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every case with a defect printed, and its exit code."""
    folder = tmp_path_factory.mktemp("defects")
    cases = [{"name": named(case), "defect": case.defect, "arguments": case.arguments} for case in CASES]
    for kind in MODELS:
        where = f"model.name={spoilt(kind, tiny, folder)}"
        cases.append({"name": kind, "arguments": [*LORA, where, "model.head=lm"]})
    return tried(folder, cases)


@pytest.fixture(scope="module")
def healthy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of cases without one."""
    cases: list[dict[str, Any]] = []
    cases += [
        {"name": method, "arguments": [*LORA, f"method.name={method}", "method.norms=true"]}
        for method in METHODS
    ]
    cases.append({"name": "text", "arguments": [*AS_TEXT, "--steps", "200"]})
    cases.append({"name": "phases", "arguments": [*LORA, "method.schedule=both->late"]})
    return tried(tmp_path_factory.mktemp("healthy"), cases)


def tried(folder: Path, cases: list[dict[str, Any]]) -> Path:
    """Run all cases; return the folder of what they printed."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(CLASSIFIER))
    for case in cases:
        case["arguments"] = ["--experiment", str(recipe), "--ranks", "1", *case["arguments"]]
    (folder / "jobs.json").write_text(json.dumps({"cases": cases, "folder": str(folder)}))
    scratch = folder / "scratch"
    scratch.mkdir()
    jobs = str(folder / "jobs.json")
    status, said = run_forked(HERE / "sanity_worker.py", jobs, timeout=580, TMPDIR=str(scratch))
    assert status == 0, said[-3000:]
    return folder


def results(folder: Path, name: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code of a case, and by arm each check's result."""
    code = folder / f"{name}.code"
    assert code.exists(), (folder / f"{name}.err").read_text()[-3000:]
    found: dict[str, dict[str, Any]] = {}
    for result in json.loads((folder / f"{name}.out").read_text()):
        found.setdefault(result["arm"], {})[result["check"]] = result
    return int(code.read_text()), found


def states(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {check: result["state"] for check, result in found.items()}


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_planted_defect_is_seen_by_its_check_alone(defects: Path, case: Case) -> None:
    code, found = results(defects, named(case))
    assert code == 1
    arm = case.arguments[1] if case.arguments else "lora"
    failed = (found[EVERY_ARM] if case.states is None else found[arm])[case.check]
    assert failed["state"] == "failed"
    assert case.says in failed["what"]
    assert "Traceback" not in failed["what"]
    if case.states is None:
        assert states(found[EVERY_ARM]) == {"model": "passed", "data": "failed"}
        assert states(found[arm]) == dict.fromkeys(OF_ARM, "not run")
    else:
        assert states(found[EVERY_ARM]) == dict.fromkeys(OF_EXPERIMENT, "passed")
        assert states(found[arm]) == case.states
    assert ("full" in found) == (case.others or arm == "full")
    if case.others:
        assert states(found["full"]) == PASSED


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_with_a_defect_ends_the_rest(defects: Path, kind: str) -> None:
    code, found = results(defects, kind)
    assert code == 1
    assert MODELS[kind] in found[EVERY_ARM]["model"]["what"]
    assert states(found[EVERY_ARM]) == {"model": "failed", "data": "not run"}
    assert states(found["lora"]) == dict.fromkeys(OF_ARM, "not run")
    assert found["lora"]["seeds"]["what"] == "the model failed"


@pytest.mark.parametrize("name", [*METHODS, "text", "phases"])
def test_every_method_passes(healthy: Path, name: str) -> None:
    code, found = results(healthy, name)
    (arm,) = found.keys() - {EVERY_ARM}
    assert states(found[EVERY_ARM]) == dict.fromkeys(OF_EXPERIMENT, "passed")
    assert states(found[arm]) == PASSED, found[arm]
    assert code == 0
    assert all(result["seconds"] > 0 for result in found[arm].values())


def test_nothing_is_left_behind(defects: Path, healthy: Path) -> None:
    for folder in (defects, healthy):
        assert list((folder / "scratch").glob("rankdrift-check-*")) == []


def command(recipe: Path, *arguments: str) -> list[str]:
    recipe.write_text(yaml.safe_dump(CLASSIFIER))
    return [sys.executable, "-m", "rankdrift", "check", "--experiment", str(recipe), *arguments]


@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_print_a_table(tiny: Path, tmp_path: Path, root: Path, stage: int) -> None:
    config = ["--config", str(root / "ds_configs" / f"zero{stage}.json")]
    run = command(tmp_path / "recipe.yaml", "--ranks", "2", *config)
    done = subprocess.run(
        run, capture_output=True, text=True, timeout=400, env=os.environ | {"COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for check in (*OF_EXPERIMENT, *OF_ARM):
        assert f"│ {check} " in done.stdout
    assert "failed" not in done.stdout
    assert "checking reload of full ..." in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_leaves_nothing_behind(tiny: Path, tmp_path: Path, number: int) -> None:
    run = command(tmp_path / "recipe.yaml", "--ranks", "2")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch)}
    process = subprocess.Popen(
        run, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "overfit" in line:
            break
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 20
    assert "Traceback" not in err + out
    assert list(scratch.iterdir()) == []
