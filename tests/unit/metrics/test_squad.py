"""SQuAD v2: every value of the official script, whose figures for this small set are stated below."""

from __future__ import annotations

import pytest

from rankdrift import registry
from rankdrift.metrics import Answered

SQUAD = registry.load("metric", "squad_v2")
EXACT = registry.load("metric", "squad_v2_exact")
PREDICTIONS = (
    Answered("The Normans!", 0.1),
    Answered("in the 10th century", 0.2),
    Answered("", 0.9),
    Answered("", 0.8),
    Answered("Rollo", 0.7),
    Answered("north", 0.3),
)
ANSWERS = (
    ("Normans", "Norman people"),
    ("10th century", "10th and 11th centuries"),
    ("Rollo",),
    (),
    (),
    ("the",),
)
OFFICIAL = {
    "exact": 33.333333333333336,
    "f1": 46.666666666666664,
    "total": 6,
    "HasAns_exact": 25.0,
    "HasAns_f1": 45.0,
    "HasAns_total": 4,
    "NoAns_exact": 50.0,
    "NoAns_f1": 50.0,
    "NoAns_total": 2,
    "best_exact": 50.0,
    "best_exact_thresh": 0.1,
    "best_f1": 63.333333333333336,
    "best_f1_thresh": 0.2,
}
"""Of metrics/squad_v2/compute_score.py in huggingface/evaluate a7dd338, which is SQuAD's evaluate-v2.0.py."""


def test_all_values_are_those_of_the_official_script():
    found = SQUAD.parts(PREDICTIONS, ANSWERS)
    assert found == pytest.approx(OFFICIAL)
    assert list(found) == list(OFFICIAL)


def test_the_values_by_name_are_the_headlines():
    assert SQUAD.compute(PREDICTIONS, ANSWERS) == pytest.approx(OFFICIAL["f1"])
    assert EXACT.compute(PREDICTIONS, ANSWERS) == pytest.approx(OFFICIAL["exact"])


@pytest.mark.parametrize("metric", [SQUAD, EXACT], ids=["f1", "exact"])
def test_no_answer_is_right_where_there_is_none(metric):
    assert metric.per_item(Answered("", 0.0), ()) == 100.0
    assert metric.per_item(Answered("unanswerable", 1.0), ()) == 0.0
    assert metric.per_item(Answered("", 1.0), ("Rollo",)) == 0.0


def test_the_best_of_the_accepted_answers_counts():
    # two of three words, and two of two: F1 = 2 x 2 / (3 + 2)
    assert SQUAD.per_item(Answered("William the great Conqueror", 0.0), ("Bastard", "William Conqueror")) == (
        pytest.approx(80.0)
    )


def test_an_accepted_answer_without_words_is_none():
    """The script drops it, so that an empty text is not right beside another; alone it makes "" right."""
    assert SQUAD.per_item(Answered("", 0.0), ("the", "Rollo")) == 0.0
    assert SQUAD.per_item(Answered("", 0.0), ("the",)) == 100.0


def test_an_answer_that_there_should_not_be_lowers_the_score_at_a_threshold():
    """From the surest on: 1 of 3 right with no answers, 0 with the first, 1 and 2 with the next two."""
    predictions = [Answered("Rollo", chance) for chance in (0.3, 0.1, 0.2)]
    found = SQUAD.parts(predictions, [("Rollo",), (), ("Rollo",)])
    assert (found["best_exact"], found["best_exact_thresh"]) == (pytest.approx(200 / 3), 0.3)


def test_a_kind_of_question_that_does_not_occur_has_no_values():
    found = SQUAD.parts(PREDICTIONS[:3], ANSWERS[:3])
    assert "HasAns_f1" in found
    assert not [name for name in found if name.startswith("NoAns")]


def test_the_threshold_does_not_move_the_plain_values():
    sure = [Answered(prediction.text, 1.0) for prediction in PREDICTIONS]
    assert SQUAD.compute(sure, ANSWERS) == SQUAD.compute(PREDICTIONS, ANSWERS)
