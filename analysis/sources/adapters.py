"""PEFT adapter folders, read as the file format they are: which weights change, and by which factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankdrift import files
from rankdrift.analysis.sources.folders import adapter_tensors, config_folder
from rankdrift.analysis.sources.tensors import ADAPTER_CONFIG, Tensors
from rankdrift.analysis.sources.updates import DenseUpdate, Update, untouched
from rankdrift.errors import IntegrityError, UserError
from rankdrift.export import adapter_update
from rankdrift.export.adapter_update import LowRankUpdate
from rankdrift.layout import INITIAL_ADAPTER

__all__ = ["Adapter", "LowRankUpdate", "untouched"]

KNOWN_VARIANTS = ("use_dora", "init_lora_weights", "peft_type", "trainable_token_indices", "bias")


@dataclass(frozen=True)
class Adapter:
    """An adapter: ``adapter_config.json`` and ``adapter_model.safetensors``, or a LoRA run's checkpoint.

    Read exactly: LoRA, rank-stabilised or with patterns of ranks and scales; DoRA; AdaLoRA; PiSSA, OLoRA,
    CorDA and LoRA-GA beside the adapter they started from; and what is trained beside factors: biases, rows
    of tokens, whole modules. Anything else is refused by name.
    """

    folder: Path
    initial: Path | None = None
    """The adapter before training; by default ``initial_adapter`` beside the settings, if it is needed."""

    @cached_property
    def config_path(self) -> Path:
        """Its settings' file."""
        return config_folder(self.folder) / ADAPTER_CONFIG

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The settings; raises UserError, which names them, where they make an update of another kind."""
        config: dict[str, Any] = files.read_json(self.config_path)
        adapter_update.check(config, self.config_path, KNOWN_VARIANTS)
        return config

    @cached_property
    def tensors(self) -> Tensors:
        """The stored tensors."""
        return adapter_tensors(self.folder)

    @cached_property
    def start(self) -> Adapter | None:
        """The initial adapter, where one is given or was subtracted from the base weights; else None.

        One that is given always counts: PEFT's way to save an adapter that began otherwise states
        ``init_lora_weights=true`` beside its start. Raises UserError where it is needed and cannot be found.
        """
        if self.initial is None and not adapter_update.subtracts_start(self.config):
            return None
        folder = self.initial or self.config_path.parent / INITIAL_ADAPTER
        if not (folder / ADAPTER_CONFIG).is_file():
            raise UserError(
                f"{self.folder}: it began from an adapter other than zero "
                f"(init_lora_weights={self.config.get('init_lora_weights', True)!r}), and there is none in "
                f"{folder}; put the adapter as it was before training there, or convert this one with PEFT: "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )
        return Adapter(folder)

    @cached_property
    def factored(self) -> dict[str, adapter_update.Factors]:
        """Module (``model.layers.0.self_attn.q_proj``) -> what makes the update of its weight."""
        return adapter_update.factors(self.tensors.names, self.config, self.folder)

    @cached_property
    def replaced(self) -> dict[str, str]:
        """Parameter name in the base model -> stored tensor, of what is saved whole: modules, and biases.

        An adapted embedding's own weight may be saved beside its factors; it is the base's.
        """
        other = (".lora_", ".base_layer.weight", adapter_update.TOKEN_ROWS)
        whole = (name for name in self.tensors.names if not any(part in name for part in other))
        return {name.removeprefix(adapter_update.PREFIX).replace(".base_layer.", "."): name for name in whole}

    @cached_property
    def token_rows(self) -> dict[str, tuple[str, list[int]]]:
        """Embedding module -> (stored tensor, tokens), where the rows of some tokens train."""
        return adapter_update.token_rows(self.tensors.names, self.config, self.folder)

    @property
    def modules(self) -> list[str]:
        """All modules whose weights :meth:`update` gives."""
        return [*self.factored, *self.token_rows]

    def update(self, module: str, weight: Callable[[], Tensor], transposed: bool | None = None) -> Update:
        """Return the update of a module's weight, turned as the weight is stored.

        Parameters
        ----------
        module
            One of ``modules``.
        weight
            Reads W0 as it is stored; called for DoRA and rows of tokens alone.
        transposed
            Whether the module stores (inputs, outputs), as GPT-2's do; by default as the settings say. PEFT
            looks at the module as well, so where its kind is known it decides.

        Raises
        ------
        UserError
            Where the tensors are not what the settings state, or belong to another start.
        IntegrityError
            Where they are not finite, or DoRA has no direction to scale.

        """
        if module in self.token_rows:
            return self._replaced_rows(module, weight())
        turned = bool(self.config.get("fan_in_fan_out")) if transposed is None else transposed
        stored, update = self.factored[module], self._low_rank(module, turned)
        if self.start:
            update = update.minus(self._started(module, turned, update.scale))
        if not stored.magnitude:
            return update
        whole = weight()
        if update.shape != tuple(whole.shape):
            return update  # the caller compares shapes, and knows how the weight is called
        outputs = 1 if stored.embedding or turned else 0
        magnitude = self.tensors.tensor(stored.magnitude)
        try:
            return DenseUpdate(adapter_update.dora_update(whole, update, magnitude, outputs))
        except IntegrityError as error:
            raise IntegrityError(f"{self.folder}: {module}: {error}") from None

    def _replaced_rows(self, module: str, weight: Tensor) -> DenseUpdate:
        name, tokens = self.token_rows[module]
        rows, change = self.tensors.tensor(name).double(), torch.zeros(weight.shape, dtype=torch.float64)
        if len(rows) != len(tokens) or max(tokens) >= len(weight) or rows.shape[1:] != weight.shape[1:]:
            raise IntegrityError(
                f"{self.folder}: {name} is {tuple(rows.shape)} for {len(tokens)} tokens of {module}, whose "
                f"weight is {tuple(weight.shape)}; export the adapter again"
            )
        change[tokens] = rows - weight[tokens].double()
        return DenseUpdate(change)

    def _low_rank(self, module: str, turned: bool) -> LowRankUpdate:
        """Return s B A, or s B diag(E) A."""
        stored = self.factored[module]
        a, b = self.tensors.tensor(stored.a), self.tensors.tensor(stored.b)
        if stored.e:
            b = b.double() * self.tensors.tensor(stored.e).double().T  # no third rounding
        scale = adapter_update.scaling(self.config, module, a.shape[0], self.config_path)
        return adapter_update.update_of(stored, a, b, scale, turned)

    def _started(self, module: str, turned: bool, scale: float) -> LowRankUpdate:
        """Return s B0 A0."""
        assert self.start is not None
        if turned and str(self.config["init_lora_weights"]).lower() == "olora":
            raise UserError(
                f"{self.folder}: {module} is a Conv1D, of which PEFT's OLoRA subtracts the transpose; "
                "merge it with peft"
            )
        if module not in self.start.factored:
            raise UserError(
                f"{self.start.folder}: no {module}, which {self.folder} adapts; give its own start"
            )
        start = self.start._low_rank(module, turned)
        if start.scale != scale:
            raise UserError(
                f"{self.start.folder}: s = {start.scale} for {module}, but {scale} in {self.folder}; "
                "give the adapter it started from"
            )
        return start
