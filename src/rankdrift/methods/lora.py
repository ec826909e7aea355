"""LoRA: W = W0 + (alpha / r) B A with W0 frozen (Hu et al., arXiv 2106.09685), through PEFT.

PEFT is imported where it is used: a recipe is checked with the settings below, which is not to take seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field, field_validator

from rankdrift.errors import did_you_mean
from rankdrift.methods import Method, save_model_config
from rankdrift.models.families import GROUPS
from rankdrift.settings import Fraction, PositiveInt
from rankdrift.spec import MethodSpec

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Settings(MethodSpec):
    """Settings of LoRA."""

    name: str = "lora"
    rank: PositiveInt = 8
    """LoRA rank r."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """LoRA alpha; None is 2r. The update is (alpha / r) B A."""
    dropout: Fraction = 0.0
    """Dropout on the input of A."""
    targets: str | tuple[str, ...] = "both"
    """qv, attention, mlp, both (attention and mlp), all (with embeddings and head), or module names."""

    @field_validator("targets")
    @classmethod
    def _known_group(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(targets, str) and targets not in GROUPS:
            hint = did_you_mean(targets, GROUPS)
            raise ValueError(f"'{targets}' is not a target group: {hint} Or give a list of module names.")
        return targets

    @property
    def scaling_alpha(self) -> float:
        """The alpha in force: the given one, or 2r."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank

    def in_force(self) -> dict[str, Any]:
        """Return the settings with the alpha in force."""
        return {**super().in_force(), "alpha": self.scaling_alpha}

    @property
    def adapter_rank(self) -> int:
        """The rank of B A."""
        return self.rank

    @property
    def is_random(self) -> bool:
        """Whether dropout draws masks."""
        return self.dropout > 0


def adapted_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules that have an adapter, or train whole, in the model's order."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    ]


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with LoRA adapters (B = 0, so it starts as the base), all else frozen.

    A new classification head has no pre-trained counterpart and trains whole, with all that came with it: a
    pooling layer left as it was drawn would be noise.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    from rankdrift.models.targets import target_modules

    new = list(getattr(model, "new_modules", ()))
    classifies = "SequenceClassification" in type(model).__name__
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scaling_alpha,  # type: ignore[arg-type]  # PEFT divides; a float is right
        lora_dropout=settings.dropout,
        target_modules=target_modules(model, settings.targets),
        modules_to_save=new or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type=TaskType.SEQ_CLS if classifies else TaskType.CAUSAL_LM,
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return cast("PreTrainedModel", adapted)  # it passes everything on to the model it wraps


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """Write adapter_config.json, which names the local base folder, and what a merged model would need."""
    save_model_config(cast("PreTrainedModel", cast("PeftModel", model).get_base_model()), folder)
    config = model.peft_config["default"]
    training = config.inference_mode
    config.inference_mode = True
    config.save_pretrained(str(folder))
    config.inference_mode = training


METHOD = Method(
    name="lora",
    settings=Settings,
    prepare=prepare,
    save_config=save_config,
    adapted=adapted_modules,
    exclude_frozen=True,
)
