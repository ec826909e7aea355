"""The built-in classification task: balance, what decides a label, what training never shows."""

from __future__ import annotations

import pytest

from rankdrift.tasks import SPLITS, Split, topic
from rankdrift.tasks.topic import FIELDS, HELD_OUT_EVENTS, TASK


def _rows(split: Split) -> list[dict[str, object]]:
    assert TASK.generate is not None
    return TASK.generate(split)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_in_every_block_of_four(split: Split) -> None:
    labels = [row["label"] for row in _rows(split)]
    assert all(sorted(labels[first : first + 4]) == [0, 1, 2, 3] for first in range(0, len(labels), 4))


@pytest.mark.parametrize("split", SPLITS)
def test_the_label_is_the_field_of_the_main_clause(split: Split) -> None:
    settings = {setting for field in FIELDS for setting in field.settings}
    for row in _rows(split):
        sentence = str(row["text"]).removesuffix(".").split(" while a ")[0]
        for setting in settings:
            sentence = sentence.removesuffix(f" {setting}")
        # the main clause comes last: what a person's relative did ends with a comma
        ending = [label for label, field in enumerate(FIELDS) if sentence.endswith(tuple(field.events))]
        assert ending == [row["label"]], row


@pytest.mark.parametrize("split", SPLITS)
def test_what_colours_a_sentence_comes_from_one_other_field(split: Split) -> None:
    for row in _rows(split):
        sentence = str(row["text"]).lower()
        phrases = [field.events + field.settings + field.descriptions for field in FIELDS]
        found = [n for n, of_field in enumerate(phrases) if any(p.lower() in sentence for p in of_field)]
        assert len(found) == 2, row
        assert row["label"] in found


def test_no_training_sentence_holds_a_held_out_event() -> None:
    held_out = [event for field in FIELDS for event in field.events[-HELD_OUT_EVENTS:]]
    assert len(held_out) == 48
    texts = [str(row["text"]) for row in _rows("train")]
    assert not [text for text in texts if any(event in text for event in held_out)]
    for split in SPLITS[1:]:
        assert all(any(event in str(row["text"]) for event in held_out) for row in _rows(split))


def test_no_phrase_belongs_to_two_fields() -> None:
    for part in ("events", "settings", "descriptions"):
        phrases = [phrase for field in FIELDS for phrase in getattr(field, part)]
        assert len(set(phrases)) == len(phrases)
    assert len(set(topic.ACTORS)) == len(topic.ACTORS)
