"""The models of an endpoint under load, one after the other, again and again in an order that is drawn."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from rankdrift.errors import UserError
from rankdrift.serving.endpoint.load import Load, put_load_on
from rankdrift.serving.endpoint.requests import Ask, Reply
from rankdrift.serving.record import COLUMNS, Measured

FAILED = 0.05
"""Share of requests that may fail: of more, what is left says little of the server."""


def measure(
    url: str,
    models: Mapping[tuple[str, str], Sequence[str]],
    prompts: Sequence[str],
    tokens: int,
    load: Load,
    rounds: int,
    say: Callable[[str], None],
) -> Measured:
    """Put load on every model in every round.

    Parameters
    ----------
    url
        Of the endpoint.
    models
        (arm, way) -> names of models at the endpoint, of which requests take one after the other.
    prompts
        Texts, taken in turn.
    tokens
        Of an answer.
    load
        How requests come, of one model in one round.
    rounds
        How often.
    say
        Takes lines for people.

    Raises
    ------
    UserError
        Where more than 5 % of the requests to a model fail; with the first reason.

    """
    order, rows = random.Random(load.seed), []
    put = {key: _asks(names, prompts, tokens) for key, names in models.items()}
    for number in range(rounds):
        say(f"round {number + 1}/{rounds}")
        for key in order.sample(list(models), len(models)):
            replies = put_load_on(url, put[key], load)
            _require_answers(key, replies)
            rows += [
                (number, *key, name, describe(load), load.clients or 0, 0, value)
                for name, value in _values(replies)
            ]
    return Measured((), pd.DataFrame(rows, columns=list(COLUMNS)))


def describe(load: Load) -> str:
    """Say how requests come."""
    return f"closed, {load.clients} clients" if load.rate is None else f"open, {load.rate:g} requests/s"


def _asks(names: Sequence[str], prompts: Sequence[str], tokens: int) -> list[Ask]:
    """Return requests in which each prompt goes to each of the names once."""
    return [Ask(name, prompt, tokens) for prompt in prompts for name in names]


def _require_answers(key: tuple[str, str], replies: Sequence[Reply]) -> None:
    problems = [reply.problem for reply in replies if reply.problem]
    if len(problems) > FAILED * len(replies):
        raise UserError(
            f"{', '.join(key)}: {len(problems)} of {len(replies)} requests failed ({problems[0]}); nothing "
            "is stated; ask for less at a time, or mend the server"
        )


def _values(replies: Sequence[Reply]) -> Iterator[tuple[str, Any]]:
    """Yield what replies took; a request's time begins when it was due, also where it was sent later."""
    answered = [reply for reply in replies if not reply.problem]
    for reply in answered:
        late = max(0.0, reply.sent - reply.due) if reply.due else 0.0
        yield "first_token", reply.arrivals[0] + late
        yield "request", reply.seconds + late
        yield from (("further_token", b - a) for a, b in itertools.pairwise(reply.arrivals))
    span = max(reply.sent + reply.seconds for reply in answered) - min(reply.sent for reply in answered)
    yield "throughput", sum(len(reply.arrivals) for reply in answered) / span
