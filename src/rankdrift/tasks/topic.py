"""A built-in classification task: what is a sentence about, when something else colours it?

One of four fields gives the event of a sentence; a setting, a description of the person or another event
comes from one of the other three: "Marta, a retired goalkeeper, sold the hotel." is about business. The rows
are written by a small grammar, the same ones on every machine; labels are balanced all along a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from rankdrift.tasks import Example, Split, Task
from rankdrift.tasks._fields import classified, text
from rankdrift.tasks._topic_words import ACTORS, BUSINESS, HEALTH, NATURE, RELATIVES, SPORTS, Field
from rankdrift.tasks.kinds import classification

CHOICES = (" business", " health", " sports", " nature")
FIELDS = (BUSINESS, HEALTH, SPORTS, NATURE)
TRAINED, HELD_BACK = 2400, 480
"""Rows to train on, and rows of validation and of test each."""
HELD_OUT_EVENTS = 12
"""The last events of each field decide the sentences of validation and test, and are met in no training
sentence."""
HELD_OUT = 4
"""The last phrases of every other list are met in validation and test only."""


def _example(row: Mapping[str, Any]) -> Example:
    return classified(f"{text(row, 'text')}\nTopic:", row, CHOICES)


def _generate(split: Split) -> list[dict[str, Any]]:
    """Return the rows of a split: ``text`` (unique) and ``label``.

    A sentence of validation or test, which are drawn together, holds an event that training never shows.
    """
    if split == "train":
        return _rows("train", TRAINED)
    drawn = _rows("validation", 2 * HELD_BACK)
    return drawn[:HELD_BACK] if split == "validation" else drawn[HELD_BACK:]


def _rows(split: str, count: int) -> list[dict[str, Any]]:
    random = Random(f"topic/{split}")
    rows: dict[str, int] = {}
    labels = _balanced_labels(random)
    while len(rows) < count:
        label = next(labels)
        sentence = _sentence(random, label, split)
        while sentence in rows:
            sentence = _sentence(random, label, split)
        rows[sentence] = label
    return [{"text": sentence, "label": label} for sentence, label in rows.items()]


def _balanced_labels(random: Random) -> Iterator[int]:
    while True:
        yield from random.sample(range(len(FIELDS)), len(FIELDS))


def _sentence(random: Random, label: int, split: str) -> str:
    other = FIELDS[random.choice([index for index in range(len(FIELDS)) if index != label])]
    actor = random.choice(_available(ACTORS, split))
    event = random.choice(_events(FIELDS[label], split))
    setting = random.choice(_available(other.settings, split))
    description = random.choice(_available(other.descriptions, split))
    relative = f"{random.choice(_available(RELATIVES, split))} {random.choice(_events(other, split))}"
    opening = f"{setting[0].upper()}{setting[1:]}"
    return random.choice(
        (
            f"{opening}, {actor} {event}.",
            f"{actor} {event} {setting}.",
            f"{actor}, {description}, {event}.",
            f"{opening}, {actor}, {description}, {event}.",
            f"{actor}, whose {relative}, {event}.",
            f"{actor} {event} while a {relative}.",
        )
    )


def _events(field: Field, split: str) -> Sequence[str]:
    """Return the events that training shows, or those that it does not."""
    return field.events[-HELD_OUT_EVENTS:] if split == "validation" else field.events[:-HELD_OUT_EVENTS]


def _available(phrases: Sequence[str], split: str) -> Sequence[str]:
    """Return all phrases for validation, all but the held-out ones for training."""
    return phrases if split == "validation" else phrases[:-HELD_OUT]


TASK = Task(
    name="topic",
    version=1,
    kind=classification.KIND,
    metrics=("accuracy", "f1"),
    columns=("text", "label"),
    example=_example,
    choices=CHOICES,
    generate=_generate,
)
