"""What a run trained, made again from its configuration alone: names and shapes, or the module itself.

transformers and peft build the module, so what is stored is compared with an account of it that no code of
ours had a part in. On the ``meta`` device nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankdrift.errors import IntegrityError, UserError

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Blueprint:
    """The parameters of a module that was trained."""

    needed: Mapping[str, Shape]
    """What a checkpoint must hold: of a LoRA run what trains, else everything; shared parameters once."""
    known: Mapping[str, Shape]
    """Every parameter, under all of its names."""
    tied: Mapping[str, str]
    """Further names of shared parameters, to the name in ``needed``: ``lm_head.weight`` of a tied model."""

    def check(self, stored: Mapping[str, Shape], aliases: Mapping[str, str], where: Path) -> None:
        """Raise IntegrityError unless what is stored has the needed names, no unknown one, and the shapes."""
        if missing := sorted(self.needed.keys() - stored.keys() - aliases.keys()):
            raise _unlike(where, f"parameter '{missing[0]}' is missing ({len(missing)} in all)")
        if unexpected := sorted(stored.keys() - self.known.keys()):
            raise _unlike(where, f"the model has no parameter '{unexpected[0]}' ({len(unexpected)} in all)")
        for name, shape in stored.items():
            if shape != self.known[name]:
                raise _unlike(where, f"'{name}' is {shape}, the model's is {self.known[name]}")


def blueprint(settings: Path, base: Path, labels: int) -> Blueprint:
    """Return the parameters of what was trained.

    Parameters
    ----------
    settings
        Folder with ``adapter_config.json``, or with the ``config.json`` of a whole model.
    base
        Folder of the base model; only of interest for an adapter without a ``config.json`` beside it.
    labels
        Classes of a classification head, 0 for a language model.

    Raises
    ------
    IntegrityError
        Where a configuration makes no model.
    UserError
        Where there is no configuration.

    """
    with torch.device("meta"):
        module = _module(settings, _untrained(settings, base, labels))
    everything = dict(module.named_parameters(remove_duplicate=False))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return Blueprint(
        needed={
            name: tuple(parameter.shape)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        },
        known={name: tuple(parameter.shape) for name, parameter in everything.items()},
        tied={name: names[id(p)] for name, p in everything.items() if names[id(p)] != name},
    )


def trained_module(settings: Path, base: Path, labels: int) -> nn.Module:
    """Return the module that was trained, in fp32; all but a base model's weights are yet to be filled in."""
    if _is_adapter(settings):
        return _module(settings, loaded(base, labels, **_head(labels))).eval()
    return _module(settings, _untrained(settings, base, labels)).eval()


def loaded(folder: Path, labels: int, **options: Any) -> Any:
    """Return a folder's model in fp32 as transformers loads it; raise IntegrityError where it does not."""
    try:
        return _auto(labels).from_pretrained(folder, dtype=torch.float32, **_LOCAL, **options).eval()
    except Exception as error:  # damage makes transformers raise anything
        raise IntegrityError(f"{folder}: transformers cannot load it ({error}); make it again") from error


def needs_base(settings: Path) -> bool:
    """Return whether a configuration says what was trained only together with the base model's."""
    return _is_adapter(settings) and not (settings / MODEL_CONFIG).is_file()


def label_count(shapes: Mapping[str, Shape]) -> int:
    """Return the classes of the classification head among parameters, 0 where there is none."""
    return next((shape[0] for name, shape in shapes.items() if "score" in name.split(".") and shape), 0)


def _is_adapter(settings: Path) -> bool:
    return (settings / ADAPTER_CONFIG).is_file()


def _module(settings: Path, model: Any) -> nn.Module:
    """Return the module that was trained on top of a model: the model, or PEFT's wrapping of it."""
    if not _is_adapter(settings):
        return model.requires_grad_(True)
    from peft import PeftConfig, get_peft_model

    try:
        config: Any = PeftConfig.from_pretrained(str(settings))
        config.inference_mode = False  # in which nothing would train
        config.init_lora_weights = False  # values are filled in; a start like PiSSA's would change the base
        return get_peft_model(model, config)
    except Exception as error:  # a damaged configuration makes peft raise anything
        raise IntegrityError(
            f"{settings / ADAPTER_CONFIG}: peft makes no adapter of it ({error}); restore it"
        ) from error


def _untrained(settings: Path, base: Path, labels: int) -> Any:
    """Return a model of the right architecture, with weights of no meaning."""
    folder, options = (base, _head(labels)) if needs_base(settings) else (settings, {})
    if not (folder / MODEL_CONFIG).is_file():
        raise UserError(f"{folder}: no {MODEL_CONFIG}; put the model back where it was")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, **_LOCAL, **options)
        return _auto(labels).from_config(config, trust_remote_code=False)
    except Exception as error:  # a damaged configuration makes transformers raise anything
        raise IntegrityError(
            f"{folder / MODEL_CONFIG}: transformers makes no model of it ({error}); restore it"
        ) from error


def _head(labels: int) -> dict[str, int]:
    """Return the size of a head that the base model's own configuration does not know of."""
    return {"num_labels": labels} if labels else {}


def _auto(labels: int) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if labels else AutoModelForCausalLM


def _unlike(where: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{where}: {what}; it belongs to another model, use another step")
