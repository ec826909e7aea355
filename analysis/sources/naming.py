"""Which stored weight holds which matrix: families of models name, fuse and turn them differently.

Every matrix gets Llama's name for it (:mod:`rankdrift.models.families`), in layer -1 outside the blocks; an
``lm_head`` only where it is not the embedding itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rankdrift.analysis.sources.updates import DenseUpdate, Update
from rankdrift.errors import UserError
from rankdrift.export.adapter_update import LowRankUpdate
from rankdrift.models.families import FUSED, HEADS, MODULES, OUTSIDE, end_of, in_block, roles

DIVIDED = {
    "attn.c_attn": ("gpt2", "gpt_bigcode"),
    "query_key_value": ("gpt_neox", "bloom", "falcon", "persimmon"),
    "qkv_proj": ("phi3",),
    "gate_up_proj": ("phi3", "glm", "glm4"),
}
"""End of a fused weight's path -> types of model whose division of its rows is known; others differ."""
TURNED = {"gpt2": True, "gpt_bigcode": False, "gpt_neo": False, "starcoder2": False}
"""Types of model whose weights are called ``c_...`` -> whether these are stored (inputs, outputs)."""
UNTIED = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gpt_neox", "gptj")
"""Model types whose LM head is not the embedding where config.json does not say so."""


@dataclass(frozen=True)
class Projection:
    """Which matrix of the model: the block it is in (0-based; -1 outside the blocks) and its name there."""

    layer: int
    module: str

    def __str__(self) -> str:
        return self.module if self.layer == OUTSIDE else f"layer {self.layer} {self.module}"

    @property
    def order(self) -> tuple[int, int]:
        """Where it stands in the model: by layer, and in the order of the forward pass within it."""
        return self.layer, (*HEADS, *MODULES).index(self.module)


@dataclass(frozen=True)
class Cut:
    """Which rows of a fused matrix are one of its parts: the rows repeat in groups, the parts in each."""

    whole: str
    """The fused weight, for messages."""
    groups: int
    """1, or the number of heads where the parts of each head lie together."""
    shares: tuple[int, ...]
    """How the rows of a group are divided: (heads, key heads, value heads) with grouped queries."""
    part: int

    def view(self, matrix: Tensor) -> Tensor:
        """Return the part's rows of a matrix, (groups, rows of a group, columns), in the same memory.

        Raises UserError where the matrix does not divide into the shares.
        """
        unit, rest = divmod(matrix.shape[0], self.groups * sum(self.shares))
        if rest:
            raise UserError(
                f"{self.whole}: {matrix.shape[0]} rows do not divide into {self.groups} x {self.shares}; "
                "config.json states other heads than the weights have"
            )
        ends = [unit * end for end in itertools.accumulate(self.shares, initial=0)]
        grouped = matrix.unflatten(0, (self.groups, -1))
        return grouped[:, ends[self.part] : ends[self.part + 1]]


@dataclass(frozen=True)
class Place:
    """Where a matrix is: in which stored weight, which way round, and which of its rows."""

    weight: str
    """Name of the stored tensor."""
    transposed: bool = False
    """Whether the weight is stored (inputs, outputs)."""
    cut: Cut | None = None

    def matrix(self, stored: Tensor) -> Tensor:
        """Return the matrix (outputs, inputs) that is in a stored weight; raise UserError as ``Cut.view``."""
        return self._view(stored.T if self.transposed else stored).flatten(0, 1).contiguous()

    def put(self, stored: Tensor, matrix: Tensor) -> None:
        """Write a matrix (outputs, inputs) to its place in a stored weight, rounded to that one's format."""
        view = self._view(stored.T if self.transposed else stored)
        view.copy_(matrix.view(view.shape))

    def update(self, stored: Update) -> Update:
        """Return the matrix's share of a stored weight's update: factors are cut in the rows of B."""
        if isinstance(stored, DenseUpdate):
            return DenseUpdate(self.matrix(stored.values))
        turned = stored.T if self.transposed else stored
        left = self._view(turned.left).flatten(0, 1).contiguous()
        return LowRankUpdate(left, turned.right.contiguous(), turned.scale)

    def _view(self, whole: Tensor) -> Tensor:
        return self.cut.view(whole) if self.cut else whole[None]


