"""CodeXGLUE's two BLEU scores. Figures: its evaluators (microsoft/CodeXGLUE at ac74a62) on these texts."""

from __future__ import annotations

import math

import pytest

from rankdrift import registry
from rankdrift.metrics.codexglue_bleu import tokens

TO_TEXT, TO_CODE = registry.load("metric", "codexglue_bleu"), registry.load("metric", "concode_bleu")
SUMMARIES = ("Returns the max_len of a list.", "", "Read a file (UTF-8) into memory , line by line .")
DOCSTRINGS = (
    ("Return the maximum length of the list .",),
    ("Create a Redis node",),
    ("Read a file into memory , line by line .",),
)
PROGRAMS = ("int function ( ) { return count ; }", "void function ( int a ) { b = a ; }", "")
SOURCES = (
    ("int function ( ) { return this . count ; }",),
    ("void function ( int arg ) { b = arg ; }",),
    ("String function ( ) { }",),
)


@pytest.mark.parametrize(
    ("item", "expected"), [(0, 20.492938431708815), (1, 1.8315638888734178), (2, 52.664038784792666)]
)
def test_code_to_text_of_one_text(item, expected):
    assert TO_TEXT.per_item(SUMMARIES[item], DOCSTRINGS[item]) == pytest.approx(expected, rel=1e-12)


def test_code_to_text_is_the_mean_over_texts():
    assert TO_TEXT.compute(SUMMARIES, DOCSTRINGS) == pytest.approx(24.996180368458297, rel=1e-12)


def test_code_to_text_takes_the_shortest_of_several_references():
    found = TO_TEXT.per_item("a cat sat down", ("a cat sat", "a cat sat down there"))
    assert found == pytest.approx(100)  # of the longer one it would be exp(1 - 6 / 5)


def test_a_word_said_twice_counts_as_often_as_one_reference_has_it():
    """Of "a a" one word and no pair match: (1 / 2 x (0 + 1) / (1 + 1) x 1 x 1)^(1/4)."""
    assert TO_TEXT.per_item("a a", ("a", "a b")) == pytest.approx(100 * 0.25**0.25)


def test_an_empty_text_scores_by_the_length_of_its_reference():
    assert TO_TEXT.per_item("", ("a b c",)) == pytest.approx(100 * math.exp(-3))


def test_tokens_of_code_to_text():
    assert tokens("__init__ isn't\tUTF-8:\n3.5") == (
        ["_", "_", "init", "_", "_", "isn", "'", "t", "utf", "-", "8", ":", "3", ".", "5"]
    )


def test_text_to_code_is_of_the_corpus():
    assert TO_CODE.compute(PROGRAMS, SOURCES) == pytest.approx(41.943176530884664, rel=1e-12)


def test_text_to_code_of_empty_texts_is_zero():
    assert TO_CODE.compute(("", ""), SOURCES[:2]) == 0.0


def test_text_to_code_keeps_case_and_tokens():
    """Three tokens against three; no n-gram in common, one added to each: p = 1/4, 1/3, 1/2, 1."""
    assert TO_CODE.compute(("A.b C d",), (("a.b c D",),)) == pytest.approx(100 * (1 / 4 / 3 / 2) ** 0.25)
