"""One rank: train tiny models under DeepSpeed, save each checkpoint and what it must consolidate to.

``python save_checkpoints.py FOLDER`` with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set.
``FOLDER/cases.json`` lists the cases; each becomes a run folder ``FOLDER/<name>`` with, besides what a
trainer writes, ``expected.pt``: the parameters gathered from the live engine, and the model's logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, set_seed

from rankdrift import files
from rankdrift.cli.main import leave
from rankdrift.layout import RunLayout, step_name
from rankdrift.zero_checkpoint.manifest import Manifest

STEPS = 2
TOKENS = torch.arange(2 * 12).view(2, 12) % 67


def build(case: dict[str, Any], base: Path) -> torch.nn.Module:
    """Return the model to train; odd sizes, so that every partition needs padding."""
    set_seed(7)
    config = LlamaConfig(
        vocab_size=67,
        hidden_size=15,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=21,
        tie_word_embeddings=case.get("tied", True),
        pad_token_id=0,
        num_labels=3,
    )
    classifies = case.get("classifier", False)
    model = (LlamaForSequenceClassification if classifies else LlamaForCausalLM)(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(case.get("freeze", "nothing") not in name)
    if case["method"] == "full":
        return model
    if rank() == 0:
        model.save_pretrained(base)
    task = "SEQ_CLS" if classifies else "CAUSAL_LM"
    options = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **case.get("lora", {})}
    return get_peft_model(model, LoraConfig(task_type=task, **options))


def rank() -> int:
    return deepspeed.comm.get_rank()


def start(case: dict[str, Any], model: torch.nn.Module) -> deepspeed.DeepSpeedEngine:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": case.get("precision") == "bf16"},
        "zero_optimization": {"stage": case["stage"], **case.get("zero", {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **case.get("config", {}),
    }
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def train(engine: deepspeed.DeepSpeedEngine, classifier: bool) -> None:
    labels = torch.tensor([0, 2]) if classifier else TOKENS
    for step in range(STEPS):
        tokens = (TOKENS + 5 * step + rank()) % 67
        engine.backward(engine(input_ids=tokens, labels=labels).loss)
        engine.step()


def expected(engine: deepspeed.DeepSpeedEngine, case: dict[str, Any]) -> dict[str, Any]:
    """Gather the parameters and the logits; collective.

    In fp32 the module's weights are the master weights. They are asked for directly, because under
    ``round_robin_gradients`` DeepSpeed 0.19.8's ``safe_get_full_fp32_param`` gives other parameters' values.
    """
    parameters = dict(engine.module.named_parameters())
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=case["stage"] == 3):
        weights = {name: p.detach().float().clone() for name, p in parameters.items()}
    if case.get("precision") == "bf16":
        masters = {name: safe_get_full_fp32_param(p).clone() for name, p in trained.items()}
        weights |= {name: master.view(weights[name].shape) for name, master in masters.items()}
    engine.eval()
    with torch.no_grad():
        logits = engine(input_ids=TOKENS).logits.float()
    return {"parameters": weights, "trained": list(trained), "logits": logits}


def official(case: dict[str, Any], checkpoints: Path) -> dict[str, torch.Tensor] | None:
    """Return what DeepSpeed's own consolidation gives; None where it cannot read the checkpoint."""
    if case["stage"] == 0 or case["name"] == "bf16-optimizer":
        return None
    found = get_fp32_state_dict_from_zero_checkpoint(checkpoints)
    return {name: tensor.clone() for name, tensor in found.items()}


def save(case: dict[str, Any], engine: deepspeed.DeepSpeedEngine, run: RunLayout, base: Path) -> None:
    lora = case["method"] == "lora"
    engine.save_checkpoint(str(run.checkpoints), tag=step_name(STEPS), exclude_frozen_parameters=lora)
    facts = expected(engine, case)
    if rank() == 0:
        facts["zero_to_fp32"] = official(case, run.checkpoints)
        torch.save(facts, run.root / "expected.pt")
        config = engine.module.peft_config["default"] if lora else engine.module.config
        config.save_pretrained(run.model)
        if lora and case.get("classifier"):
            engine.module.config.save_pretrained(run.model)
        manifest = Manifest(
            step=STEPS,
            world_size=deepspeed.comm.get_world_size(),
            zero_stage=case["stage"],
            method=case["method"],
            precision=case.get("precision", "fp32"),
            spec_digest="spec",
            base=str(base),
            base_digest=files.weights_digest(base) if lora else "base",
            data_position=STEPS,
            seed=7,
        )
        manifest.write(run.checkpoint(STEPS))
    deepspeed.comm.barrier()


def main(folder: Path) -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs a compiler, serves inference only
    deepspeed.init_distributed("gloo")
    for case in json.loads((folder / "cases.json").read_text()):
        run = RunLayout(folder / case["name"])
        run.root.mkdir(exist_ok=True)
        base = run.root / "base"
        engine = start(case, build(case, base))
        train(engine, case.get("classifier", False))
        save(case, engine, run, base)
        engine.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
