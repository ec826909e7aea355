"""Load on an endpoint: requests that come whenever they come, or as many at a time as there are clients.

Users do not wait for each other: with the open loop, requests arrive at random times of a given rate
(Poisson), and a slow server makes a queue, which is in the times. The closed loop keeps a number of requests
in flight, and asks less of a slow server: it gives throughput, not what users would see.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rankdrift.errors import UserError
from rankdrift.serving.endpoint.requests import Ask, Reply, complete


@dataclass(frozen=True)
class Load:
    """How requests come; one of ``rate`` and ``clients``."""

    requests: int
    rate: float | None = None
    """Requests a second, of the open loop."""
    clients: int | None = None
    """Requests in flight, of the closed loop."""
    timeout: float = 120.0
    """Seconds for a request."""
    seed: int = 0
    """Of the times of arrival."""
    ignore_eos: bool = True
    """Whether servers are told to give all tokens that are asked for; the protocol has no such word, vLLM's
    does."""


def arrivals(load: Load) -> list[float]:
    """Return when requests are due, in seconds from the beginning: all at once in the closed loop."""
    if load.rate is None:
        return [0.0] * load.requests
    drawn = random.Random(load.seed)
    return list(itertools.accumulate(drawn.expovariate(load.rate) for _ in range(load.requests)))


def put_load_on(url: str, asks: Sequence[Ask], load: Load) -> list[Reply]:
    """Send the requests, each of ``asks`` in turn; return how each went, in the order of their due times.

    Raises UserError where aiohttp is not installed, or the load is neither open nor closed.
    """
    if (load.rate is None) == (load.clients is None):
        raise UserError("endpoint: give a rate (requests a second) or a number of clients, one of them")
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise UserError("endpoint: aiohttp is not installed; pip install 'rankdrift[endpoint]'") from None
    return asyncio.run(_send_all(url.rstrip("/").removesuffix("/v1"), asks, load))


def in_its_words(url: str, model: str, load: Load) -> Load:
    """Return the load as the endpoint understands it: without ``ignore_eos`` where that is refused."""
    asked = dataclasses.replace(load, requests=1, rate=None, clients=1)
    (reply,) = put_load_on(url, [Ask(model, "Once", 1)], asked)
    refused = reply.problem.startswith("HTTP 4") and "ignore_eos" in reply.problem
    return dataclasses.replace(load, ignore_eos=not refused)


async def _send_all(url: str, asks: Sequence[Ask], load: Load) -> list[Reply]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=load.timeout)
    waiting: Iterator[tuple[Ask, float]] = zip(itertools.cycle(asks), arrivals(load), strict=False)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()

        async def when_due(ask: Ask, due: float) -> Reply:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            return await complete(session, url, ask, due, began, load.ignore_eos)

        async def one_after_another() -> list[Reply]:
            return [await complete(session, url, ask, due, began, load.ignore_eos) for ask, due in waiting]

        if load.clients is None:
            return list(await asyncio.gather(*(when_due(ask, due) for ask, due in waiting)))
        clients = await asyncio.gather(*(one_after_another() for _ in range(load.clients)))
    return sorted(itertools.chain.from_iterable(clients), key=lambda reply: reply.sent)
