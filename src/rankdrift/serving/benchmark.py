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
from torch import Tensor

from rankdrift.serving.bank import Bank
from rankdrift.serving.checks import check_arm, prompt_of
from rankdrift.serving.cost import cost_of
from rankdrift.serving.deployed import Deployed, bytes_on_disk
from rankdrift.serving.footprint import adapter_seconds, footprint
from rankdrift.serving.passes import Answer, classify, clock_of, generate
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
    benchmark = _Benchmark(bank, ways, texts, asked, say)
    checks = list(benchmark.checked())
    rows = pd.DataFrame([*benchmark.footprints(), *benchmark.requests()], columns=list(COLUMNS))
    disk = [{"arm": way.arm, "way": way.way, "bytes": bytes_on_disk(way, bank.place.base)} for way in ways]
    return Measured(checks, rows, list(benchmark.costs()), disk)


@dataclass(frozen=True)
class _Benchmark:
    """What is measured, on which texts; its generators yield rows of COLUMNS."""

    bank: Bank
    ways: Sequence[Deployed]
    texts: Sequence[Sequence[int]]
    asked: Asked
    say: Callable[[str], None]

    def checked(self) -> Iterator[Checked]:
        prompt = self._prompt(max(2, self.bank.count), CHECKED)
        for way in self.ways:
            if way.way == "merged":
                assert way.tuned
                self.say(f"checking {way.arm}")
                yield from check_arm(self.bank, way.tuned, prompt, self.asked.tokens)

    def footprints(self) -> Iterator[tuple[Any, ...]]:
        """Yield what loading takes, each time in a process of its own."""
        prompt = self._prompt(*self.asked.sizes[-1]).tolist()
        alone = [way for way in self.ways if way.way != "mixed"]
        order = random.Random(self.asked.seed)
        for number in range(self.asked.footprints):
            self.say(f"loading each model in a process of its own: {number + 1}/{self.asked.footprints}")
            for way in order.sample(alone, len(alone)):
                found = footprint(self.bank.place, way, prompt, self.asked.tokens)
                for name, value in dataclasses.asdict(found).items():
                    yield number, way.arm, way.way, name, "", 0, 0, float(value)

    def requests(self) -> Iterator[tuple[Any, ...]]:
        """Yield what requests take, after warm-ups: in every round one of every size to every model."""
        prompts = {size: self._prompt(*size) for size in self.asked.sizes}
        turns = list(itertools.product(self.ways, self.asked.sizes))
        self.say(f"warming up: {self.asked.warm_ups} requests of every size")
        for way, size in turns:
            for _ in range(self.asked.warm_ups):
                self._answer(way, prompts[size], SHORT)
        order = random.Random(self.asked.seed)
        for number in range(self.asked.rounds):
            self.say(f"round {number + 1}/{self.asked.rounds}")
            for way, size in order.sample(turns, len(turns)):
                self._answer(way, prompts[size], SHORT)  # another model was at work before
                answer = self._answer(way, prompts[size], self.asked.tokens)
                for quantity, value in self._values(answer, size[0]):
                    yield number, way.arm, way.way, quantity, "", *size, value
            yield from self._adapters(number)

    def costs(self) -> Iterator[dict[str, Any]]:
        """Yield what the shapes say of every model and size."""
        for way, (batch, length) in itertools.product(self.ways, self.asked.sizes):
            served = self.bank.served(way)
            for quantity, tokens in (("first_token", batch * length), ("further_token", batch)):
                cost = cost_of(served.model, tokens, batch, served.adapters[:batch])
                named = {"arm": way.arm, "way": way.way, "quantity": quantity}
                size = {"batch": batch, "prompt_tokens": length}
                yield named | size | dataclasses.asdict(cost)

    def _prompt(self, rows: int, length: int) -> Tensor:
        return prompt_of(self.texts, rows, length, self.bank.place.device)

    def _answer(self, way: Deployed, prompt: Tensor, tokens: int) -> Answer:
        served = self.bank.served(way)
        served.activate()
        answer = classify if self.bank.place.labels else generate
        return answer(served, prompt, tokens, clock_of(self.bank.place.device))

    def _values(self, answer: Answer, rows: int) -> Iterator[tuple[str, float]]:
        if self.bank.place.labels:
            yield "classification", answer.first
            return
        yield "first_token", answer.first
        yield from (("further_token", seconds) for seconds in answer.further)
        yield "throughput", rows * self.asked.tokens / answer.seconds

    def _adapters(self, number: int) -> Iterator[tuple[Any, ...]]:
        """Yield the seconds to load, switch and swap adapters, of each arm that has several."""
        for way in self.ways:
            if way.way == "mixed":
                assert way.tuned
                served = self.bank.served(way)
                folders = self.bank.folders(way.tuned)
                found = adapter_seconds(served.model, folders, served.adapters, self.bank.place)
                yield from (
                    (number, way.arm, "unmerged", name, "", 0, 0, value) for name, value in found.items()
                )


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