def locate(names: Iterable[str], config: Mapping[str, Any], folder: Path) -> dict[Projection, Place]:
    """Return the matrices among the names of weights, by layer and module; tied ones once.

    Parameters
    ----------
    names
        Names of stored tensors, ``...layers.0.self_attn.q_proj.weight``; others than matrices are skipped.
    config
        The model's ``config.json``, for what is fused and tied; may be empty where nothing is.
    folder
        Of the weights, for messages.

    Raises
    ------
    UserError
        Where two weights are the same matrix, blocks are mixtures of experts, or it is not known how a weight
        is cut or which way round it is stored.

    """
    found: dict[Projection, Place] = {}
    for name in names:
        for projection, place in _places(name, config, folder):
            if projection in found:
                other = found[projection].weight
                raise UserError(
                    f"{folder}: {name} and {other} are both {projection}; only one decoder is read"
                )
            found[projection] = place
    if _tied(config):
        found.pop(Projection(OUTSIDE, "lm_head"), None)
    return dict(sorted(found.items(), key=lambda item: item[0].order))


def _places(name: str, config: Mapping[str, Any], folder: Path) -> list[tuple[Projection, Place]]:
    """Return the matrices in a stored weight: none, one, or the parts of a fused one."""
    if ".experts." in name:
        raise UserError(f"{folder}: {name} is one of many experts; mixtures of experts are not read")
    module, _, kind = name.rpartition(".")
    found = roles(module) if kind == "weight" else ()
    block = in_block(module)
    if not found or not block:
        return [(Projection(OUTSIDE, role), Place(name)) for role in found]
    layer, path = block
    end, whole = end_of(path), f"{folder}: {name}"
    assert end is not None, "what has a role has an end"
    turned = ".c_" in end and TURNED[_kind(config, TURNED, whole)]
    if end not in FUSED:
        return [(Projection(layer, found[0]), Place(name, turned))]
    groups, shares = _division(end, config, whole)
    cuts = (Cut(whole, groups, shares, part) for part in range(len(shares)))
    return [
        (Projection(layer, module), Place(name, turned, cut)) for module, cut in zip(found, cuts, strict=True)
    ]


def _division(end: str, config: Mapping[str, Any], what: str) -> tuple[int, tuple[int, ...]]:
    """Return the groups of a fused weight's rows, and how each is divided between its parts."""
    kind = _kind(config, DIVIDED[end], what)
    if end == "gate_up_proj":
        return 1, (1, 1)
    if kind == "gpt2":
        return 1, (1, 1, 1)
    heads = _heads(config, what, "num_attention_heads", "n_head")
    if kind == "phi3":
        shared = _heads(config, what, "num_key_value_heads") if "num_key_value_heads" in config else heads
        return 1, (heads, shared, shared)
    if kind == "falcon" and config.get("new_decoder_architecture"):  # 40B: queries with what they share
        shared = _heads(config, what, "num_kv_heads")
        return shared, (heads // shared, 1, 1)
    if kind in ("falcon", "gpt_bigcode") and config.get("multi_query", True):
        return 1, (heads, 1, 1)
    return heads, (1, 1, 1)


def _kind(config: Mapping[str, Any], known: Collection[str], what: str) -> str:
    """Return the type of model; raise UserError unless it is one of those whose layout is known."""
    kind = config.get("model_type")
    if kind is None:
        raise UserError(
            f"{what}: its layout is that of its type of model, and no config.json beside it states "
            "model_type; give the complete model folder"
        )
    if kind not in known:
        raise UserError(
            f"{what}: its layout in models of type {kind!r} is not known, only in {', '.join(known)}; "
            "convert it to a weight for each projection"
        )
    return str(kind)


def _heads(config: Mapping[str, Any], what: str, *keys: str) -> int:
    for key in keys:
        if isinstance(config.get(key), int):
            return int(config[key])
    raise UserError(
        f"{what} is fused, and no config.json beside it states {keys[0]}, by which to cut it; "
        "give the complete model folder"
    )


def _tied(config: Mapping[str, Any]) -> bool:
    """Return whether the LM head is the embedding; where it is not said, what the type of model does."""
    stated = config.get("tie_word_embeddings")
    return bool(config and config.get("model_type") not in UNTIED if stated is None else stated)
