"""The ways in which the models of a study can be served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankdrift import files

Way = Literal["base", "full", "merged", "unmerged", "mixed"]
"""The base model; a whole tuned model; base and adapter in one; base with the adapter beside it; base with
several adapters, of which each row of a batch has its own."""
BASE: Way = "base"
CONFIG = "adapter_config.json"
NOT_MIXED = ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication")
"""What PEFT does not do with an adapter a row."""


@dataclass(frozen=True)
class Tuned:
    """A tuned model as it is stored: a model folder, or an adapter."""

    arm: str
    export: Path

    @property
    def is_adapter(self) -> bool:
        """Whether it needs the base model beside it."""
        return (self.export / CONFIG).is_file()

    @property
    def config(self) -> dict[str, Any]:
        """An adapter's settings."""
        return dict(files.read_json(self.export / CONFIG))

    @property
    def can_be_mixed(self) -> bool:
        """Whether rows of one batch can each have an adapter of this kind."""
        if not self.is_adapter:
            return False
        config = self.config
        plain = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
        return plain and not any(config.get(key) for key in NOT_MIXED)


@dataclass(frozen=True)
class Deployed:
    """A model and how it is served."""

    way: Way
    tuned: Tuned | None = None
    """None of the base model."""

    @property
    def arm(self) -> str:
        """The study's arm; "base" of the base model."""
        return self.tuned.arm if self.tuned else BASE

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.arm if self.way in (BASE, "full") else f"{self.arm}, {self.way}"


def ways_of(models: Iterable[Tuned], mixes: bool = True) -> Iterator[Deployed]:
    """Yield the base model, then every way to serve each tuned one."""
    yield Deployed(BASE)
    for tuned in models:
        if not tuned.is_adapter:
            yield Deployed("full", tuned)
            continue
        yield Deployed("merged", tuned)
        yield Deployed("unmerged", tuned)
        if mixes and tuned.can_be_mixed:
            yield Deployed("mixed", tuned)


def bytes_on_disk(deployed: Deployed, base: Path) -> int:
    """Return the bytes of weights that a server has to have; of merged models those of the whole model."""

    def of(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    if deployed.tuned is None or deployed.way == "merged":
        return of(base)
    return of(deployed.tuned.export) + (of(base) if deployed.tuned.is_adapter else 0)
