"""General text: where it comes from, how it becomes windows."""

from __future__ import annotations

import pandas as pd
import pytest

from rankdrift.data.general_text import BUILTIN, load_windows, text_source
from rankdrift.errors import UserError
from rankdrift.models.tiny import tiny_tokenizer
from rankdrift.spec import DataSpec

PARAGRAPHS = [" = first paragraph , of two . \n", " Second . \n", " x" * 300]
LINES = ["", " = Title = \n", "", *PARAGRAPHS[:2], "", " = = Part = = \n", PARAGRAPHS[2]]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()  # a token a byte


@pytest.fixture
def root(tmp_path):
    (tmp_path / "wikitext_2_v1").mkdir()
    pd.DataFrame({"text": LINES}).to_parquet(tmp_path / "wikitext_2_v1" / "test.parquet")
    return tmp_path


def test_builtin_paragraphs_are_many_distinct_and_of_one_size():
    paragraphs = BUILTIN.read_text(encoding="utf-8").strip().split("\n\n")
    assert len(paragraphs) >= 45
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(60 <= len(paragraph.split()) <= 90 for paragraph in paragraphs)
    assert not any("\n" in paragraph for paragraph in paragraphs)


def test_a_window_is_the_beginning_of_a_paragraph(tokenizer):
    paragraphs = BUILTIN.read_text(encoding="utf-8").strip().split("\n\n")
    windows = load_windows(DataSpec(), tokenizer)
    assert [window.index for window in windows] == list(range(len(paragraphs)))
    for window, paragraph in zip(windows, paragraphs, strict=True):
        assert len(window.input_ids) == 128
        assert tokenizer.decode(list(window.input_ids)) == paragraph[:128]
        assert window.words == len(paragraph[:128].split())


def test_wikitext_loses_headings_and_blank_lines(tokenizer, root):
    windows = load_windows(DataSpec(root=str(root)), tokenizer)
    texts = [tokenizer.decode(list(window.input_ids)) for window in windows]
    assert texts == ["= first paragraph , of two .", "Second .", ("x " * 64)]
    assert [window.words for window in windows] == [7, 2, 64]


def test_the_real_wikitext_has_its_paragraphs(tokenizer, shared_data):
    """Source: the file's 4,358 lines, less 1,467 blank ones and 706 headings, counted with grep."""
    windows = load_windows(DataSpec(root=str(shared_data)), tokenizer, limit=3)
    assert [window.index for window in windows] == [0, 2185 // 3, 2 * 2185 // 3]
    start = tokenizer.decode(list(windows[0].input_ids))
    assert start.startswith("Robert <unk> is an English film , television and theatre actor .")


def test_a_limit_is_spread_over_the_text(tokenizer):
    everything = load_windows(DataSpec(), tokenizer)
    some = load_windows(DataSpec(), tokenizer, limit=5)
    assert [window.index for window in some] == [number * len(everything) // 5 for number in range(5)]
    assert some[2] == everything[some[2].index]
    assert load_windows(DataSpec(), tokenizer, limit=10**6) == everything


def test_auto_prefers_wikitext_where_it_is(root, tmp_path_factory):
    assert text_source(DataSpec(root=str(root))).name == "test.parquet"
    assert text_source(DataSpec(root=str(tmp_path_factory.mktemp("empty")))) == BUILTIN
    assert text_source(DataSpec(root=str(root), general_text="builtin")) == BUILTIN


@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_wikitext_asked_for_and_absent_is_an_error(folder):
    with pytest.raises(UserError, match=r"choose data\.general_text=builtin"):
        text_source(DataSpec(root=folder, general_text="wikitext2"))


def test_wikitext_without_its_column_is_an_error(tokenizer, root):
    path = root / "wikitext_2_v1" / "test.parquet"
    pd.DataFrame({"line": LINES}).to_parquet(path)
    with pytest.raises(UserError, match="no column 'text', only line"):
        load_windows(DataSpec(root=str(root)), tokenizer)


def test_paragraphs_of_wikitext_name_their_article(tmp_path, tokenizer):
    lines = [
        "", " = First = \n", "", " one two three \n", "", " = = Part = = \n", "", " four five six \n",
        " = 1 / s and = \n", " seven eight \n", "", " = Second = \n", "", " nine ten \n",
    ]  # fmt: skip
    folder = tmp_path / "wikitext_2_v1"
    folder.mkdir()
    pd.DataFrame({"text": lines}).to_parquet(folder / "test.parquet")
    windows = load_windows(DataSpec(root=str(tmp_path)), tokenizer)
    assert [(window.index, window.document) for window in windows] == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_wikitext_2_has_its_sixty_articles(shared_data, tokenizer):
    """The test split: 60 articles (Merity et al., arXiv 1609.07843, table 1)."""
    windows = load_windows(DataSpec(root=str(shared_data)), tokenizer)
    assert len({window.document for window in windows}) == 60


def test_built_in_paragraphs_are_documents_of_their_own(tokenizer):
    windows = load_windows(DataSpec(), tokenizer)
    assert [window.document for window in windows] == [window.index for window in windows]
