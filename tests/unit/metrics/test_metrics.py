"""Metrics: one contract for all of them, and each against a published example or an independent code."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import nltk
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from rankdrift import registry
from rankdrift.errors import UserError
from rankdrift.metrics import Answered, ScoredText

METRICS = [registry.load("metric", name) for name in registry.names("metric")]
TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "rain fell on the harbour all through the night",
    "she counted the boxes twice and signed the sheet",
    "he runs",
)
REFERENCES = tuple((text, "an answer that nobody gave here") for text in TEXTS)
LABELS = (0, 1, 1, 0, 1, 0, 0, 1)
ANSWERS = (Answered("", 0.9), *(Answered(text, 0.1) for text in TEXTS))
ACCEPTED = ((), *REFERENCES)
QUERIES = tuple(f"SELECT {column} FROM table WHERE Year = 1990" for column in ("Name", "COUNT(Name)", "Town"))
PERFECT = {
    "choice": (LABELS, LABELS),
    "normalised_choice": (LABELS, LABELS),
    "text": (TEXTS, REFERENCES),
    "answer": (ANSWERS, ACCEPTED),
    "text_likelihood": (tuple(ScoredText(0.0, 2 + size, 9 + size) for size in range(4)), (None,) * 4),
}
METEOR = sum(1 - 0.5 / len(text.split()) ** 3 for text in TEXTS) / len(TEXTS)  # of identical texts, W05-0909


def a_query(column, aggregation):
    conditions = {"column_index": [2], "operator_index": [0], "condition": ["1990"]}
    table = {"header": ["Name", "Town", "Year"], "types": ["text", "text", "real"]}
    rows = [["Ada", "Bern", "1990"], ["Bo", "Bath", "1990"]]
    sql = {"sel": column, "agg": aggregation, "conds": conditions}
    return (json.dumps({"sql": sql, "table": {**table, "rows": rows}}),)


def a_perfect_set(metric):
    if metric.name.startswith("wikisql"):
        return QUERIES, (a_query(0, 0), a_query(0, 3), a_query(1, 0))
    return PERFECT[metric.reads]


def best_of(metric):
    return METEOR if metric.name.startswith("meteor") else metric.best


@pytest.fixture(autouse=True)
def no_word_has_a_synonym(monkeypatch):
    """METEOR does not wait for an installed WordNet."""
    fake = SimpleNamespace(ensure_loaded=lambda: None, synsets=lambda word: ())
    monkeypatch.setattr(nltk.corpus, "wordnet", fake)


@pytest.fixture(params=METRICS, ids=lambda metric: metric.name)
def metric(request):
    return request.param


def test_perfect_predictions_give_the_best_value(metric):
    assert metric.compute(*a_perfect_set(metric)) == pytest.approx(best_of(metric))


def test_a_wrong_prediction_costs(metric):
    predictions, answers = a_perfect_set(metric)
    other = {"text": "zzz", "answer": Answered("zzz", 0.5), "text_likelihood": ScoredText(-9.0, 2, 9)}
    value = metric.compute((other.get(metric.reads, 1), *predictions[1:]), answers)
    cost = (best_of(metric) - value) * (1 if metric.higher_is_better else -1)
    assert cost > 0.001 * best_of(metric)


def test_order_of_the_items_does_not_matter(metric):
    predictions, answers = a_perfect_set(metric)
    predictions = (
        *predictions[1:],
        predictions[0],
    )  # half wrong, so that the value is not trivially the best
    order = list(range(len(answers)))
    random.Random(3).shuffle(order)
    shuffled = metric.compute([predictions[i] for i in order], [answers[i] for i in order])
    assert shuffled == pytest.approx(metric.compute(predictions, answers))


@pytest.mark.parametrize("name", [metric.name for metric in METRICS if metric.per_item is not None])
def test_the_mean_of_the_items_is_the_value(name):
    metric = registry.load("metric", name)
    predictions, answers = a_perfect_set(metric)
    predictions = (*predictions[1:], predictions[0])
    items = [metric.per_item(*pair) for pair in zip(predictions, answers, strict=True)]
    assert metric.compute(predictions, answers) == pytest.approx(np.mean(items))


@pytest.mark.parametrize("name", registry.names("metric"))
def test_the_file_is_the_name(name):
    assert registry.load("metric", name).name == name


@pytest.mark.parametrize(("predictions", "answers"), [([], []), ([1], [1, 0])])
def test_no_items_or_unequal_numbers_are_refused(metric, predictions, answers):
    if metric.reads in ("text", "answer"):
        words = [str(p) for p in predictions]
        predictions = [Answered(word, 0.0) for word in words] if metric.reads == "answer" else words
        answers = [a_query(0, 0) for _ in answers]
    with pytest.raises(ValueError):
        metric.compute(predictions, answers)


def test_an_unknown_metric_suggests_the_near_one():
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        registry.load("metric", "acuracy")


@pytest.mark.parametrize(("classes", "average"), [(2, "binary"), (4, "macro")])
def test_classification_agrees_with_scikit_learn(classes, average):
    rng = np.random.default_rng(classes)
    labels, predictions = rng.integers(0, classes, 200), rng.integers(0, classes, 200)
    f1 = registry.load("metric", "f1").compute(predictions.tolist(), labels.tolist())
    assert f1 == pytest.approx(sklearn_metrics.f1_score(labels, predictions, average=average), abs=1e-12)
    accuracy = registry.load("metric", "accuracy").compute(predictions.tolist(), labels.tolist())
    assert accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels, predictions))
    macro = registry.load("metric", "f1_macro").compute(predictions.tolist(), labels.tolist())
    assert macro == pytest.approx(sklearn_metrics.f1_score(labels, predictions, average="macro"), abs=1e-12)
    matthews = registry.load("metric", "matthews").compute(predictions.tolist(), labels.tolist())
    assert matthews == pytest.approx(sklearn_metrics.matthews_corrcoef(labels, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 1, 0], 0.0),  # as chance has it
        ([0, 0, 1, 1], [1, 1, 0, 0], -1.0),
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.0),  # one class alone: 0/0, which scikit-learn calls 0
        # TP 2, TN 1, FP 1, FN 0: (2 x 1 - 1 x 0) / sqrt(3 x 2 x 2 x 1)
        ([1, 1, 1, 0], [1, 1, 0, 0], 2 / math.sqrt(12)),
    ],
)
def test_matthews_by_hand(predictions, labels, expected):
    assert registry.load("metric", "matthews").compute(predictions, labels) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["accuracy", "accuracy_norm", "matthews"])
def test_a_missing_prediction_is_never_right(name):
    metric = registry.load("metric", name)
    assert metric.compute([1, -1, 0], [1, 1, 0]) < metric.compute([1, 1, 0], [1, 1, 0])


def test_bleu_with_empty_predictions_and_several_references():
    """One text of two is there and right: the brevity penalty, exp(1 - r / c), is left (P02-1040, 2.2.2)."""
    references = [("a b c d e f", "g h i j k l"), ("m n o p q r", "s t u v w x", "only here one more")]
    # sacrebleu takes the reference nearest in length; of the empty text that is the one of four words
    found = registry.load("metric", "bleu").compute(["a b c d e f", ""], references)
    assert found == pytest.approx(100 * math.exp(1 - 10 / 6))
    assert registry.load("metric", "bleu").compute(["", ""], references) == 0.0


def test_a_missing_prediction_is_a_false_negative_and_no_class():
    # TP = 1, FP = 0, FN = 1 for class 1: 2 / (2 + 1)
    assert registry.load("metric", "f1").compute([1, -1, 0], [1, 1, 0]) == pytest.approx(2 / 3)
    # Three classes: F1 = 1, 0, 1; -1 does not enter the mean as a fourth.
    assert registry.load("metric", "f1").compute([0, -1, 2], [0, 1, 2]) == pytest.approx(2 / 3)


def test_f1_of_a_class_that_occurs_nowhere_is_undefined():
    assert math.isnan(registry.load("metric", "f1").compute([0, 0], [0, 0]))


@pytest.mark.parametrize(
    ("first", "expected"),
    [(("The dog bit the man.", "The dog had bit the man."), 48.53), (("The dog had bit the man.",), 29.44)],
)
def test_bleu_of_sacrebleus_own_examples(first, expected):
    """Source: README of sacreBLEU 2.6, 'Using SacreBLEU from Python' and 'Variable Number of References'."""
    predictions = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        first,
        ("It was not unexpected.", "No one was surprised."),
        ("The man bit him first.", "The man had bitten the dog."),
    ]
    found = registry.load("metric", "bleu").compute(predictions, references)
    assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("name", "expected"), [("rouge1", 12 / 17), ("rouge2", 4 / 15), ("rouge_l", 10 / 17)]
)
def test_rouge_of_rouge_scores_own_pair(name, expected):
    """The sentence pair of rouge-score's README, counted by hand: F = 2 x overlap / (both lengths).

    Nine and eight words after stemming. Words in both: the (twice), quick, brown, jump, dog. Pairs in
    both: the quick, quick brown. Longest common subsequence: the quick brown jump the.
    """
    target = "The quick brown fox jumps over the lazy dog"
    prediction = "The quick brown dog jumps on the log."
    assert registry.load("metric", name).compute([prediction], [(target,)]) == pytest.approx(100 * expected)


def test_rouge_takes_the_best_reference_and_the_mean_over_texts():
    rouge = registry.load("metric", "rouge1")
    references = [("nothing shared whatsoever", "a b c d"), ("x y",)]
    assert rouge.compute(["a b c d", "x z"], references) == pytest.approx((100 + 50) / 2)


@pytest.mark.parametrize(
    ("prediction", "expected"), [(" SELECT  a\n", 1.0), ("select a", 0.0), ("b", 1.0), ("", 0.0)]
)
def test_exact_match_ignores_white_space_only(prediction, expected):
    assert registry.load("metric", "exact_match").per_item(prediction, ("SELECT a", "b")) == expected


@pytest.mark.parametrize("name", ["rouge1", "rouge_l"])
def test_rouge_compares_stems(name):
    """Porter's stemmer takes "jumps" and "jumping" to "jump" (Program 14, 1980, step 1)."""
    assert registry.load("metric", name).compute(["a fox jumps"], [("a fox jumping",)]) == pytest.approx(100)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("word_perplexity", math.exp(16 / 8)),
        ("byte_perplexity", math.exp(16 / 40)),
        ("bits_per_byte", 16 / math.log(2) / 40),
    ],
)
def test_likelihoods_of_texts_are_taken_together(name, expected):
    texts = [ScoredText(-10.0, 5, 30), ScoredText(-6.0, 3, 10)]
    assert registry.load("metric", name).compute(texts, [None, None]) == pytest.approx(expected)
