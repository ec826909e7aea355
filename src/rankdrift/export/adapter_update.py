"""LoRA's update of a weight, dW = s B A (Hu et al., arXiv 2106.09685), from what PEFT 0.21 stores of it.

Names are those on disk (see ``peft_names.py``); nothing here reads a file. Variants whose update is another
function of the stored tensors are refused by ``check`` unless the caller says that it knows them:

- ``use_dora``: each output of the weight has a length of its own (``dora_update``);
- ``init_lora_weights``: PiSSA, OLoRA, CorDA and LoRA-GA subtract the adapter's start, s B0 A0, from the base
  weight, so that the update is s (B A - B0 A0) (``LowRankUpdate.minus``);
- ``peft_type``: AdaLoRA, dW = s B diag(E) A;
- ``trainable_token_indices``: some rows of an embedding are stored as they became (``token_rows``);
- ``bias``: biases are stored whole beside the factors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankdrift.errors import IntegrityError, UserError

PREFIX = "base_model.model."
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"

_STORED = re.compile(
    r"^(?P<module>.+)\.lora_(?:(?P<embedding>embedding_)?(?P<factor>[AB])|(?P<other>E|magnitude_vector))"
    r"(?:\.default)?(?:\.weight)?$"  # the adapter's name is in files that were not written by PEFT itself
)
# Values of ``init_lora_weights`` that leave the base weights as they are.
_EXACT_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Values that subtract the adapter's start from them; PiSSA and CorDA are followed by their options.
_SUBTRACTED_STARTS = ("pissa", "corda", "olora", "lora_ga")
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
_ADALORA_RANK_OFFSET = 1e-5  # PEFT divides by r + 1e-5 there


@dataclass(frozen=True)
class LowRankUpdate:
    """dW = scale * left @ right."""

    left: Tensor
    """(rows, r), as stored."""
    right: Tensor
    """(r, columns), as stored."""
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of dW."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The rank of the factors, r; 0 where nothing was adapted."""
        return self.left.shape[1]

    @property
    def T(self) -> LowRankUpdate:  # noqa: N802 (the tensor's own name for it)
        """The transpose of dW, as factors."""
        return LowRankUpdate(left=self.right.T, right=self.left.T, scale=self.scale)

    def dense(self) -> Tensor:
        """Return dW (rows, columns) in float64, in which products of float32 factors are exact."""
        return self.rows(0, self.left.shape[0])

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some rows of dW in float64."""
        return self.scale * (self.left[start:stop].double() @ self.right.double())

    def minus(self, start: LowRankUpdate) -> LowRankUpdate:
        """Return s (B A - B0 A0) of rank r + r0, as the factors [B, -B0] and [A; A0] of the same scale."""
        assert self.scale == start.scale, "the scales of an adapter and of its start are compared before"
        left = torch.cat([self.left, -start.left], dim=1)
        return LowRankUpdate(left, torch.cat([self.right, start.right]), self.scale)


@dataclass(frozen=True)
class Factors:
    """Where what makes one module's update is stored."""

    a: str
    b: str
    embedding: bool
    """An embedding holds the transposes: its weight is (rows of the vocabulary, width)."""
    e: str | None = None
    """AdaLoRA's diagonal E, (r, 1)."""
    magnitude: str | None = None
    """DoRA's lengths, one for each output."""


def check(config: Mapping[str, Any], path: Path, known: Collection[str] = ()) -> None:
    """Raise UserError, naming the setting, unless the update is s B A or of a variant in ``known``."""
    settings = [key for key in _OTHER_UPDATES if key not in known]
    used = [f"{key}={config[key]!r}" for key in settings if config.get(key)]
    start = config.get("init_lora_weights", True)
    if start not in _EXACT_STARTS and not ("init_lora_weights" in known and subtracts_start(config)):
        used.append(f"init_lora_weights={start!r} (which changes the base weights)")
    kinds = ("LORA", "ADALORA") if "peft_type" in known else ("LORA",)
    if config.get("peft_type") not in kinds:
        used.append(f"peft_type={config.get('peft_type')!r}")
    if config.get("bias", "none") != "none" and "bias" not in known:
        used.append(f"bias={config['bias']!r}")
    if used:
        raise UserError(f"{path}: {', '.join(used)}: its update is not s B A; merge it with peft")


def subtracts_start(config: Mapping[str, Any]) -> bool:
    """Return whether the adapter's initial s B0 A0 was subtracted from the base weights."""
    start = config.get("init_lora_weights", True)
    return isinstance(start, str) and start.lower().startswith(_SUBTRACTED_STARTS)


def is_left_factor(name: str) -> bool:
    """Return whether a stored tensor is a B, which is multiplied from the left."""
    match = _STORED.match(name)
    return bool(match and match["factor"] == "B")


