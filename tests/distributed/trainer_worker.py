"""Train with the Hugging Face Trainer under DeepSpeed: one folder a case, as others have them.

Called with a folder. Each case leaves ``<case>/checkpoint-3``, ``checkpoint-6`` and ``truth.pt``: the fp32
masters after step 6 as DeepSpeed itself gathers them, by the model's names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from rankdrift.cli.main import leave
from rankdrift.models.base import resolve
from rankdrift.training.engine import process_group

CASES = {
    "z0-full-fp32": (0, "full", False),
    "z1-full-bf16": (1, "full", True),
    "z2-full-bf16": (2, "full", True),
    "z2-lora-bf16": (2, "lora", True),
    "z3-full-bf16": (3, "full", True),
    "z3-lora-fp32": (3, "lora", False),
}


def masters(model: Any, stage: int) -> dict[str, torch.Tensor]:
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    gather = safe_get_full_fp32_param if stage else torch.Tensor.detach
    return {name: gather(param).clone() for name, param in trained.items()}


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
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if method == "lora":
        settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 100, (12,), generator=generator).tolist()} for _ in range(16)]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    torch.save(masters(trainer.model_wrapped.module, stage), folder / "truth.pt")


def main() -> None:
    with process_group():
        for name, case in CASES.items():
            train(Path(sys.argv[1]) / name, *case)


if __name__ == "__main__":
    main()
    leave(0)
