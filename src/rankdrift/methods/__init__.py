"""Methods: which parameters train, how they start, and what an export needs. One file a method.

To add one, write ``methods/<name>.py`` that defines ``METHOD``, a :class:`Method`, and imports torch only
where it is used: recipes are checked with its settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankdrift.spec import MethodSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _same_rate(name: str, settings: Any) -> float:
    return 1.0


def _reads_nothing(settings: Any) -> int:
    return 0


def _never_rests(name: str, settings: Any) -> bool:
    return False


@dataclass(frozen=True)
class Method:
    """A way to train a base model."""

    name: str
    settings: type[MethodSpec]
    """Its section of an experiment."""
    prepare: Callable[..., PreTrainedModel]
    """(model, settings, base folder) -> the model to train, its trainable parameters marked. A method that
    ``reads`` rows is given them as well."""
    save_config: Callable[[PreTrainedModel, Path], None]
    """Write what an export needs besides weights and tokenizer."""
    adapted: Callable[[PreTrainedModel], list[str]]
    """Model to train -> names of the modules that it adapts or trains whole; none where all of it trains."""
    exclude_frozen: bool
    """Checkpoints leave out what does not train (the base is on disk already)."""
    rate: Callable[[str, Any], float] = _same_rate
    """(name of a parameter, settings) -> factor of its learning rate."""
    learning_rate: float = 2e-4
    """What ``training.learning_rate`` is where nobody has said (docs/methods.md says where it is from)."""
    rests: Callable[[str, Any], bool] = _never_rests
    """(name of a parameter, settings) -> whether it is saved as one that trains, and never does."""
    reads: Callable[[Any], int] = _reads_nothing
    """Settings -> how many of the run's first rows ``prepare`` is given: ``input_ids``, ``attention_mask``
    and, of a language model, ``labels`` (-100 where no loss is), int64 (rows, longest), on the CPU, the same
    on every rank. The model is in fp32 then."""
    allocates: bool = False
    """Whether ranks are taken from some modules in the course of a run (``training/rank_budget.py``)."""
    take_up: Callable[[PreTrainedModel, Any, Path, Path], PreTrainedModel] | None = None
    """Of a method that changes base weights to begin as the base: (model, settings, base folder, folder of
    the adapter as it was before training) -> what ``prepare`` gave when the run began."""


def save_model_config(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json, which names the model's own class, and generation_config.json if it generates."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
