"""AdaLoRA: W0 + s P diag(lambda) Q, whose rank is given to the modules that need it (arXiv 2303.10512).

P, Q and lambda are PEFT's ``lora_B``, ``lora_A`` and ``lora_E``. Every module begins with ``initial_rank``
triplets (a column of P, a number of lambda, a row of Q); those that matter least lose their lambda, until
``rank`` a module are left on average (``rank_budget.py``). P and Q are kept near orthogonal by a penalty, the
mean over all P and Q of ||P^T P - I||_F and ||Q Q^T - I||_F.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field, model_validator

from rankdrift.errors import UserError
from rankdrift.methods import lora
from rankdrift.settings import Fraction, PositiveInt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Decay = Annotated[float, Field(gt=0, lt=1)]


class Settings(lora.Settings):
    """Settings of AdaLoRA; ``rank`` is what is left a module, on average."""

    name: str = "adalora"
    initial_rank: PositiveInt | None = None
    """Triplets a module begins with; None is 1.5 times the rank, rounded up."""
    full_until: Fraction = 0.1
    """Share of the steps before triplets are taken away."""
    fixed_from: Fraction = 0.7
    """Share of the steps behind which those that are left stay."""
    every: PositiveInt = 10
    """Steps from one choice of triplets to the next."""
    importance_decay: Decay = 0.85
    """Of the running mean of the importance |w dL/dw|."""
    uncertainty_decay: Decay = 0.85
    """Of the running mean of its deviation."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the penalty."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Settings:
        if self.begun_rank < self.rank:
            raise ValueError(f"initial_rank={self.initial_rank} is below rank={self.rank}, to be left")
        if self.full_until >= self.fixed_from:
            raise ValueError(f"full_until={self.full_until} is not before fixed_from={self.fixed_from}")
        for key in ("rank_pattern", "alpha_pattern", "trainable_token_indices"):
            if getattr(self, key):
                raise ValueError(f"{key}: AdaLoRA has none; leave it out")
        if self.schedule:
            raise ValueError("schedule: what rests has no importance, and AdaLoRA would take its rank away")
        return self

    @property
    def begun_rank(self) -> int:
        """The triplets in force that a module begins with."""
        return self.initial_rank or -(-3 * self.rank // 2)

    @property
    def scaling_alpha(self) -> float:
        """The alpha in force: the given one, or twice the rank that modules begin with."""
        return self.alpha if self.alpha is not None else self.alpha_over_rank * self.begun_rank

    @property
    def adapter_rank(self) -> int:
        """The largest rank of P diag(lambda) Q."""
        return self.begun_rank

    def in_force(self) -> dict[str, Any]:
        """Return the settings with alpha and the initial rank in force."""
        return {**super().in_force(), "initial_rank": self.begun_rank}


def prepare(model: PreTrainedModel, settings: Settings, base: Path) -> PreTrainedModel:
    """Return the model with adapters (lambda = 0, so it starts as the base), all else frozen.

    Raises UserError where an embedding is to be adapted.
    """
    from peft import AdaLoraConfig, TaskType, get_peft_model
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from rankdrift.methods._orthogonal import Penalty, keep_orthogonal
    from rankdrift.models.targets import ends_in, target_modules

    targets = target_modules(model, settings.targets)
    lora.require_ranks(model, settings.model_copy(update={"rank": settings.begun_rank}), targets)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and any(ends_in(name, end) for end in targets):
            raise UserError(f"method.targets: AdaLoRA cannot adapt the embedding '{name}'; leave it out")
    classifies = "SequenceClassification" in type(model).__name__
    config = AdaLoraConfig(
        init_r=settings.begun_rank,
        target_r=settings.rank,
        lora_alpha=settings.scaling_alpha,  # type: ignore[arg-type]  # PEFT divides; a float is right
        lora_dropout=settings.dropout,
        target_modules=targets,
        layers_to_transform=lora.blocks(model, settings.layers),
        modules_to_save=[*getattr(model, "new_modules", ()), *settings.modules_to_save] or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type=TaskType.SEQ_CLS if classifies else TaskType.CAUSAL_LM,
        orth_reg_weight=settings.orthogonality,
        total_step=1,  # the schedule is not PEFT's
    )
    adapted: Any = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.penalty = Penalty(settings.orthogonality)
    keep_orthogonal(adapted, adapted.penalty)
    return cast("PreTrainedModel", adapted)


METHOD = replace(
    lora.METHOD,
    name="adalora",
    settings=Settings,
    prepare=prepare,
    learning_rate=1e-3,
    allocates=True,
)