def factors(names: Iterable[str], config: Mapping[str, Any], path: Path) -> dict[str, Factors]:
    """Return the modules that have an update (``model.layers.0.self_attn.q_proj``), in stored order.

    Raises UserError for a tensor of LoRA's that the settings do not explain, IntegrityError for a module that
    has not all it needs.
    """
    needed = {"A", "B"} | ({"E"} if _is_adalora(config) else set())
    needed |= {"magnitude_vector"} if config.get("use_dora") else set()
    found: dict[str, dict[str, str]] = {}
    embeddings = set()
    for name in names:
        match = _STORED.match(name)
        kind = (match["factor"] or match["other"]) if match else None
        if match and kind in needed:
            module = match["module"].removeprefix(PREFIX)
            found.setdefault(module, {})[kind] = name
            if match["embedding"]:
                embeddings.add(module)
        elif ".lora_" in name:
            raise UserError(f"{path}: '{name}' is not a factor of plain LoRA; merge the adapter with peft")
    for module, parts in found.items():
        if parts.keys() != needed:
            missing = ", ".join(sorted(needed - parts.keys()))
            raise IntegrityError(
                f"{path}: {module} has no {missing} beside {'/'.join(parts)}; use another step"
            )
    return {
        module: Factors(
            parts["A"], parts["B"], module in embeddings, parts.get("E"), parts.get("magnitude_vector")
        )
        for module, parts in found.items()
    }


def token_rows(
    names: Iterable[str], config: Mapping[str, Any], path: Path
) -> dict[str, tuple[str, list[int]]]:
    """Return module -> (stored tensor, tokens) of embeddings of which some rows train.

    PEFT calls the tensor a delta; it holds the rows themselves. Raises IntegrityError for one whose tokens
    the settings do not state.
    """
    stated = config.get("trainable_token_indices") or []
    found = {}
    for name in names:
        if not name.endswith(TOKEN_ROWS):
            continue
        module = name.removesuffix(TOKEN_ROWS).removeprefix(PREFIX)
        per_module = stated if isinstance(stated, Mapping) else {module: stated}
        tokens = next((of for key, of in per_module.items() if f".{module}".endswith(f".{key}")), None)
        if not tokens:
            raise IntegrityError(f"{path}: trainable_token_indices={stated!r} names no tokens of {module}")
        found[module] = (name, list(tokens))
    return found


def update_of(
    stored: Factors, a: Tensor, b: Tensor, scale: float, fan_in_fan_out: bool = False
) -> LowRankUpdate:
    """Return the update that A and B make, turned as the weight is stored.

    A is (r, inputs), B is (outputs, r); the weight is (outputs, inputs), or its transpose in embeddings and
    in ``fan_in_fan_out`` layers.
    """
    update = LowRankUpdate(left=b, right=a, scale=scale)
    return update.T if stored.embedding or fan_in_fan_out else update


def dora_update(weight: Tensor, update: LowRankUpdate, magnitude: Tensor, outputs: int) -> Tensor:
    """Return DoRA's dW = m V / ||V|| - W0 with V = W0 + s B A, in float64 (arXiv 2402.09353, section 4).

    Parameters
    ----------
    weight
        W0 as it is stored, of two dimensions.
    update
        s B A, turned as the weight is.
    magnitude
        m, one length for each output; ||V|| is taken over the inputs of each (PEFT's ``get_weight_norm``).
    outputs
        Which dimension of the weight its outputs are: 0, or 1 where it is stored as its transpose.

    Raises
    ------
    IntegrityError
        Where an output of V is zero, which has no direction.

    """
    start = weight.double()
    whole = start + update.dense()
    lengths = torch.linalg.vector_norm(whole, dim=1 - outputs, keepdim=True)
    if not lengths.all():
        raise IntegrityError(f"an output of W0 + s B A is zero, {tuple(weight.shape)}; use another step")
    return whole * (magnitude.double().reshape_as(lengths) / lengths) - start


def scaling(config: Mapping[str, Any], module: str, rank: int, path: Path) -> float:
    """Return s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732).

    AdaLoRA (arXiv 2303.10512) keeps the initial r when it prunes, and PEFT adds 1e-5 to it. Raises UserError
    where the settings do not give a number, IntegrityError where they state another rank.
    """
    if _is_adalora(config):
        alpha, rank = config.get("lora_alpha"), config.get("init_r", 0)
        if not isinstance(alpha, int | float) or alpha <= 0 or rank <= 0:
            raise UserError(f"{path}: lora_alpha is {alpha!r} and init_r {rank!r}, which give no scale")
        return alpha / (rank + _ADALORA_RANK_OFFSET)
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        raise UserError(f"{path}: lora_alpha is {alpha!r} for {module}, which is not a number")
    stated = _by_pattern(config.get("rank_pattern") or {}, module, config.get("r"))
    if stated != rank:
        raise IntegrityError(f"{path}: r is {stated} for {module}, whose factors have rank {rank}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _is_adalora(config: Mapping[str, Any]) -> bool:
    return config.get("peft_type") == "ADALORA"


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the first value whose pattern matches the end of a module's name, as PEFT resolves them."""
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, default)
