"""LoRA's update of a weight, dW = s B A (Hu et al., arXiv 2106.09685), from what PEFT 0.21 stores of it.

Names are those on disk (see ``adapters.py``); nothing here reads a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rankdrift.errors import IntegrityError, UserError

PREFIX = "base_model.model."

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?$")
# Values of ``init_lora_weights`` that leave the base weights as they are.
_EXACT_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# Settings under which the update of a weight is not s B A alone, or goes to other weights than named.
_OTHER_UPDATES = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "kasa_config",
    "arrow_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "megatron_config",
    "ensure_weight_tying",
)


@dataclass(frozen=True)
class LowRankUpdate:
    """dW = scale * left @ right, in the orientation of the stored weight."""

    left: Tensor
    """(rows, r), float64."""
    right: Tensor
    """(r, columns), float64."""
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of dW."""
        return self.left.shape[0], self.right.shape[1]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some rows of dW in float64, in which products of float32 factors are exact."""
        return self.scale * (self.left[start:stop] @ self.right)


@dataclass(frozen=True)
class Factors:
    """Where the two factors of one module's update are stored."""

    a: str
    b: str
    embedding: bool
    """An embedding holds the transposes: its weight is (rows of the vocabulary, width)."""


def check_plain(config: Mapping[str, Any], path: Path) -> None:
    """Raise UserError, naming the setting, unless the adapter's update is exactly s B A."""
    used = [f"{key}={config[key]!r}" for key in _OTHER_UPDATES if config.get(key)]
    start = config.get("init_lora_weights", True)
    if start not in _EXACT_STARTS:
        used.append(f"init_lora_weights={start!r} (which changes the base weights)")
    if config.get("peft_type") != "LORA":
        used.append(f"peft_type={config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        used.append(f"bias={config['bias']!r}")
    if used:
        raise UserError(f"{path}: {', '.join(used)}: its update is not s B A; merge it with peft")


def factors(names: Iterable[str], path: Path) -> dict[str, Factors]:
    """Return the modules that have an update (``model.layers.0.self_attn.q_proj``), in stored order.

    Raises UserError for a tensor of LoRA's that is not a factor, IntegrityError for one without the other.
    """
    found: dict[str, dict[str, str]] = {}
    embeddings = set()
    for name in names:
        match = _FACTOR.match(name)
        if match:
            module = match["module"].removeprefix(PREFIX)
            found.setdefault(module, {})[match["factor"]] = name
            if match["embedding"]:
                embeddings.add(module)
        elif ".lora_" in name:
            raise UserError(f"{path}: '{name}' is not a factor of plain LoRA; merge the adapter with peft")
    for module, pair in found.items():
        if len(pair) != 2:
            raise IntegrityError(f"{path}: {module} has only factor {next(iter(pair))}; use another step")
    return {module: Factors(pair["A"], pair["B"], module in embeddings) for module, pair in found.items()}


def update_of(
    stored: Factors, a: Tensor, b: Tensor, scale: float, config: Mapping[str, Any]
) -> LowRankUpdate:
    """Return the update that A and B make, turned as the weight is stored.

    A is (r, inputs), B is (outputs, r); the weight is (outputs, inputs), or its transpose in embeddings and
    in ``fan_in_fan_out`` layers.
    """
    if stored.embedding or config.get("fan_in_fan_out"):
        return LowRankUpdate(left=a.T.double(), right=b.T.double(), scale=scale)
    return LowRankUpdate(left=b.double(), right=a.double(), scale=scale)


def scaling(config: Mapping[str, Any], module: str, rank: int, path: Path) -> float:
    """Return s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732).

    Raises UserError where the settings do not give a number, IntegrityError where they state another rank.
    """
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        raise UserError(f"{path}: lora_alpha is {alpha!r} for {module}, which is not a number")
    stated = _by_pattern(config.get("rank_pattern") or {}, module, config.get("r"))
    if stated != rank:
        raise IntegrityError(f"{path}: r is {stated} for {module}, whose factors have rank {rank}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the first value whose pattern matches the end of a module's name, as PEFT resolves them."""
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, default)
