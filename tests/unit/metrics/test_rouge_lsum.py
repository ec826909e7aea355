"""ROUGE-Lsum and the sentences it is taken over."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from rankdrift import registry
from rankdrift.metrics._sentences import sentences

LSUM, ROUGE_L = registry.load("metric", "rouge_lsum"), registry.load("metric", "rouge_l")


def test_sentences_in_another_order_cost_rouge_l_alone():
    """Every sentence is in the other text: 1. As one sequence three words of six are in order: 1/2."""
    prediction, reference = "red fox ran. blue bird flew.", "blue bird flew. red fox ran."
    assert LSUM.per_item(prediction, (reference,)) == pytest.approx(100)
    assert ROUGE_L.per_item(prediction, (reference,)) == pytest.approx(50)


def test_union_of_the_common_subsequences():
    """Lin (W04-1013), section 3.2: r = w1..w5, sentences w1 w2 w6 w7 w8 and w1 w3 w8 w9 w5: recall 4/5.

    Of the ten words of the summary four are in the union: precision 4/10, F = 2 x 4 / (10 + 5).
    """
    summary = "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"
    assert LSUM.per_item(summary, ("w1 w2 w3 w4 w5",)) == pytest.approx(100 * 8 / 15)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("the cat sat\nit ate a fish", "it ate fish\nthen the cat sat down"),
        ("one line only", "the first line\nthe one after"),
        ("\nthe cat. It ate.\n", "it ate\n\nthe cat"),
    ],
)
def test_lines_are_the_sentences_of_rouge_score(prediction, reference):
    expected = RougeScorer(["rougeLsum"], use_stemmer=True).score(reference, "\n".join(sentences(prediction)))
    assert LSUM.per_item(prediction, (reference,)) == pytest.approx(100 * expected["rougeLsum"].fmeasure)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no end", ["no end"]),
        ("He left. She stayed! Why? it rained.", ["He left.", "She stayed!", "Why?", "it rained."]),
        ('"Go." He went.', ['"Go."', "He went."]),
        ("Dr. A. Smith of the U.S. Army paid $3.50 in Jan. 2020.",) * 2,
        ("It ended. Mr. Blunt left.", ["It ended.", "Mr. Blunt left."]),
        ("well... then Bo left... Ada stayed.", ["well... then Bo left...", "Ada stayed."]),
        ("a plan . B replied .", ["a plan .", "B replied ."]),
        ("First. Second.\nThird.\n", ["First. Second.", "Third."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == ([expected] if isinstance(expected, str) else expected)
