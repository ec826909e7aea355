"""Metrics as modules of Hugging Face's evaluate."""

from __future__ import annotations

import subprocess
import sys

import evaluate
import pytest

from rankdrift import registry
from rankdrift.errors import UserError
from rankdrift.metrics import Answered, as_evaluate


def test_a_text_metric_takes_several_references_or_one():
    texts, references = ["a b c d", "x y"], [["a b c", "q"], ["x y"]]
    expected = registry.load("metric", "rouge_l").compute(texts, references)
    assert as_evaluate("rouge_l").compute(predictions=texts, references=references) == {
        "rouge_l": pytest.approx(expected)
    }
    one = as_evaluate("rouge_l").compute(predictions=texts, references=["a b c", "x y"])
    assert one == {"rouge_l": pytest.approx(expected)}


def test_classes():
    found = as_evaluate("accuracy").compute(predictions=[1, 0, -1], references=[1, 1, 1])
    assert found == {"accuracy": pytest.approx(1 / 3)}


def test_answers_come_with_their_parts():
    answers = [{"text": "Rollo", "no_answer_probability": 0.1}, {"text": "", "no_answer_probability": 0.9}]
    found = as_evaluate("squad_v2").compute(predictions=answers, references=[["Rollo"], []])
    parts = registry.load("metric", "squad_v2").parts(
        [Answered(**answer) for answer in answers], [("Rollo",), ()]
    )
    assert found == {"squad_v2": 100.0, **parts}
    assert len(parts) == 13


def test_several_are_combined():
    both = evaluate.combine([as_evaluate("rouge1"), as_evaluate("exact_match")])
    assert both.compute(predictions=["a b"], references=[["a b"]]) == {"rouge1": 100.0, "exact_match": 1.0}
    assert both.evaluation_module_names == ["rouge1", "exact_match"]


def test_items_may_be_added_one_by_one():
    module = as_evaluate("exact_match")
    module.add(prediction="a", reference=["a"])
    module.add_batch(predictions=["b", "c"], references=[["x"], ["c"]])
    assert module.compute() == {"exact_match": pytest.approx(2 / 3)}


def test_an_unknown_name_suggests_the_near_one():
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        as_evaluate("acuracy")


def test_evaluate_is_loaded_only_where_it_is_asked_for():
    code = "import sys, rankdrift.metrics.rouge_l; assert not {'evaluate', 'nltk'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
