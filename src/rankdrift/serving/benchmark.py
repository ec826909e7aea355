"""The benchmark: every way to serve, at every size of request, again and again in an order that is drawn.

In each round every model answers one request of every size; machines drift, and what is compared is thereby
measured in the same minutes. Samples of one round are alike for that reason, so that it is rounds, not
samples, that intervals resample (``analysis/comparisons/deployment.py``).
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from rankdrift.serving.bank import Bank
from rankdrift.serving.checks import check_arm, prompt_of
from rankdrift.serving.cost import cost_of
from rankdrift.serving.deployed import Deployed, bytes_on_disk
from rankdrift.serving.footprint import adapter_seconds, footprint
from rankdrift.serving.passes import classify, clock_of, generate
from rankdrift.serving.record import COLUMNS, Checked, Measured

SHORT = 2
"""Tokens of a warm-up's answer."""
CHECKED = 16
"""Positions of the prompts that are checked."""


@dataclass(frozen=True)
class Asked:
    """What is asked of every model."""

    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    """Tokens of a prompt."""
    tokens: int
    """Tokens of an answer."""
    rounds: int
    warm_ups: int
    """Requests of every size that are not timed, of each model, before its first that is."""
    footprints: int
    """Fresh processes in which each model is loaded."""
    seed: int = 0
    """Of the order."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows and tokens of a request."""
        return list(itertools.product(self.batches, self.prompts))


def measure(
    bank: Bank,
    ways: Sequence[Deployed],
    texts: Sequence[Sequence[int]],
    asked: Asked,
    say: Callable[[str], None],
) -> Measured:
    """Check all models, then measure them; raise IntegrityError where a check fails."""
    checks = list(_checked(bank, ways, texts, asked, say))
    rows = [*_footprints(bank, ways, texts, asked, say), *_requests(bank, ways, texts, asked, say)]
    disk = [{"arm": way.arm, "way": way.way, "bytes": bytes_on_disk(way, bank.place.base)} for way in ways]
    return Measured(checks, pd.DataFrame(rows, columns=list(COLUMNS)), list(_costs(bank, ways, asked)), disk)


def _checked(
    bank: Bank,
    ways: Sequence[Deployed],
    texts: Sequence[Sequence[int]],
    asked: Asked,
    say: Callable[[str], None],
) -> Iterator[Checked]:
    prompt = prompt_of(texts, max(2, bank.count), CHECKED, bank.place.device)
    for way in ways:
        if way.way == "merged":
            assert way.tuned
            say(f"checking {way.arm}")
            yield from check_arm(bank, way.tuned, prompt, asked.tokens)


def _footprints(
    bank: Bank,
    ways: Sequence[Deployed],
    texts: Sequence[Sequence[int]],
    asked: Asked,
    say: Callable[[str], None],
) -> Iterator[tuple[Any, ...]]:
    """Yield what loading takes, each time in a process of its own."""
    batch, length = asked.sizes[-1]
    prompt = prompt_of(texts, batch, length, "cpu").tolist()
    alone = [way for way in ways if way.way != "mixed"]
    order = random.Random(asked.seed)
    for number in range(asked.footprints):
        say(f"loading each model in a process of its own: {number + 1}/{asked.footprints}")
        for way in order.sample(alone, len(alone)):
            found = footprint(bank.place, way, prompt, asked.tokens)
            for name, value in dataclasses.asdict(found).items():
                yield number, way.arm, way.way, name, "", 0, 0, float(value)


def _requests(
    bank: Bank,
    ways: Sequence[Deployed],
    texts: Sequence[Sequence[int]],
    asked: Asked,
    say: Callable[[str], None],
) -> Iterator[tuple[Any, ...]]:
    clock = clock_of(bank.place.device)
    answer = classify if bank.place.labels else generate
    prompts = {size: prompt_of(texts, *size, bank.place.device) for size in asked.sizes}
    say(f"warming up: {asked.warm_ups} requests of every size")
    for way, size in itertools.product(ways, asked.sizes):
        served = bank.served(way)
        served.activate()
        for _ in range(asked.warm_ups):
            answer(served, prompts[size], SHORT, clock)
    order = random.Random(asked.seed)
    turns = list(itertools.product(ways, asked.sizes))
    for number in range(asked.rounds):
        say(f"round {number + 1}/{asked.rounds}")
        for way, size in order.sample(turns, len(turns)):
            served = bank.served(way)
            served.activate()
            answer(served, prompts[size], SHORT, clock)  # another model was at work before
            found = answer(served, prompts[size], asked.tokens, clock)
            named = (number, way.arm, way.way)
            if bank.place.labels:
                yield *named, "classification", "", *size, found.first
                continue
            yield *named, "first_token", "", *size, found.first
            yield from ((*named, "further_token", "", *size, seconds) for seconds in found.further)
            yield *named, "throughput", "", *size, size[0] * asked.tokens / found.seconds
        yield from _of_adapters(bank, ways, number)


def _of_adapters(bank: Bank, ways: Sequence[Deployed], number: int) -> Iterator[tuple[Any, ...]]:
    for way in ways:
        if way.way == "mixed":
            assert way.tuned
            served = bank.served(way)
            found = adapter_seconds(served.model, bank.folders(way.tuned), served.adapters, bank.place)
            yield from ((number, way.arm, "unmerged", name, "", 0, 0, value) for name, value in found.items())


def _costs(bank: Bank, ways: Sequence[Deployed], asked: Asked) -> Iterator[dict[str, Any]]:
    for way, (batch, length) in itertools.product(ways, asked.sizes):
        served = bank.served(way)
        used = served.adapters[:batch]
        for quantity, tokens in (("first_token", batch * length), ("further_token", batch)):
            cost = cost_of(served.model, tokens, batch, used)
            yield {"arm": way.arm, "way": way.way, "quantity": quantity, "batch": batch} | {
                "prompt_tokens": length,
                "flops": cost.flops,
                "bytes": cost.bytes,
            }


def served_by(bank: Bank, asked: Asked) -> dict[str, Any]:
    """Return what a record says of the engine and of what was asked."""
    on_gpu = bank.place.device.startswith("cuda")
    return {
        "engine": "transformers",
        "device": torch.cuda.get_device_name(bank.place.device) if on_gpu else "CPU",
        "threads": torch.get_num_threads(),
        "dtype": str(bank.place.dtype).removeprefix("torch."),
        "asked": dataclasses.asdict(asked),
        "adapters_in_a_batch": bank.count,
    }
