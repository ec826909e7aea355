"""Train with the Hugging Face Trainer, or accelerate, under DeepSpeed: a folder a case, as others have them.

Called with a folder on one or more ranks, it trains the cases for so many. The Trainer leaves
``<case>/checkpoint-3`` and ``checkpoint-6``, accelerate ``<case>/state``, both ``truth.pt``: the fp32 masters
after the last step as DeepSpeed itself gathers them, by the model's names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from rankdrift.cli.main import leave
from rankdrift.models.base import resolve
from rankdrift.training.collectives import process_group, world_size

CASES = {  # of one rank
    "z0-full-fp32": (0, "full", False),
    "z1-full-bf16": (1, "full", True),
    "z2-full-bf16": (2, "full", True),
    "z2-lora-bf16": (2, "lora", True),
    "z3-full-bf16": (3, "full", True),
    "z3-lora-fp32": (3, "lora", False),
}
CASES_OF_TWO = {"z2-full-bf16-2": (2, "full", True), "z3-lora-bf16-2": (3, "lora", True)}
ACCELERATE = {"accelerate-z2": (2, "full"), "accelerate-z3": (3, "full"), "accelerate-z2-lora": (2, "lora")}
"""Of two ranks."""


def masters(model: Any, stage: int) -> dict[str, torch.Tensor]:
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    gather = safe_get_full_fp32_param if stage else torch.Tensor.detach
    return {name: gather(param).clone() for name, param in trained.items()}


def made(method: str) -> Any:
    """Return the model to train."""
    model = AutoModelForCausalLM.from_pretrained(resolve("tiny"), dtype=torch.float32)
    if method == "full":
        return model
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, settings)


def example_rows(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 100, (12,), generator=generator).tolist() for _ in range(count)]


def accelerated(folder: Path, stage: int, method: str) -> None:
    """Train six steps with accelerate, and save its state as its own documentation does."""
    settings = {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_force_ds_cpu_optimizer": False,
    }
    AcceleratorState._reset_state(True)  # the Trainer's, or that of the case before
    plugin = DeepSpeedPlugin(hf_ds_config=settings)
    accelerator = Accelerator(mixed_precision="bf16", deepspeed_plugin=plugin)
    model = made(method)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    batches = torch.utils.data.DataLoader(torch.tensor(example_rows(12)), batch_size=2)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    for ids in batches:
        accelerator.backward(model(input_ids=ids, labels=ids).loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(str(folder / "state"))
    if accelerator.is_main_process:
        # what DeepSpeed gathers from the shards: accelerate's own model gives no masters
        gathered = get_fp32_state_dict_from_zero_checkpoint(str(folder / "state"))
        trained = [name for name, param in model.module.named_parameters() if param.requires_grad]
        torch.save({name: gathered[name].clone() for name in trained}, folder / "truth.pt")
        unwrapped = accelerator.unwrap_model(model)
        (unwrapped.peft_config["default"] if method == "lora" else unwrapped.config).save_pretrained(
            folder / "state"
        )
    accelerator.wait_for_everyone()


def train(folder: Path, stage: int, method: str, bf16: bool) -> None:
    base = resolve("tiny")
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    deepspeed = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": "auto"}} | dict.fromkeys(
        auto, "auto"
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        save_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-5,
        use_cpu=True,
        bf16=bf16,
        deepspeed=deepspeed | {"zero_force_ds_cpu_optimizer": False},
        report_to=[],
        disable_tqdm=True,
    )
    model = made(method)
    rows = [{"input_ids": row, "labels": row} for row in example_rows(16)]
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    truth = masters(trainer.model_wrapped.module, stage)
    if trainer.is_world_process_zero():
        torch.save(truth, folder / "truth.pt")


def main() -> None:
    with process_group():
        one = world_size() == 1
        for name, case in (CASES if one else CASES_OF_TWO).items():
            train(Path(sys.argv[1]) / name, *case)
        for name, case in ({} if one else ACCELERATE).items():
            accelerated(Path(sys.argv[1]) / name, *case)


if __name__ == "__main__":
    main()
    leave(0)
