"""Ranks that answer requests together: who answers which, and how all come to have all answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from rankdrift.tasks.kinds import Classes, Completion, Continuation, Request

Found = TypeVar("Found")


@dataclass(frozen=True)
class Shares:
    """The ranks of the process group, each with a share of the requests."""

    rank: int
    world_size: int
    lockstep: bool
    """Whether each rank holds a part of the model, as under ZeRO-3: no rank can make a pass unless all do."""

    @classmethod
    def of_group(cls, lockstep: bool = False) -> Shares:
        """Return the shares of the default process group, which has been set up."""
        return cls(dist.get_rank(), dist.get_world_size(), lockstep)

    def own(self, requests: Sequence[Request]) -> list[int]:
        """Return the numbers of this rank's requests, in order.

        Those with a context in common stay together.
        """
        units: dict[object, list[int]] = {}
        for number, request in enumerate(requests):
            unit = request.context if isinstance(request, Continuation) else number
            units.setdefault(unit, []).append(number)
        together = list(units.values())
        mine = self.dealt([sum(_tokens(requests[number]) for number in unit) for unit in together])
        return sorted(number for unit in mine for number in together[unit])

    def dealt(self, tokens: Sequence[int]) -> list[int]:
        """Return the numbers of this rank's things, in order, of things that have so many tokens each.

        Longest first they are dealt out in turn, so the ranks' tokens differ by no more than those of the
        longest ones.
        """
        order = sorted(range(len(tokens)), key=lambda number: -tokens[number])
        return sorted(order[self.rank :: self.world_size])

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        dist.barrier()

    def gathered(self, found: Mapping[int, Found]) -> dict[int, Found]:
        """Return what all ranks found, by the numbers they go by; every rank has to call it."""
        parts: list[dict[int, Found]] = [{} for _ in range(self.world_size)]
        dist.all_gather_object(parts, dict(found))
        return {number: value for part in parts for number, value in part.items()}

    @contextmanager
    def in_step(self, model: PreTrainedModel) -> Iterator[None]:
        """Let every rank pass the model as often as the one that does so most often.

        Each pass begins with all ranks saying whether they have one to make. A rank that has come to the end
        passes a single token for as long as another has not.
        """
        if not self.lockstep:
            yield
            return
        # before the hooks that gather a partitioned model's parameters, in which the ranks meet as well
        hook = model.register_forward_pre_hook(lambda *_: _announce(model), prepend=True)
        try:
            yield
        finally:
            hook.remove()
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        while _anyone_has_a_pass(False, model):
            model(input_ids=token, use_cache=False)


def _announce(model: PreTrainedModel) -> None:
    _anyone_has_a_pass(True, model)


def _anyone_has_a_pass(this_rank: bool, model: PreTrainedModel) -> bool:
    """Return whether any rank has a pass to make; every rank has to call it."""
    flag = torch.tensor(int(this_rank), device=model.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _tokens(request: Request) -> int:
    """Return about how many tokens an answer takes."""
    match request:
        case Continuation():
            return len(request.context) + len(request.continuation)
        case Completion():
            return len(request.prompt) + request.max_new_tokens
        case Classes():
            return len(request.prompt)
