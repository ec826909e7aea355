"""PEFT LoRA adapter folders, read as the file format they are: which weights change, and by which factors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankdrift import records
from rankdrift.analysis.sources.folders import adapter_tensors, config_folder
from rankdrift.analysis.sources.tensors import ADAPTER_CONFIG, Tensors
from rankdrift.errors import UserError

PREFIX = "base_model.model."
FACTORS = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?$")
EXACT_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base weights as they are."""
OTHER_UPDATES = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "kasa_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "megatron_config",
)
"""Settings of PEFT's LoraConfig under which the update of a weight is not s B A alone."""


@dataclass(frozen=True)
class LowRankUpdate:
    """dW = scale * left @ right, in the orientation of the stored weight."""

    left: Tensor
    """(rows, r), float32."""
    right: Tensor
    """(r, columns), float32."""
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of dW."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The rank of the factors, r; 0 where nothing was adapted."""
        return self.left.shape[1]

    def dense(self) -> Tensor:
        """Return dW (rows, columns) in float64, in which the product of float32 factors loses nothing."""
        return self.scale * (self.left.double() @ self.right.double())


@dataclass(frozen=True)
class Adapter:
    """An adapter: ``adapter_config.json`` and ``adapter_model.safetensors``, or a LoRA run's checkpoint."""

    folder: Path

    @cached_property
    def config_path(self) -> Path:
        """Its settings' file."""
        return config_folder(self.folder) / ADAPTER_CONFIG

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The settings; raises UserError for an adapter whose update is not exactly s B A."""
        path = self.config_path
        config: dict[str, Any] = records.read_json(path)
        if config.get("peft_type") != "LORA":
            kind = config.get("peft_type")
            raise UserError(
                f"{path}: peft_type is {kind!r}, only LORA is read; merge it and give the model folder"
            )
        used = [key for key in OTHER_UPDATES if config.get(key)]
        start = config.get("init_lora_weights", True)
        if start not in EXACT_STARTS:
            used.append(f"init_lora_weights={start!r} (which changes the base weights)")
        if config.get("bias", "none") != "none":
            used.append(f"bias={config['bias']!r}")
        if used:
            raise UserError(
                f"{path}: {', '.join(used)}: its update is not s B A; merge it in float32, give that folder"
            )
        return config

    @cached_property
    def tensors(self) -> Tensors:
        """The stored tensors."""
        return adapter_tensors(self.folder)

    @cached_property
    def factored(self) -> dict[str, dict[str, str]]:
        """Module (``model.layers.0.self_attn.q_proj``) -> factor ("A", "B") -> tensor name."""
        modules: dict[str, dict[str, str]] = {}
        for name in self.tensors.names:
            match = FACTORS.match(name.removeprefix(PREFIX))
            if match:
                modules.setdefault(match["module"], {})[match["factor"]] = name
            elif ".lora_" in name:
                raise UserError(
                    f"{self.folder}: '{name}' is not a factor of plain LoRA; merge the adapter in float32"
                )
        for module, factors in modules.items():
            if set(factors) != {"A", "B"}:
                raise UserError(
                    f"{self.folder}: {module} has only factor {'/'.join(factors)}; export the adapter again"
                )
        return modules

    @cached_property
    def replaced(self) -> dict[str, str]:
        """Parameter name in the base model -> stored tensor, of modules saved whole (``modules_to_save``)."""
        whole = (name for name in self.tensors.names if ".lora_" not in name and ".base_layer." not in name)
        return {name.removeprefix(PREFIX): name for name in whole}

    def update(self, module: str) -> LowRankUpdate:
        """Return the update of a module's weight; embeddings and fan-in-fan-out layers hold its transpose."""
        names = self.factored[module]
        a, b = self.tensors.tensor(names["A"]), self.tensors.tensor(names["B"])
        scale = self.scale(module, rank=a.shape[0])
        if ".lora_embedding_" in names["A"] or self.config.get("fan_in_fan_out"):
            return LowRankUpdate(left=a.T, right=b.T, scale=scale)
        return LowRankUpdate(left=b, right=a, scale=scale)

    def scale(self, module: str, rank: int) -> float:
        """Return s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732)."""
        alpha = _by_pattern(self.config.get("alpha_pattern") or {}, module, self.config.get("lora_alpha"))
        if not isinstance(alpha, int | float):
            raise UserError(f"{self.config_path}: lora_alpha is {alpha!r}, which is not a number")
        stated = _by_pattern(self.config.get("rank_pattern") or {}, module, self.config.get("r"))
        if stated != rank:
            raise UserError(
                f"{self.folder}: {module} has factors of rank {rank}, but {ADAPTER_CONFIG} says {stated}"
            )
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def untouched(rows: int, columns: int) -> LowRankUpdate:
    """Return the zero update, as factors of rank 0."""
    return LowRankUpdate(left=torch.zeros(rows, 0), right=torch.zeros(0, columns), scale=0.0)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the first pattern's value that matches the end of a module's name, as PEFT resolves them."""
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, default)
