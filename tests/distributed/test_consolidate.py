"""Consolidated = trained: every ZeRO layout, against what DeepSpeed itself gathers from the live engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from ranks import run_ranks
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rankdrift.export.consolidate import consolidate
from rankdrift.export.contents import Options
from rankdrift.export.peft_names import disk_name
from rankdrift.layout import RunLayout
from rankdrift.serving.bank import Bank, Place
from rankdrift.serving.checks import CLOSE, distance
from rankdrift.serving.deployed import Deployed, Tuned, Way
from rankdrift.spec import ModelSpec
from rankdrift.zero_checkpoint.shards import open_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("save_checkpoints.py")
STEP = 2
TOKENS = torch.arange(2 * 12).view(2, 12) % 67

CPU = {"device": "cpu"}


def case(name: str, method: str, stage: int, precision: str = "fp32", **more: Any) -> dict[str, Any]:
    return {"name": name, "method": method, "stage": stage, "precision": precision, **more}


CASES = [
    *(case(f"{method}-fp32-{stage}", method, stage) for method in ("full", "lora") for stage in range(4)),
    *(case(f"full-bf16-{stage}", "full", stage, "bf16") for stage in (1, 2, 3)),
    case("lora-bf16-2", "lora", 2, "bf16"),
    case("untied", "full", 2, tied=False),
    case("classifier", "full", 2, classifier=True),
    *(case(f"lora-classifier-{stage}", "lora", stage, classifier=True) for stage in (0, 3)),
    case("lora-embeddings", "lora", 2, lora={"target_modules": ["embed_tokens", "v_proj"]}),
    case("dora", "lora", 1, lora={"use_dora": True}),
    *(case(f"frozen-{stage}", "full", stage, freeze="mlp") for stage in range(4)),
    *(
        case(
            f"offload-{method}-{stage}-{precision}", method, stage, precision, zero={"offload_optimizer": CPU}
        )
        for method, stage, precision in (
            *(("full", 1, "fp32"), ("full", 2, "bf16"), ("full", 3, "bf16")),
            *(("lora", 2, "fp32"), ("lora", 3, "fp32")),
        )
    ),
    *(
        case(f"offload-all-{method}-{precision}", method, 3, precision)
        | {"zero": {"offload_optimizer": CPU, "offload_param": CPU}}
        for method, precision in (("full", "fp32"), ("full", "bf16"), ("lora", "fp32"))
    ),
    *(case(f"round-robin-{stage}", "full", stage, zero={"round_robin_gradients": True}) for stage in (1, 2)),
    case(
        "round-robin-alignment", "full", 2, zero={"round_robin_gradients": True, "parameter_alignment": True}
    ),
    case("alignment", "full", 2, "bf16", zero={"parameter_alignment": True}),
    case("bf16-optimizer", "full", 1, "bf16", config={"data_types": {"grad_accum_dtype": "fp32"}}),
    case("sub-groups", "full", 3, zero={"sub_group_size": 500}),
]
NAMES = [each["name"] for each in CASES]
MERGED = [each["name"] for each in CASES if each["method"] == "lora"]
MERGED = [name for name in MERGED if name not in ("dora", "lora-bf16-2")]


@pytest.fixture(scope="module", params=[1, 2], ids=["1-rank", "2-ranks"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and save every case once on this many ranks."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    (folder / "cases.json").write_text(json.dumps(CASES))
    run_ranks(request.param, SCRIPT, str(folder), timeout=500)
    return folder


def case_of(name: str) -> dict[str, Any]:
    return next(each for each in CASES if each["name"] == name)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_equal_those_deepspeed_gathers(saved: Path, name: str) -> None:
    run = RunLayout(saved / name)
    facts = torch.load(run.root / "expected.pt")
    checkpoint = open_checkpoint(run.checkpoint(STEP))
    assert checkpoint.zero_stage == case_of(name)["stage"]
    wanted = set(facts["trained"]) if case_of(name)["method"] == "lora" else set(facts["parameters"])
    # At stage 0 the frozen embedding's alias cannot be told from a parameter; it is no adapter tensor.
    assert wanted - set(checkpoint.tensors) == set()
    assert set(checkpoint.tensors) - wanted <= {"base_model.model.lm_head.weight"}
    for parameter in wanted:
        assert torch.equal(checkpoint.tensor(parameter), facts["parameters"][parameter]), parameter


@pytest.mark.parametrize("name", NAMES)
def test_export_holds_the_trained_weights_and_nothing_else(saved: Path, name: str) -> None:
    run = RunLayout(saved / name)
    facts = torch.load(run.root / "expected.pt")
    export = consolidate(run, STEP)
    if case_of(name)["method"] == "lora":
        weights = load_file(export / "adapter_model.safetensors")
        wanted = {disk_name(parameter): facts["parameters"][parameter] for parameter in facts["trained"]}
    else:
        weights = load_file(export / "model.safetensors")
        wanted = facts["parameters"]
    assert set(weights) == set(wanted)
    assert all(torch.equal(weights[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if "bf16" not in name and "alignment" not in name])
def test_export_reloads_to_the_trained_models_logits(saved: Path, name: str) -> None:
    run, wanted = RunLayout(saved / name), case_of(name)
    export = consolidate(run, STEP)
    auto = AutoModelForSequenceClassification if wanted.get("classifier") else AutoModelForCausalLM
    if wanted["method"] == "lora":
        base = json.loads((export / "adapter_config.json").read_text())["base_model_name_or_path"]
        config = AutoConfig.from_pretrained(base, num_labels=3)
        model = PeftModel.from_pretrained(auto.from_pretrained(base, config=config), export)
    else:
        model = auto.from_pretrained(export)
    assert model.dtype == torch.float32
    with torch.no_grad():
        logits = model.eval()(input_ids=TOKENS).logits
    assert torch.equal(logits, torch.load(run.root / "expected.pt")["logits"])


@pytest.mark.parametrize("name", NAMES)
def test_weights_equal_zero_to_fp32s_where_it_works(saved: Path, name: str) -> None:
    run = RunLayout(saved / name)
    official = torch.load(run.root / "expected.pt")["zero_to_fp32"]
    checkpoint = open_checkpoint(run.checkpoint(STEP))
    if official is None:
        assert case_of(name)["stage"] == 0 or name == "bf16-optimizer"
        return
    ours = set(checkpoint.tensors) | set(checkpoint.aliases)
    if name == "frozen-1":  # there it leaves out what does not train
        ours -= {parameter for parameter in ours if "mlp" in parameter}
    assert ours == set(official)
    for parameter, weights in official.items():
        assert torch.equal(checkpoint.tensor(parameter), weights.float()), parameter


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_model_gives_the_trained_models_logits(saved: Path, name: str) -> None:
    """Within fp32 rounding: the live model adds B A x to W0 x, the merged one multiplies by their sum."""
    run = RunLayout(saved / name)
    merged = consolidate(run, STEP, Options(merge=True))
    auto = AutoModelForSequenceClassification if case_of(name).get("classifier") else AutoModelForCausalLM
    with torch.no_grad():
        logits = auto.from_pretrained(merged).eval()(input_ids=TOKENS).logits
    torch.testing.assert_close(logits, torch.load(run.root / "expected.pt")["logits"])


@pytest.mark.parametrize("name", ["full-fp32-2", *(f"lora-fp32-{stage}" for stage in range(4)), "dora"])
def test_every_way_to_serve_it_gives_the_trained_models_logits(
    saved: Path, name: str, tmp_path: Path
) -> None:
    run = RunLayout(saved / name)
    tuned = Tuned("a", consolidate(run, STEP))
    base = Path(tuned.config["base_model_name_or_path"]) if tuned.is_adapter else tuned.export
    bank = Bank(Place(base, ModelSpec(name="tiny")), tmp_path / "planted")
    ways: list[Way] = ["merged", "unmerged"] if tuned.is_adapter else ["full"]
    trained = torch.load(run.root / "expected.pt")["logits"]
    for way in [*ways, "mixed"] if tuned.can_be_mixed else ways:
        served = bank.served(Deployed(way, tuned))
        served.activate()
        with torch.inference_mode():
            logits = served(TOKENS).logits
        rows = 1 if way == "mixed" else len(TOKENS)  # of a mixed batch the first has the trained adapter
        assert distance(trained[:rows], logits[:rows]) <= CLOSE, way


def test_round_robin_stores_parameters_in_another_order(saved: Path) -> None:
    """Else the cases above would not show that the stored order is the one that is read."""
    for stage in (1, 2):
        facts = torch.load(saved / f"round-robin-{stage}" / "expected.pt")
        checkpoint = open_checkpoint(RunLayout(saved / f"round-robin-{stage}").checkpoint(STEP))
        matrices = [name for name in facts["trained"] if facts["parameters"][name].ndim > 1]
        stored = [name for name in checkpoint.tensors if name in matrices]
        assert sorted(stored) == sorted(matrices)
        assert (stored == matrices) == (checkpoint.world_size == 1)


def test_tied_head_is_an_alias(saved: Path) -> None:
    for stage in range(4):
        checkpoint = open_checkpoint(RunLayout(saved / f"full-fp32-{stage}").checkpoint(STEP))
        assert dict(checkpoint.aliases) == {"lm_head.weight": "model.embed_tokens.weight"}


def test_bf16_keeps_master_weights_that_bf16_cannot_hold(saved: Path) -> None:
    checkpoint = open_checkpoint(RunLayout(saved / "full-bf16-2").checkpoint(STEP))
    weights = checkpoint.tensor("model.layers.0.mlp.up_proj.weight")
    assert not torch.equal(weights, weights.bfloat16().float())
