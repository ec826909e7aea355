"""LoRA: W = W0 + (alpha / r) B A with W0 frozen (Hu et al., arXiv 2106.09685), through PEFT."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from rankdrift.errors import UserError, did_you_mean
from rankdrift.methods import Method, save_model_config
from rankdrift.spec import MethodSpec

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
GROUPS: dict[str, tuple[str, ...]] = {
    "qv": ("q_proj", "v_proj"),
    "attention": ATTENTION,
    "mlp": MLP,
    "both": ATTENTION + MLP,
    "all": (*ATTENTION, *MLP, "embed_tokens", "lm_head"),
}


def target_modules(model: PreTrainedModel, targets: str | Iterable[str]) -> list[str]:
    """Return the module names to adapt; raise UserError for one that the model does not have.

    In the group ``all``, an LM head that shares the embedding's weight is adapted through the embedding
    alone: two adapters on one tied weight could not be merged.
    """
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if isinstance(targets, str):
        tied = bool(model.config.tie_word_embeddings)
        wanted = [name for name in GROUPS[targets] if name in present and not (tied and name == "lm_head")]
        if not wanted:
            raise UserError(
                f"method.targets={targets!r} matches no module of {type(model).__name__} "
                f"(looked for {', '.join(GROUPS[targets])}); give a list of its own module names"
            )
        return wanted
    wanted = list(targets)
    for name in wanted:
        if not any(full == name or full.endswith(f".{name}") for full, _ in model.named_modules()):
            hint = did_you_mean(name, {part for part in present if part and not part.isdigit()})
            raise UserError(f"method.targets: '{name}' matches no module of {type(model).__name__}: {hint}")
    if not wanted:
        raise UserError("method.targets is an empty list; name at least one module or group")
    return wanted


def prepare(model: PreTrainedModel, spec: MethodSpec, base: Path) -> PreTrainedModel:
    """Return the model with LoRA adapters (B = 0, so it starts as the base), all else frozen.

    A new classification head has no pre-trained counterpart and trains whole.
    """
    classifies = "SequenceClassification" in type(model).__name__
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.scaling_alpha,  # type: ignore[arg-type]  # PEFT divides; a float is right
        lora_dropout=spec.dropout,
        target_modules=target_modules(model, spec.targets),
        task_type=TaskType.SEQ_CLS if classifies else TaskType.CAUSAL_LM,
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return cast(PreTrainedModel, adapted)  # it passes everything on to the model it wraps


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """Write adapter_config.json, which names the local base folder, and what a merged model would need."""
    save_model_config(cast(PreTrainedModel, cast(PeftModel, model).get_base_model()), folder)
    config = model.peft_config["default"]
    training = config.inference_mode
    config.inference_mode = True
    config.save_pretrained(str(folder))
    config.inference_mode = training


METHOD = Method(name="lora", prepare=prepare, save_config=save_config, exclude_frozen=True)
