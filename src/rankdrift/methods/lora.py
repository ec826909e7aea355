"""LoRA: W = W0 + (alpha / r) B A with W0 frozen (Hu et al., arXiv 2106.09685), through PEFT.

PEFT is imported where it is used: a recipe is checked with the settings below, which is not to take seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field, field_validator

from rankdrift.errors import UserError, did_you_mean
from rankdrift.methods import Method, save_model_config
from rankdrift.models.families import GROUPS
from rankdrift.settings import Fraction, NonNegativeInt, PositiveInt
from rankdrift.spec import MethodSpec

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Settings(MethodSpec):
    """Settings of LoRA."""

    alpha_over_rank: ClassVar[float] = 2.0
    """What alpha is by default, over r."""
    name: str = "lora"
    rank: PositiveInt = 8
    """LoRA rank r."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """LoRA alpha; None is 2r. The update is (alpha / r) B A."""
    dropout: Fraction = 0.0
    """Dropout on the input of A."""
    targets: str | tuple[str, ...] = "both"
    """qv, attention, mlp, both (attention and mlp), all (with embeddings and head), or module names."""
    layers: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """The first and the last block that are adapted, from 0; None is all."""
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    """End of a module's name, or a regular expression for it -> a rank of its own."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """The same of alpha, which is 2r of the module's own rank where neither says."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that train whole, beside the adapters."""
    trainable_token_indices: tuple[NonNegativeInt, ...] = ()
    """Tokens whose rows of the embedding train, and of a head that is the embedding."""

    @field_validator("targets")
    @classmethod
    def _known_group(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(targets, str) and targets not in GROUPS:
            hint = did_you_mean(targets, GROUPS)
            raise ValueError(f"'{targets}' is not a target group: {hint} Or give a list of module names.")
        return targets

    @field_validator("trainable_token_indices")
    @classmethod
    def _each_once(cls, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if twice := [token for token in tokens if tokens.count(token) > 1]:
            raise ValueError(f"token {twice[0]} is there {tokens.count(twice[0])} times; name each once")
        return tokens

    @property
    def scaling_alpha(self) -> float:
        """The alpha in force: the given one, or 2r."""
        return self.alpha if self.alpha is not None else self.alpha_over_rank * self.rank

    def in_force(self) -> dict[str, Any]:
        """Return the settings with the alpha in force."""
        settings = {**super().in_force(), "alpha": self.scaling_alpha}
        further = ("layers", "rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices")
        return {key: value for key, value in settings.items() if key not in further or value}

    @property
    def adapter_rank(self) -> int:
        """The largest rank of B A."""
        return max([self.rank, *self.rank_pattern.values()])

    @property
    def alphas(self) -> dict[str, float]:
        """The alphas in force of modules that have one of their own."""
        factor = self.alpha_over_rank
        own = {} if self.alpha else {name: factor * rank for name, rank in self.rank_pattern.items()}
        return {**own, **self.alpha_pattern}

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


def prepare(model: PreTrainedModel, settings: Settings, base: Path, **variant: Any) -> PreTrainedModel:
    """Return the model with LoRA adapters (B = 0, so it starts as the base), all else frozen.

    ``variant`` holds what a variant of LoRA sets of PEFT's ``LoraConfig``.

    A new classification head has no pre-trained counterpart and trains whole, with all that came with it: a
    pooling layer left as it was drawn would be noise.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    from rankdrift.models.targets import target_modules

    new = list(getattr(model, "new_modules", ()))
    classifies = "SequenceClassification" in type(model).__name__
    targets = target_modules(model, settings.targets)
    require_ranks(model, settings, targets)
    _require_tokens(model, settings, targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scaling_alpha,  # type: ignore[arg-type]  # PEFT divides; a float is right
        lora_dropout=settings.dropout,
        target_modules=targets,
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern=settings.alphas,
        layers_to_transform=blocks(model, settings.layers),
        modules_to_save=[*new, *settings.modules_to_save] or None,
        trainable_token_indices=list(settings.trainable_token_indices) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type=TaskType.SEQ_CLS if classifies else TaskType.CAUSAL_LM,
        **variant,
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return cast("PreTrainedModel", adapted)  # it passes everything on to the model it wraps


def blocks(model: PreTrainedModel, layers: tuple[int, int] | None) -> list[int] | None:
    """Return the blocks to adapt; raise UserError for some that are not there."""
    if layers is None:
        return None
    first, last = layers
    count = model.config.num_hidden_layers
    if not first <= last < count:
        raise UserError(
            f"method.layers={[first, last]}: {type(model).__name__} has blocks 0 to {count - 1}; name the "
            "first and the last"
        )
    return list(range(first, last + 1))


def _is_of(pattern: str, module: str) -> bool:
    """Return whether a pattern is of a module, as PEFT reads them."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def require_ranks(model: PreTrainedModel, settings: Settings, targets: list[str]) -> None:
    """Raise UserError where a rank is above what a matrix can have, or a pattern is of no module."""
    from rankdrift.models.targets import ends_in

    unused = {*settings.rank_pattern, *settings.alpha_pattern}
    for name, module in model.named_modules():
        if not any(ends_in(name, end) for end in targets):
            continue
        own = [key for key in settings.rank_pattern if _is_of(key, name)]
        unused -= {key for key in unused if _is_of(key, name)}
        rank = settings.rank_pattern[own[0]] if own else settings.rank
        smaller = min(module.weight.shape)
        if rank > smaller:
            raise UserError(
                f"method.rank={rank} is above the rank that '{name}' of {type(model).__name__} can have, "
                f"{smaller}; choose at most {smaller}, or leave it out of method.targets"
            )
    if unused:
        raise UserError(
            f"method.rank_pattern or alpha_pattern: '{sorted(unused)[0]}' is the end of no adapted module's "
            "name; give one, or a regular expression of it"
        )


def _require_tokens(model: PreTrainedModel, settings: Settings, targets: list[str]) -> None:
    """Raise UserError where there is no row of a token, or its matrix is adapted or trains whole."""
    from rankdrift.models.targets import ends_in

    tokens = settings.trainable_token_indices
    if not tokens:
        return
    rows = len(cast("Any", model.get_input_embeddings()).weight)
    if max(tokens) >= rows:
        raise UserError(
            f"method.trainable_token_indices: there is no token {max(tokens)}; {type(model).__name__} has "
            f"tokens 0 to {rows - 1}"
        )
    head = model.get_output_embeddings() if model.config.tie_word_embeddings else None
    for name, module in model.named_modules():
        ends = [end for end in (*targets, *settings.modules_to_save) if ends_in(name, end)]
        if ends and module in (model.get_input_embeddings(), head):
            raise UserError(
                f"method.trainable_token_indices: '{ends[0]}' is adapted or trains whole already; leave it "
                "out of method.targets and method.modules_to_save"
            )


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
