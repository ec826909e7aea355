"""Which settings make a run the run it is: those that can change a trained weight, and what they refer to.

A run resumes, and is "finished before", where its identity is the same. Content counts, not where it lies:
the training rows by their tokens, the base model by its weights. What is only recorded of a run, where it is
kept and how it is scored or analysed may change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rankdrift import files
from rankdrift.spec.sections import Spec

Role = Literal["identity", "content", "rounding", "record", "place", "afterwards"]

SECTIONS: dict[str, Role] = {"method": "identity", "scoring": "afterwards", "analysis": "afterwards"}
"""Sections whose keys all have one role."""
KEYS: dict[str, Role] = {
    "study": "place",
    "arm": "place",
    "seed": "identity",
    "output": "place",
    "storage": "place",
    "model.name": "content",
    "model.revision": "content",
    "model.head": "identity",
    "model.heads": "content",
    "model.attention": "rounding",
    "model.gradient_checkpointing": "rounding",
    "model.compile": "rounding",
    "model.liger": "rounding",
    "data.tasks": "content",
    "data.mixture": "identity",
    "data.root": "content",
    "data.carve": "content",
    "data.max_length": "content",
    "data.train_limit": "content",
    "data.validation_limit": "record",
    "data.general_text": "afterwards",
    "training.steps": "identity",
    "training.epochs": "content",
    "training.tokens": "content",
    "training.global_batch": "identity",
    "training.micro_batch": "rounding",
    "training.packing": "rounding",
    "training.micro_batch_tokens": "rounding",
    "training.learning_rate": "identity",
    "training.schedule": "identity",
    "training.warmup_steps": "identity",
    "training.warmup_ratio": "identity",
    "training.minimum_rate": "identity",
    "training.decay_ratio": "identity",
    "training.weight_decay": "identity",
    "training.beta1": "identity",
    "training.beta2": "identity",
    "training.epsilon": "identity",
    "training.clip": "identity",
    "training.precision": "identity",
    "training.deterministic": "rounding",
    "training.log_every": "record",
    "training.eval_every": "record",
    "training.eval_steps": "record",
    "training.eval_rows": "record",
    "training.eval_items": "record",
    "training.save_every": "record",
    "training.save_steps": "record",
    "training.keep_last": "record",
    "training.keep_every": "record",
    "training.keep_best": "record",
    "training.best": "record",
    "training.patience": "record",
    "training.min_delta": "record",
    "training.mirrors": "record",
    "training.probe_every": "record",
    "training.probe_conflict": "rounding",
    "training.profile": "record",
}
"""Every other key -> its role: ``identity`` counts as it is set, ``content`` by what it names, ``rounding``
moves last bits alone (as another number of ranks does), the others change no weight."""

LATER = ("training.warmup_ratio", "training.minimum_rate", "training.decay_ratio")
"""Keys of the identity that came when there were runs already: they count where they are not the default."""


def role(key: str) -> Role:
    """Return the role of a dotted key; KeyError for one that has none."""
    return SECTIONS.get(key.split(".")[0]) or KEYS[key]


def flattened(spec: Spec) -> dict[str, Any]:
    """Return every setting by its dotted key, in plain JSON types."""
    tree = spec.model_dump(mode="json")
    flat = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    for section, values in tree.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
    return flat


def identity(spec: Spec, precision: str, versions: Mapping[str, int], rows: str, base: str) -> dict[str, Any]:
    """Return what makes a run the run it is, by name.

    Parameters
    ----------
    spec
        The settings.
    precision
        The arithmetic in force: ``auto`` resolved.
    versions
        Task -> version of its prompt and choices.
    rows
        Digest of the training rows (``data.token_table``).
    base
        Digest of the base model's weights.

    """
    plain = {key: value for key, value in flattened(spec).items() if not key.startswith("method.")}
    counted = {key: value for key, value in plain.items() if role(key) == "identity"}
    default = flattened(Spec())
    counted = {key: value for key, value in counted.items() if key not in LATER or value != default[key]}
    counted |= {f"method.{key}": value for key, value in spec.method.in_force().items()}
    counted["training.precision"] = precision
    return {**counted, "task versions": dict(versions), "training rows": rows, "base model": base}


def digest(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an identity."""
    return files.digest_json(dict(identity))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two identities, each with both its values."""
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def recorded(spec: Spec) -> dict[str, Any]:
    """Return the settings that say what is recorded of a run, and change no weight."""
    return {key: value for key, value in flattened(spec).items() if role(key) == "record"}


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a digest
