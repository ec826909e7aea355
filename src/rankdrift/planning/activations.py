"""What the forward pass of a micro-batch keeps for the backward pass, in closed form.

The formulas are those of a decoder of Llama's kind: norm, attention with rotary positions, norm, gated MLP.
They were derived from what torch's autograd is seen to save (``torch.autograd.graph.saved_tensors_hooks``)
and are tested against it, within a per cent; of another kind of block they are an estimate.

Symbols: ``h`` hidden width, ``q`` and ``k`` widths of all heads of queries, and of keys, ``f`` width of the
MLP, ``a`` heads, ``V`` vocabulary, ``r`` LoRA rank, ``t`` tokens, ``m`` targets, ``e`` bytes of an element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Recomputation = bool | Literal["selective"]

FP32 = 4
IDS = 8  # bytes of a token's number
CHUNK_ELEMENTS = 2**24
"""Logits that the loss has in fp32 at once (``training/cross_entropy.py``)."""


@dataclass(frozen=True)
class Architecture:
    """The widths of a decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    gated: bool = True
    """Whether the MLP has a gate."""

    @property
    def queries(self) -> int:
        """Width of all heads of queries."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all heads of keys, and of values."""
        return self.key_value_heads * self.head_width


@dataclass(frozen=True)
class Pass:
    """What is put through the model at once, and how."""

    tokens: int
    """Filling included."""
    targets: int
    """Places at which logits are made."""
    packed: bool
    """Whether rows lie end to end."""
    recomputation: Recomputation = False
    """``model.gradient_checkpointing``."""


@dataclass(frozen=True)
class Trained:
    """What of the model trains, as far as it decides what is kept."""

    norms: bool
    """The weights of norms: their gradient needs the normalised input."""
    projections: bool
    """Projections, or adapters on them: either needs what they are given."""
    embeddings: bool
    """The embedding: else the first block's first norm has nothing to pass a gradient on to."""
    blocks: int
    """Blocks that gradients pass through: from the first that trains to the last."""
    low_rank: int = 0
    """Elements a token of what the adapters' A give, of one block."""


def architecture_of(config: Any) -> Architecture:
    """Return the widths that a model's configuration states, by Llama's names for them.

    Raises
    ------
    KeyError
        Naming the width that it does not state.

    """
    text = config.get_text_config()
    hidden, heads = _stated(text, "hidden_size", "n_embd"), _stated(text, "num_attention_heads", "n_head")
    inner = _optional(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    return Architecture(
        hidden=hidden,
        intermediate=inner,
        layers=_stated(text, "num_hidden_layers", "n_layer"),
        heads=heads,
        key_value_heads=_optional(text, "num_key_value_heads") or heads,
        head_width=_optional(text, "head_dim") or hidden // heads,
        vocabulary=_stated(text, "vocab_size"),
        gated=text.model_type not in UNGATED,
    )


UNGATED = frozenset(
    {"gpt2", "gpt_neox", "gpt_bigcode", "gptj", "opt", "phi", "starcoder2", "bloom", "falcon"}
)
"""``model_type`` of families whose MLP has no gate."""


def _optional(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def _stated(config: Any, *names: str) -> int:
    found = _optional(config, *names)
    if found is None:
        raise KeyError(names[0])
    return found


def block_bytes(shape: Architecture, trained: Trained, tokens: int, packed: bool, element: int) -> int:
    """Return what one block keeps, bytes, where nothing is computed again.

    Of each of two norms its input and one number a token, what is normalised where the norm's weight trains,
    its result where projections do; of the attention the rotated queries and keys, the values, what it gave
    and the logarithms of its sums, and (for the last projection, where that trains) once more what it gave
    where rows are packed, whose pieces are put together; of the MLP gate, activated gate and up (without a
    gate up and activated up), and where it trains the product that the last projection is given; of LoRA what
    every A gave.
    """
    h, q, k, f = shape.hidden, shape.queries, shape.keys, shape.intermediate
    norms = 2 * h * (1 + trained.norms + trained.projections)
    attention = 2 * q + 2 * k + q * (packed and trained.projections)
    mlp = f * ((3 + trained.projections) if shape.gated else (1 + trained.projections))
    elements = norms + attention + mlp + trained.low_rank
    in_fp32 = shape.heads + 2
    # half precision is normalised in fp32: the input that is kept is one in fp32
    wider = 2 * h * (FP32 - element)
    return tokens * (elements * element + in_fp32 * FP32 + wider)


def selective_bytes(shape: Architecture, trained: Trained, tokens: int, element: int) -> int:
    """Return what one block keeps where all but products of matrices and attention is computed again, bytes.

    Its input, what its products gave (of an adapted layer those of the base, of A and of B, which are not
    joined then) and what its attention gave.
    """
    h, q, k, f = shape.hidden, shape.queries, shape.keys, shape.intermediate
    products = q + 2 * k + h + (2 if shape.gated else 1) * f + h
    adapted = products + trained.low_rank if trained.low_rank else 0
    return tokens * ((h + products + adapted + q) * element + shape.heads * FP32)


def kept_bytes(shape: Architecture, trained: Trained, one: Pass, element: int) -> int:
    """Return what a forward pass keeps of all blocks, the last norm and the head, bytes.

    Recomputed blocks keep their inputs, and the one that is under way all it has.
    """
    whole = block_bytes(shape, trained, one.tokens, one.packed, element)
    if one.recomputation is False:
        blocks = trained.blocks * whole
    elif one.recomputation == "selective":
        blocks = trained.blocks * selective_bytes(shape, trained, one.tokens, element) + whole
    else:
        blocks = trained.blocks * one.tokens * shape.hidden * element + whole
    return blocks + _ends_bytes(shape, trained, one, element) + logits_bytes(shape, one, element)


def _ends_bytes(shape: Architecture, trained: Trained, one: Pass, element: int) -> int:
    """Return what is kept before the blocks and behind them: tokens, angles, last norm, the head's input."""
    angles = 2 * shape.head_width * element
    norm_input = (shape.hidden + 1) * FP32
    last_norm = norm_input + (shape.hidden * element if trained.norms else 0)
    ids = IDS if trained.embeddings else 0
    has_input = trained.embeddings or one.recomputation is not False  # which asks for the input's gradient
    first_norm = 0 if has_input else norm_input
    head_input = one.targets * shape.hidden * element if trained.embeddings else 0
    return one.tokens * (angles + last_norm + ids - first_norm) + head_input


def logits_bytes(shape: Architecture, one: Pass, element: int) -> int:
    """Return the logits of a micro-batch, and the number a target that the loss keeps of them, bytes."""
    return one.targets * (shape.vocabulary * element + FP32)


def loss_bytes(shape: Architecture, one: Pass, element: int) -> int:
    """Return what the loss adds in its backward pass, bytes: the logits' gradient, a chunk of it in fp32."""
    elements = one.targets * shape.vocabulary
    chunk = min(elements, max(CHUNK_ELEMENTS, shape.vocabulary))
    return elements * element + chunk * FP32


def block_gradient_bytes(shape: Architecture, tokens: int, element: int) -> int:
    """Return what the backward pass of an MLP has beside what was kept, bytes: its largest moment.

    The gradients of product, gate, activated gate and up, and of the block's input and output.
    """
    return tokens * element * ((4 if shape.gated else 2) * shape.intermediate + 2 * shape.hidden)
