"""Held-out general text, on which forgetting is measured: WikiText-2, or fifty paragraphs of our own.

The built-in paragraphs (``general_text.txt``) were written for this purpose, so no base model has trained
on them. WikiText-2 (arXiv 1609.07843) is taken as it is stored, with spaces around punctuation, ``@-@`` and
``<unk>``: its NLL compares checkpoints with their base, not with published perplexities of the raw text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec

BUILTIN = Path(__file__).with_name("general_text.txt")
WIKITEXT2 = Path("wikitext_2_v1") / "test.parquet"
WINDOW_TOKENS = 128
Paragraph = tuple[int, tuple[int, str]]
TITLE = re.compile(r"= [^=].*[^=] =")
"""An article's title; of its sections the sign is repeated."""


@dataclass(frozen=True)
class TextWindow:
    """The beginning of one paragraph."""

    input_ids: tuple[int, ...]
    """At most 128 tokens, with the special tokens the tokenizer puts around a text."""
    index: int
    """The paragraph's number in its source, from 0."""
    document: int
    """The number of the article it is from: windows of one article are not independent of each other."""
    words: int
    """Words, separated by white space, that the window holds; the last one may be cut."""


def load_windows(
    data: DataSpec, tokenizer: PreTrainedTokenizerBase, limit: int | None = None
) -> list[TextWindow]:
    """Return one window a paragraph, in the order of the text; with a limit, that many evenly spaced ones.

    Paragraphs of WikiText-2 share an article, which is why a limit spreads over the text and does not take
    its beginning; each window says which. Built-in paragraphs are a document each. Windows of a single
    token, which predict nothing, are left out.

    Raises
    ------
    UserError
        If WikiText-2 is asked for and is not below ``data.root``, or the text has no paragraph.

    """
    source = text_source(data)
    chosen = _evenly_spaced(list(enumerate(_paragraphs(source))), limit)
    windows = [_window(tokenizer, index, document, paragraph) for index, (document, paragraph) in chosen]
    windows = [window for window in windows if len(window.input_ids) > 1]
    if not windows:
        raise UserError(f"{source}: no paragraph of general text in it; restore the file")
    return windows


def paragraphs(data: DataSpec) -> list[str]:
    """Return the text's paragraphs; raise UserError as ``load_windows``."""
    return [paragraph for _, paragraph in _paragraphs(text_source(data))]


def text_source(data: DataSpec) -> Path:
    """Return the file of the general text: WikiText-2's test split or the built-in paragraphs."""
    if data.general_text == "builtin" or (data.general_text == "auto" and data.root is None):
        return BUILTIN
    if data.root is None:
        raise UserError(
            "data.general_text='wikitext2' needs data.root, a folder that holds "
            f"{WIKITEXT2}; set data.root or choose data.general_text=builtin"
        )
    path = Path(data.root) / WIKITEXT2
    if path.is_file():
        return path
    if data.general_text == "auto":
        return BUILTIN
    raise UserError(f"{path}: no such file; put WikiText-2 there or choose data.general_text=builtin")


def _paragraphs(source: Path) -> list[tuple[int, str]]:
    """Return (document, paragraph) of a source, without headings (``= Title =``) and blank lines."""
    if source.suffix == ".txt":
        return list(enumerate(source.read_text(encoding="utf-8").strip().split("\n\n")))
    table: pd.DataFrame = files.read_table(source)
    if "text" not in table:
        raise UserError(f"{source}: no column 'text', only {', '.join(table.columns)}")
    lines = [str(line).strip() for line in table["text"]]
    article, found = 0, []
    for number, line in enumerate(lines):
        alone = not (lines[number - 1] if number else "") and not "".join(lines[number + 1 : number + 2])
        if alone and TITLE.fullmatch(line):  # a formula may look like one, in the middle of a text
            article += 1
        elif line and not (line.startswith("= ") and line.endswith(" =")):
            found.append((article, line))
    return found


def _evenly_spaced(paragraphs: list[Paragraph], limit: int | None) -> list[Paragraph]:
    if limit is None or limit >= len(paragraphs):
        return paragraphs
    return [paragraphs[number * len(paragraphs) // limit] for number in range(limit)]


def _window(tokenizer: PreTrainedTokenizerBase, index: int, document: int, paragraph: str) -> TextWindow:
    ids = tokenizer(paragraph, truncation=True, max_length=WINDOW_TOKENS)["input_ids"]
    words = str(tokenizer.decode(ids, skip_special_tokens=True)).split()
    return TextWindow(input_ids=tuple(ids), index=index, document=document, words=len(words))
