"""One streamed completion, and when its parts arrived."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

DONE = "[DONE]"


@dataclass(frozen=True)
class Ask:
    """What is asked: greedy, and all of its tokens."""

    model: str
    """A name that the server knows: the base model's, or an adapter's."""
    prompt: str
    tokens: int


@dataclass(frozen=True)
class Reply:
    """How one request went; times are seconds from when it was sent."""

    ask: Ask
    due: float
    """When it was to be sent, from the beginning of the load."""
    sent: float
    """When it was."""
    arrivals: tuple[float, ...] = ()
    """Of each part of the text."""
    text: str = ""
    seconds: float = float("nan")
    """Until the end."""
    problem: str = ""
    """Why it failed; else empty."""


class Rubbish(Exception):  # noqa: N818 - caught where the reply is made
    """A stream that is not what the protocol says."""


async def complete(
    session: aiohttp.ClientSession, url: str, ask: Ask, due: float, began: float, ignore_eos: bool
) -> Reply:
    """Send one request and read its stream; whatever goes wrong is in the reply."""
    import aiohttp

    sent = time.perf_counter()
    body = {
        **{"model": ask.model, "prompt": ask.prompt, "max_tokens": ask.tokens},
        **{"temperature": 0, "stream": True},
        **({"ignore_eos": True} if ignore_eos else {}),
    }
    arrivals: list[float] = []
    text: list[str] = []
    problem = ""
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                said = (await response.text())[:200]
                raise Rubbish(f"HTTP {response.status}: {' '.join(said.split())}")
            async for part in _parts(response.content):
                arrivals.append(time.perf_counter() - sent)
                text.append(part)
        if not arrivals:
            raise Rubbish("the stream ended without a token")
    except TimeoutError:
        problem = "no answer within the time that was given"
    except (aiohttp.ClientError, Rubbish) as error:
        problem = f"{type(error).__name__}: {error}" if isinstance(error, aiohttp.ClientError) else str(error)
    seconds = time.perf_counter() - sent
    return Reply(ask, due, sent - began, tuple(arrivals), "".join(text), seconds, problem)


async def _parts(stream: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Yield the parts of the text in a stream of server-sent events; raise Rubbish where it is none.

    Not all servers send a last line that says that it is one; then the reason why the text ends has to be.
    """
    is_finished = False
    async for line in stream:
        if not (text := line.decode("utf-8", errors="replace").strip()) or text.startswith(":"):
            continue
        name, _, value = text.partition(":")
        if name != "data":
            if name in ("event", "id", "retry"):
                continue
            raise Rubbish(f"not a line of an event stream: {text[:80]!r}")
        if value.strip() == DONE:
            return
        part, reason = _text_of(value)
        is_finished = is_finished or bool(reason)
        if part is not None and (part or not reason):  # one that gives the reason alone is no token
            yield part
    if not is_finished:
        raise Rubbish(f"the stream ended without {DONE}, or a reason to end")


def _text_of(value: str) -> tuple[str | None, str | None]:
    """Return the text of an event, if it has any, and why it is the last, if it is."""
    try:
        event: Any = json.loads(value)
    except ValueError:
        raise Rubbish(f"not JSON: {value.strip()[:80]!r}") from None
    if isinstance(event, dict) and "error" in event:
        raise Rubbish(f"the server says: {str(event['error'])[:200]}")
    try:
        if not event["choices"]:
            return None, None  # the last one may have the usage alone
        choice = event["choices"][0]
        return str(choice["text"]), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError):
        raise Rubbish(f"an event without choices[0].text: {value.strip()[:80]!r}") from None
