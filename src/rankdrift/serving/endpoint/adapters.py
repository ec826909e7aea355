"""Does an endpoint answer with the adapter it was asked for?

A server may know an adapter by name, have found no module for its tensors, and answer with the base model
without a word. From outside the two look alike but for the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from rankdrift.errors import IntegrityError, UserError
from rankdrift.serving.endpoint.load import Load, put_load_on
from rankdrift.serving.endpoint.requests import Ask

TOKENS = 16


def require_adapters(
    url: str, base: str, groups: Sequence[Sequence[str]], prompts: Sequence[str], load: Load
) -> None:
    """Raise IntegrityError where an adapter says to all prompts what the base model or one of its group says.

    Of the load, it is asked as patiently and in the same words, one prompt at a time. Raises UserError where
    the endpoint does not answer.
    """
    names = dict.fromkeys((base, *itertools.chain.from_iterable(groups)))
    texts = {name: _texts(url, name, prompts, load) for name in names}
    for group in groups:
        for other, name in itertools.combinations((base, *group), 2):
            if texts[name] == texts[other]:
                what = "the base model" if other == base else f"'{other}'"
                raise IntegrityError(
                    f"{url}: '{name}' says to all of {len(prompts)} prompts what {what} says: the server "
                    "has not applied its adapter (do its key names fit the modules?), or has one model "
                    "under two names; nothing is timed"
                )


def _texts(url: str, name: str, prompts: Sequence[str], load: Load) -> list[str]:
    asks = [Ask(name, prompt, TOKENS) for prompt in prompts]
    replies = put_load_on(url, asks, replace(load, requests=len(asks), rate=None, clients=1))
    if problems := [reply.problem for reply in replies if reply.problem]:
        raise UserError(f"{url}: model '{name}': {problems[0]} ({len(problems)} of {len(replies)} requests)")
    return [reply.text for reply in replies]
