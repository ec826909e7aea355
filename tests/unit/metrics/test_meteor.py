"""METEOR with synonyms, without, and where WordNet is missing."""

from __future__ import annotations

from types import SimpleNamespace

import nltk
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from rankdrift import registry
from rankdrift.errors import UserError
from rankdrift.metrics import _meteor
from rankdrift.metrics.meteor_stem import NoSynonyms

STEM = registry.load("metric", "meteor_stem")
GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party"
REFERENCE = "It is a guide to action that ensures that the military will forever heed Party commands"


class Synonyms:
    """A WordNet of one set of synonyms."""

    def synsets(self, word):
        names = ("car", "auto", "motor_car") if word in ("car", "auto") else ()
        return [SimpleNamespace(lemmas=lambda: [SimpleNamespace(name=lambda n=name: n) for name in names])]


def test_nltks_own_example():
    """0.6944 in the documentation of nltk.translate.meteor_score, whose synonyms change nothing here."""
    assert STEM.per_item(GUIDE, (REFERENCE,)) == pytest.approx(0.6944, abs=5e-5)


@pytest.mark.parametrize(("wordnet", "expected"), [(Synonyms, 1 - 0.5 / 3**3), (NoSynonyms, 1 / 3)])
def test_a_synonym_counts_with_wordnet_alone(wordnet, expected):
    """W05-0909: three matches in one chunk, P = R = F = 1, less 0.5 (1 / 3)^3.

    Without WordNet two matches in two chunks: P = R = F = 2/3, times 1 - 0.5 (2 / 2)^3.
    """
    metric = _meteor.meteor_metric("m", wordnet)
    assert metric.per_item("red car stops", ("red auto stops",)) == pytest.approx(expected)


def test_stems_match():
    """Two matches, "runs" as "running", in one chunk: 1 - 0.5 (1 / 2)^3."""
    assert STEM.per_item("he runs", ("he running",)) == pytest.approx(1 - 0.5 / 8)


def test_the_best_reference_and_nothing_for_an_empty_text():
    assert STEM.per_item("he runs", ("unlike it", "he runs")) == pytest.approx(1 - 0.5 / 8)
    assert STEM.per_item("", ("he runs",)) == 0.0


def test_words_are_split_in_every_line_and_sentence():
    assert _meteor.tokens("It isn't far. Go!\nNo. Stay.") == (
        ["It", "is", "n't", "far", ".", "Go", "!", "No.", "Stay", "."]
    )


def test_without_wordnet_meteor_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    missing = LazyCorpusLoader(
        "wordnet", WordNetCorpusReader, None
    )  # not yet loaded, whatever other tests did
    monkeypatch.setattr(nltk.corpus, "wordnet", missing)
    with pytest.raises(UserError, match=r"needs WordNet.*nltk.downloader wordnet.*meteor_stem"):
        registry.load("metric", "meteor").compute([GUIDE], [(REFERENCE,)])
