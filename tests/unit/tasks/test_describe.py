"""The built-in generation task: references say what the record says; other splits meet new names."""

from __future__ import annotations

import pytest

from rankdrift.tasks import SPLITS, Split
from rankdrift.tasks.describe import TASK, WORDINGS

FULL = {
    "name": "Heron Loop",
    "length": "6 km",
    "effort": "easy",
    "surface": "gravel",
    "start": "the campsite",
    "sight": "a tarn",
    "season": "spring",
    "dogs": "welcome",
}
SHORT = {"name": "Otter Way", "length": "9 km", "effort": "steep"}


def _rows(split: Split) -> list[dict[str, str]]:
    assert TASK.generate is not None
    return TASK.generate(split)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            FULL,
            [
                "Heron Loop is an easy walk of 6 km on gravel from the campsite that passes a tarn. "
                "It is best in spring. Dogs are welcome.",
                "From the campsite, Heron Loop runs for 6 km over gravel past a tarn. "
                "The going is easy. Go in spring. Dogs are welcome.",
                "Walkers on Heron Loop set out from the campsite, cover 6 km, walk on gravel and see a tarn. "
                "Expect easy going. Choose spring. Dogs are welcome here.",
            ],
        ),
        (
            SHORT,
            [
                "Otter Way is a steep walk of 9 km.",
                "Otter Way runs for 9 km. The going is steep.",
                "Walkers on Otter Way cover 9 km. Expect steep going.",
            ],
        ),
    ],
)
def test_wordings(record: dict[str, str], expected: list[str]) -> None:
    assert [wording(record) for wording in WORDINGS] == expected


@pytest.mark.parametrize("split", SPLITS)
def test_every_reference_says_every_value_of_its_record(split: Split) -> None:
    for row in _rows(split):
        values = [field.split(": ", 1)[1] for field in row["record"].split(" | ")]
        assert 4 <= len(values) <= 6
        assert all(value in row["sentence"] for value in values), row


@pytest.mark.parametrize("split", SPLITS)
def test_a_record_has_three_references_in_a_row(split: Split) -> None:
    records = [row["record"] for row in _rows(split)]
    assert records[0::3] == records[1::3] == records[2::3]
    assert len(set(records)) == len(records) // 3


def test_names_of_validation_and_test_are_new() -> None:
    names = {split: {row["record"].split(" | ")[0] for row in _rows(split)} for split in SPLITS}
    assert not names["train"] & (names["validation"] | names["test"])


def test_no_record_is_in_two_splits() -> None:
    records = [{row["record"] for row in _rows(split)} for split in SPLITS]
    assert len(set.union(*records)) == sum(map(len, records))
