"""How many elements a method trains, in closed form: by the shapes of the plain model, without PEFT.

=============  =======================================================================================
LoRA           r (in + out) of every adapted module, whole what ``modules_to_save`` names, and the width of
               the embedding for each of ``trainable_token_indices``
AdaLoRA        r (in + out + 1) with the r that modules begin with
DoRA           the same, and out more of each
LoRA-FA        r out of each
full           all that is not frozen
last_layers    the last blocks, norms outside the blocks, a head that is not the embedding
bitfit         biases, and norms if asked for
=============  =======================================================================================

What has no pre-trained counterpart, a new head, trains in any case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from rankdrift.models.families import GROUPS, in_block, roles
from rankdrift.sanity.plain_model import OUTSIDE, PlainModel

OfModule = Callable[[int, int, int], int]
"""(rank, in, out) -> elements that train of an adapted module."""


def expected_count(method: Any, plain: PlainModel) -> int | None:
    """Return how many elements train by the settings of a method; None where its closed form is not known."""
    if method.name in LORA:
        return _lora(method, plain, LORA[method.name])
    return OTHERS[method.name](method, plain) if method.name in OTHERS else None


def _lora(method: Any, plain: PlainModel, of_module: OfModule) -> int:
    whole = [
        name for name in plain.of_modules if name.endswith((*plain.new_modules, *method.modules_to_save))
    ]
    adapted = {
        name: size for name, size in plain.matrices.items() if _is_adapted(name, method, plain, tuple(whole))
    }
    elements = sum(of_module(_rank(name, method), *size) for name, size in adapted.items())
    widths = [out for name, (_, out) in plain.matrices.items() if roles(name) == ("embed_tokens",)]
    elements += sum(widths) * len(method.trainable_token_indices)
    return elements + sum(
        plain.of_modules[name] for name in whole if (*plain.new_modules, *method.modules_to_save)
    )


def _is_adapted(name: str, method: Any, plain: PlainModel, whole: tuple[str, ...]) -> bool:
    block = in_block(name)
    if name in whole or (method.layers and not (block and method.layers[0] <= block[0] <= method.layers[1])):
        return False
    if not isinstance(method.targets, str):
        return any(f".{name}".endswith(f".{end}") for end in method.targets)
    does, wanted = set(roles(name)), set(GROUPS[method.targets]) - ({"lm_head"} if plain.tied else set())
    return bool(does) and does <= wanted


def _rank(name: str, method: Any) -> int:
    """Return a module's rank: that of the first pattern which is the end of its name, or is all of it."""
    if method.name == "adalora":
        return int(method.begun_rank)
    own = (rank for end, rank in method.rank_pattern.items() if re.fullmatch(rf"(.*\.)?({end})", name))
    return next(own, method.rank)


def _full(method: Any, plain: PlainModel) -> int:
    kinds = {"embeddings": plain.embeddings, "norms": plain.norms, "head": plain.head}
    frozen = frozenset().union(*(kinds[kind] for kind in method.freeze))
    return _sum(plain, (name for name in plain.numels if name not in frozen or name in plain.new))


def _last_layers(method: Any, plain: PlainModel) -> int:
    outside = {name for name in plain.norms | plain.head if plain.blocks[name] == OUTSIDE}
    last = {name for name, block in plain.blocks.items() if block >= plain.count - method.last}
    return _sum(plain, last | outside | plain.new)


def _bitfit(method: Any, plain: PlainModel) -> int:
    biases = {name for name in plain.numels if name.split(".")[-1] == "bias"}
    return _sum(plain, biases | plain.new | (plain.norms if method.norms else frozenset()))


def _sum(plain: PlainModel, names: Iterable[str]) -> int:
    return sum(plain.numels[name] for name in names)


def _factors(rank: int, into: int, out: int) -> int:
    return rank * (into + out)


LORA: dict[str, OfModule] = {
    **dict.fromkeys(("lora", "rslora", "lora_plus", "pissa", "olora", "eva", "lora_ga"), _factors),
    "adalora": lambda rank, into, out: rank * (into + out + 1),
    "dora": lambda rank, into, out: _factors(rank, into, out) + out,
    "lora_fa": lambda rank, into, out: rank * out,
}
OTHERS: dict[str, Callable[[Any, PlainModel], int]] = {
    "full": _full,
    "last_layers": _last_layers,
    "bitfit": _bitfit,
}
