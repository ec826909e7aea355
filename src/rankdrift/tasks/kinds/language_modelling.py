"""Language modelling: the text itself is what is predicted, every token behind those before it.

A text longer than the model is scored in windows that each token is predicted in once, as
lm-evaluation-harness rolls them: the first is predicted behind BOS (or EOS, without a BOS), later ones behind
the last token before them, and the last window keeps as much context as fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from rankdrift.metrics import ScoredText
from rankdrift.tasks.kinds import Answer, Codec, Continuation, Encoded, Ids, Item, Kind, Likelihood, Outcome

if TYPE_CHECKING:
    from rankdrift.tasks import Example, Task


class LanguageModelling(Kind):
    """A text (``target``), measured in the words and bytes of its original (``prompt``-less rows)."""

    name: ClassVar[str] = "language_modelling"
    gives: ClassVar[tuple[str, ...]] = ("text_likelihood",)

    def encode(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Encoded]:
        """Return pieces of at most the maximum length, one after the other; all tokens carry loss."""
        rows = []
        size = codec.max_length - 1
        for index, ids in enumerate(codec.plain([example.target for example in examples])):
            for first in range(0, len(ids), size):
                piece = [_begin(codec), *ids[first : first + size]]
                rows.append(Encoded(piece, ((1, len(piece)),), index))
        return rows

    def items(self, task: Task, examples: Sequence[Example], codec: Codec) -> list[Item]:
        """Ask for the likelihood of each window."""
        texts = codec.plain([example.target for example in examples])
        return [Item(tuple(windows(ids, _begin(codec), codec.max_length))) for ids in texts]

    def outcome(self, task: Task, example: Example, answers: Sequence[Answer]) -> Outcome:
        """Return the text's log-likelihood, with its words (split at white space) and bytes."""
        original = example.references[0] if example.references else example.target
        total = sum(answer.log_likelihood for answer in answers if isinstance(answer, Likelihood))
        words, size = len(re.split(r"\s+", original)), len(original.encode())
        columns = {"log_likelihood": total, "words": words, "bytes": size}
        return Outcome({"text_likelihood": ScoredText(total, words, size)}, columns)


def windows(ids: Ids, begin: int, size: int) -> Iterator[Continuation]:
    """Yield requests that together predict every token once, none longer than ``size`` + 1 tokens."""
    whole = [begin, *ids]
    done = 0
    while done < len(ids):
        end = min(done + size, len(ids))
        context = whole[max(end - size, 0) : done + 1]
        yield Continuation(tuple(context), tuple(ids[done:end]))
        done = end


def _begin(codec: Codec) -> int:
    bos = codec.tokenizer.bos_token_id
    return int(bos) if bos is not None else codec.eos


KIND = LanguageModelling()
