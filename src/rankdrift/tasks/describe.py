"""A built-in generation task: describe a walking trail from a short record of its attributes.

A record has a name, a length and two to four further attributes; three references word it differently:
"name: Heron Loop | length: 6 km | effort: easy | sight: a disused mill" becomes "Heron Loop is an easy walk
of 6 km that passes a disused mill." The rows are written by rules, the same ones on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from rankdrift.tasks import Example, Split, Task
from rankdrift.tasks._describe_words import DOGS, EFFORTS, LENGTHS, NAMES, SEASONS, SIGHTS, STARTS, SURFACES
from rankdrift.tasks._fields import text
from rankdrift.tasks.kinds.generation import Generation

TRAINED, HELD_BACK = 800, 160
"""Records to train on, and of validation and of test each."""
NEW_NAMES, NEW_STARTS, NEW_SIGHTS = 36, 5, 6
"""How many of the last words are met in validation and test only; every name there is new."""

Record = Mapping[str, str]


def _example(row: Mapping[str, Any]) -> Example:
    record, sentence = text(row, "record"), text(row, "sentence")
    return Example(
        prompt=f"Trail | {record}\nDescription:",
        target=f" {sentence}",
        references=(sentence,),
        group=record,
    )


def _generate(split: Split) -> list[dict[str, Any]]:
    """Return the rows of a split: ``record`` and ``sentence``, one row a reference.

    Records of validation and test are drawn together.
    """
    if split == "train":
        return _rows(_records("train", TRAINED))
    drawn = _records("validation", 2 * HELD_BACK)
    return _rows(drawn[:HELD_BACK] if split == "validation" else drawn[HELD_BACK:])


def _records(split: str, count: int) -> list[tuple[str, Record]]:
    """Return distinct records, each behind how it is written."""
    random = Random(f"describe/{split}")
    records: dict[str, Record] = {}
    while len(records) < count:
        record = _record(random, split)
        records.setdefault(" | ".join(f"{key}: {value}" for key, value in record.items()), record)
    return list(records.items())


def _rows(records: Sequence[tuple[str, Record]]) -> list[dict[str, Any]]:
    return [
        {"record": written, "sentence": wording(record)}
        for written, record in records
        for wording in WORDINGS
    ]


def _record(random: Random, split: str) -> Record:
    """Return name, length and two to four more attributes, in the order in which attributes are listed."""
    values = _vocabulary(split)
    optional = [key for key in values if key not in ("name", "length")]
    omitted = random.sample(optional, random.randint(2, 4))
    return {key: random.choice(words) for key, words in values.items() if key not in omitted}


def _vocabulary(split: str) -> dict[str, Sequence[str]]:
    new = split == "validation"
    return {
        "name": NAMES[-NEW_NAMES:] if new else NAMES[:-NEW_NAMES],
        "length": LENGTHS,
        "effort": EFFORTS,
        "surface": SURFACES,
        "start": STARTS if new else STARTS[:-NEW_STARTS],
        "sight": SIGHTS if new else SIGHTS[:-NEW_SIGHTS],
        "season": SEASONS,
        "dogs": DOGS,
    }


def _name_first(record: Record) -> str:
    """X is a gentle walk of 6 km that passes a tarn. It is best in spring."""
    effort = f"{_article(record['effort'])} {record['effort']} walk" if "effort" in record else "a walk"
    said = _said(record, length="of {}", surface="on {}", start="from {}", sight="that passes {}")
    rest = _said(record, season="It is best in {}.", dogs="Dogs are {}.")
    return " ".join([f"{record['name']} is {effort} {' '.join(said)}.", *rest])


def _start_first(record: Record) -> str:
    """From the chapel, X runs for 6 km past a tarn. The going is gentle."""
    opening = (
        f"From {record['start']}, {record['name']} runs" if "start" in record else f"{record['name']} runs"
    )
    said = _said(record, length="for {}", surface="over {}", sight="past {}")
    rest = _said(record, effort="The going is {}.", season="Go in {}.", dogs="Dogs are {}.")
    return " ".join([f"{opening} {' '.join(said)}.", *rest])


def _walkers_first(record: Record) -> str:
    """Walkers on X cover 6 km and see a tarn. Expect gentle going."""
    acts = _said(record, start="set out from {}", length="cover {}", surface="walk on {}", sight="see {}")
    rest = _said(record, effort="Expect {} going.", season="Choose {}.", dogs="Dogs are {} here.")
    return " ".join([f"Walkers on {record['name']} {_listed(acts)}.", *rest])


WORDINGS: tuple[Callable[[Record], str], ...] = (_name_first, _start_first, _walkers_first)


def _said(record: Record, **patterns: str) -> list[str]:
    """Fill the pattern of each attribute that the record has."""
    return [pattern.format(record[key]) for key, pattern in patterns.items() if key in record]


def _listed(items: Sequence[str]) -> str:
    """Join words as English does: "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


TASK = Task(
    name="describe",
    version=2,
    kind=Generation(),
    metrics=("rouge_l", "bleu", "exact_match"),
    columns=("record", "sentence"),
    example=_example,
    generate=_generate,
)
