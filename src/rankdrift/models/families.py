"""Which module of a model is what: families of models name and fuse their projections differently.

One table serves training (which modules a LoRA group adapts, in which cell a gradient counts) and analysis
(which stored weight holds which matrix). Every projection has Llama's name here, whatever its family calls
it: ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj`` of the attention and ``gate_proj``, ``up_proj``,
``down_proj`` of the MLP. An MLP without a gate has the last two: into the hidden layer (``fc1``, ``c_fc``,
``dense_h_to_4h``), and out of it. Outside the blocks are ``embed_tokens``, ``lm_head`` and ``score``. Biases,
norms and position embeddings have no place here.

The tables were read from the state dicts of transformers 5.23, and are tested against them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["cell", "layer", "group", "global"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
MODULES = (*ATTENTION, *MLP)
"""The projections of a block, in the order of its forward pass."""
HEADS = ("embed_tokens", "lm_head", "score")
"""The matrices outside the blocks."""
OUTSIDE = -1
"""Their layer."""

PLAIN = {
    **{module: module for module in MODULES},
    "out_proj": "o_proj",  # OPT, GPT-J
    "self_attn.dense": "o_proj",  # Phi
    "attention.dense": "o_proj",  # GPT-NeoX
    "self_attention.dense": "o_proj",  # BLOOM, Falcon
    "attention.self.query": "q_proj",  # BERT, RoBERTa
    "attention.self.key": "k_proj",
    "attention.self.value": "v_proj",
    "attention.self.query_proj": "q_proj",  # DeBERTa-v2
    "attention.self.key_proj": "k_proj",
    "attention.self.value_proj": "v_proj",
    "attention.output.dense": "o_proj",
    "intermediate.dense": "up_proj",
    "output.dense": "down_proj",
    "fc1": "up_proj",  # OPT, Phi
    "fc2": "down_proj",
    "fc_in": "up_proj",  # GPT-J
    "fc_out": "down_proj",
    "dense_h_to_4h": "up_proj",  # GPT-NeoX, BLOOM, Falcon
    "dense_4h_to_h": "down_proj",
    "attn.c_proj": "o_proj",  # GPT-2, GPT-BigCode
    "mlp.c_fc": "up_proj",  # these two, GPT-Neo, StarCoder2
    "mlp.c_proj": "down_proj",
}
"""End of a module's path in its block -> the projection it is; the longest end that fits decides."""
FUSED = {
    "attn.c_attn": ATTENTION[:3],  # GPT-2, GPT-BigCode
    "query_key_value": ATTENTION[:3],  # GPT-NeoX, BLOOM, Falcon, Persimmon
    "qkv_proj": ATTENTION[:3],  # Phi-3
    "gate_up_proj": MLP[:2],  # Phi-3, GLM
}
"""End of a module's path in its block -> the projections that it computes at once."""
OUTER = {
    "embed_tokens": "embed_tokens",
    "wte": "embed_tokens",  # GPT-2, GPT-J
    "embed_in": "embed_tokens",  # GPT-NeoX
    "word_embeddings": "embed_tokens",  # BERT, BLOOM, Falcon
    "lm_head": "lm_head",
    "embed_out": "lm_head",  # GPT-NeoX
    "score": "score",
    "classifier": "score",  # BERT
}
"""Last part of a module's name outside the blocks -> the matrix it is."""

GROUPS: dict[str, tuple[str, ...]] = {
    "qv": ("q_proj", "v_proj"),
    "attention": ATTENTION,
    "mlp": MLP,
    "both": MODULES,
    "all": (*MODULES, "embed_tokens", "lm_head"),
}
"""Groups of projections that a method may be told to adapt."""

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_OUTER = re.compile(rf"(?:^|\.)({'|'.join(OUTER)})$")
_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])\b")


def in_block(name: str) -> tuple[int, str] | None:
    """Return the block (0-based) that a module or parameter is in, and its path there; None outside."""
    found = _BLOCK.search(name)
    return (int(found[1]), name[found.end() :]) if found else None


def end_of(path: str) -> str | None:
    """Return which end of the tables a module's path in its block has; None if it is no projection."""
    ends = [end for end in (*PLAIN, *FUSED) if f".{path}".endswith(f".{end}")]
    return max(ends, key=len, default=None)


def roles(name: str) -> tuple[str, ...]:
    """Return the projections that a module computes, by its name in the module tree; () if none is known.

    >>> roles("model.layers.0.self_attn.qkv_proj")
    ('q_proj', 'k_proj', 'v_proj')
    """
    block = in_block(name)
    if block is None:
        outer = _OUTER.search(name)
        return (OUTER[outer[1]],) if outer else ()
    end = end_of(block[1])
    if end is None:
        return ()
    return FUSED.get(end) or (PLAIN[end],)


@dataclass(frozen=True)
class Cell:
    """The finest grain of tables of gradients: a layer, a group of modules, a LoRA factor."""

    layer: int
    """Index of the block; -1 outside the blocks and for sums over layers."""
    group: str
    """attention, mlp, embed, norm or head; empty for sums over groups."""
    factor: str = ""
    """A or B for LoRA factors; empty for weights and for sums over factors."""


def cell_of(parameter: str, factor: str = "") -> Cell:
    """Return the cell of a parameter by its name in the module tree; PEFT's names state the factor."""
    block, named = in_block(parameter), _FACTOR.search(parameter)
    return Cell(block[0] if block else OUTSIDE, _group_of(parameter), factor or (named[1] if named else ""))


def levels_of(cell: Cell) -> Iterator[tuple[Level, Cell]]:
    """Yield what a cell is counted in: itself, its layer, its group over layers by factor, the whole."""
    yield "cell", cell
    if cell.layer != OUTSIDE:
        yield "layer", Cell(cell.layer, "", cell.factor)
    yield "group", Cell(OUTSIDE, cell.group, cell.factor)
    yield "global", Cell(OUTSIDE, "")


def _group_of(parameter: str) -> str:
    parts = set(parameter.split("."))
    # norms first: "post_attention_layernorm" is a norm, and so is GPT-2's "ln_1"
    if "norm" in parameter.lower() or any(part.startswith("ln_") for part in parts):
        return "norm"
    if "embed" in parameter or parts & {"wte", "wpe"}:
        return "embed"
    if parts & {"lm_head", "embed_out", "score", "classifier"}:
        return "head"
    return "attention" if "attn" in parameter or "attention" in parameter else "mlp"
