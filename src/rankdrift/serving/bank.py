"""The served models in memory: whole ones each by itself, all adapters beside one base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rankdrift.errors import IntegrityError
from rankdrift.models.base import load_model
from rankdrift.models.exports import load_export
from rankdrift.serving.deployed import BASE, Deployed, Tuned
from rankdrift.serving.planted import WEIGHTS, plant
from rankdrift.spec import ModelSpec


@dataclass(frozen=True)
class Place:
    """Where models come from and where they run."""

    base: Path
    """The base model's folder."""
    spec: ModelSpec
    labels: int = 0
    """Classes of a classification head."""
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def ready(self, model: Any) -> Any:
        """Return a model as it is served."""
        return model.eval().requires_grad_(False).to(self.device, self.dtype)

    def load(self, deployed: Deployed) -> Any:
        """Load one model by itself, without a bank; merging is done in fp32, whatever it is served in."""
        spec = self.spec.model_copy(update={"gradient_checkpointing": False})
        if deployed.tuned is None:
            return self.ready(load_model(self.base, spec, self.labels, self.dtype))
        dtype = torch.float32 if deployed.way == "merged" else self.dtype
        model: Any = load_export(deployed.tuned.export, self.base, spec, self.labels, dtype)
        if deployed.way == "merged":
            model = model.merge_and_unload(safe_merge=True)
        return self.ready(model)


@dataclass(frozen=True)
class Served:
    """A model that answers, and which of its adapters the rows have."""

    deployed: Deployed
    model: Any
    adapters: tuple[str, ...] = ()
    """Adapters in use: none, one, or those that rows take in turn."""

    @property
    def is_mixed(self) -> bool:
        """Whether rows have different adapters."""
        return self.deployed.way == "mixed"

    def activate(self) -> None:
        """Make this way of serving the model the one that is in force."""
        if self.adapters:
            self.model.set_adapter(self.adapters[0])

    def of_rows(self, rows: int) -> dict[str, Any]:
        """Return what a forward pass is told besides its tokens."""
        if not self.is_mixed:
            return {}
        return {"adapter_names": [self.adapters[row % len(self.adapters)] for row in range(rows)]}

    def __call__(self, tokens: Tensor, **options: Any) -> Any:
        """Run the model on (rows, positions) tokens."""
        return self.model(input_ids=tokens, **self.of_rows(len(tokens)), **options)


@dataclass
class Bank:
    """The models of a benchmark, each loaded when it is first asked for."""

    place: Place
    scratch: Path
    """Folder for planted adapters."""
    count: int = 4
    """Adapters of a mixed batch: the trained one, and planted ones of its shape."""
    whole: dict[Deployed, Any] = field(default_factory=dict)
    adapted: Any = None
    """The base model with all adapters."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Arm -> names of its adapters there."""

    def served(self, deployed: Deployed) -> Served:
        """Return a model that is ready to answer."""
        if deployed.way in ("unmerged", "mixed"):
            assert deployed.tuned
            names = self._adapters(deployed.tuned)
            return Served(deployed, self.adapted, names if deployed.way == "mixed" else names[:1])
        if deployed not in self.whole:
            self.whole[deployed] = self.place.load(deployed)
        return Served(deployed, self.whole[deployed])

    @contextmanager
    def without_adapters(self) -> Iterator[Any]:
        """Give the base model that the adapters are beside, as it is without them.

        A classification head stays: the base model has none, and a new one would be drawn at random.
        """
        layers = [module for module in self.adapted.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield self.adapted
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def folders(self, tuned: Tuned) -> list[Path]:
        """Return the folders of an arm's adapters: the trained one, then planted ones."""
        planted = self.scratch / f"{tuned.arm}"
        if not tuned.can_be_mixed:
            return [tuned.export]
        made = [planted / str(seed) for seed in range(1, self.count)]
        return [
            tuned.export,
            *(
                path if path.is_dir() else plant(tuned.export, path, seed)
                for seed, path in enumerate(made, start=1)
            ),
        ]

    def _adapters(self, tuned: Tuned) -> tuple[str, ...]:
        """Return the names of an arm's adapters, loaded beside the base model."""
        if tuned.arm not in self.names:
            names = []
            for number, folder in enumerate(self.folders(tuned)):
                name = f"{tuned.arm.replace('.', '_')}-{number}"
                self._load(folder, name)
                require_loaded(self.adapted, folder, name)
                names.append(name)
            self.names[tuned.arm] = tuple(names)
        return self.names[tuned.arm]

    def _load(self, folder: Path, name: str) -> None:
        if self.adapted is None:
            model = self.place.load(Deployed(BASE))
            self.adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        else:
            self.adapted.load_adapter(str(folder), adapter_name=name)
        self.adapted = self.place.ready(self.adapted)


def require_loaded(model: nn.Module, folder: Path, name: str) -> None:
    """Raise IntegrityError where a tensor of an adapter's folder is not what the model answers with.

    A key that fits no module is left out by some engines without a word: they answer with the base model.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(folder / WEIGHTS)
    loaded = get_peft_model_state_dict(model, adapter_name=name)
    lost = sorted(
        key
        for key, tensor in stored.items()
        if key not in loaded or not torch.equal(loaded[key].cpu(), tensor.to(loaded[key].dtype))
    )
    if lost or not stored:
        raise IntegrityError(
            f"{folder}: {len(lost)} of {len(stored)} tensors fit no module of the base model "
            f"({', '.join(lost[:2])}), so that it would answer without them; was the adapter trained on "
            "another base model?"
        )
