"""WikiText-2: perplexity of whole articles of Wikipedia (Merity et al. 2016, arXiv 1609.07843).

The spaces that tokenisation left are taken out of what a model reads; words and bytes are counted in what is
stored, as lm-evaluation-harness does (task version 2). It reads the raw form; a folder may hold the one with
``<unk>``, whose perplexity is another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rankdrift.errors import UserError
from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks.kinds import language_modelling

TITLE = re.compile(r"\s*= (?!= ).*(?<! =) =\s*")
"""The line of an article's title; of its sections the sign is repeated."""
JOINED = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
PUNCTUATION = tuple((f" {sign} ", f"{sign} ") for sign in ":;.!?,")
ENCLOSED = (
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
REST = (
    *(("= = = =", "===="), ("= = =", "==="), ("= =", "==")),
    *((f" {chr(176)} ", chr(176)), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
)


def plain_text(article: str) -> str:
    """Return an article without the spaces of its tokenisation."""
    article = article.replace("s '", "s'")
    for spaced, plain in (*JOINED, *PUNCTUATION):
        article = article.replace(spaced, plain)
    for pattern, plain in ENCLOSED:
        article = re.sub(pattern, plain, article)
    for spaced, plain in REST:
        article = article.replace(spaced, plain)
    return article


def _articles(rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the articles of a split, which is stored line by line, blank lines as nothing at all.

    A new one begins at each title, as in the set that lm-evaluation-harness reads.
    """
    lines = [str(row["text"] or "").rstrip("\n") or " " for row in rows]
    starts = [number for number, line in enumerate(lines) if TITLE.fullmatch(line)]
    articles = ("\n".join(lines[a:b]) for a, b in zip(starts, [*starts[1:], len(lines)], strict=True))
    return [{"text": article} for article in articles]


def _example(row: Mapping[str, Any]) -> Example:
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise UserError(f"column 'text' holds no text: {row['text']!r}; correct or remove the row")
    return Example("", plain_text(row["text"]), references=(row["text"],))


TASK = Task(
    name="wikitext",
    version=1,
    kind=language_modelling.KIND,
    metrics=("word_perplexity", "byte_perplexity", "bits_per_byte"),
    columns=("text",),
    example=_example,
    gather=_articles,
    source=Source("Salesforce/wikitext", "wikitext-2-raw-v1", "wikitext_2_v1"),
)
