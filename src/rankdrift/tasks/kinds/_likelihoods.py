"""What the likelihoods of an item's choices say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from rankdrift.tasks.kinds import Answer, Guesses, Likelihood, Outcome

if TYPE_CHECKING:
    from rankdrift.tasks import Example


def choice_outcome(example: Example, answers: Sequence[Answer], choices: Sequence[str]) -> Outcome:
    """Return the choice of the highest log-likelihood, and of the highest one a character.

    Of equal ones the first. lm-evaluation-harness calls the two ``acc`` and ``acc_norm``; it divides by the
    characters of the choice, without the space before it.
    """
    values = _log_likelihoods(answers)
    lengths = [max(len(choice.removeprefix(" ")), 1) for choice in choices]
    per_character = [value / length for value, length in zip(values, lengths, strict=True)]
    prediction = _argmax(values)
    columns = {
        "label": example.label,
        "prediction": prediction,
        "correct": prediction == example.label,
        "log_likelihoods": values,
    }
    predictions = {"choice": prediction, "normalised_choice": _argmax(per_character)}
    return Outcome(predictions, columns)


def choice_guesses(examples: Sequence[Example], sizes: Sequence[int], random: Random) -> dict[str, Guesses]:
    """Return the most frequent right choice for all, and one of each item's choices at random."""
    common = Counter(example.label for example in examples).most_common(1)[0][0]
    drawn = (random.randrange(size) for size in sizes)
    names = ("choice", "normalised_choice")
    return {
        "majority": [dict.fromkeys(names, common) for _ in examples],
        "random": [dict.fromkeys(names, choice) for choice in drawn],
    }


def _log_likelihoods(answers: Sequence[Answer]) -> list[float]:
    """Return the values of several continuations, or those of a classification head."""
    if len(answers) == 1 and not isinstance(answers[0], Likelihood):
        return [float(value) for value in answers[0]]
    return [answer.log_likelihood for answer in answers if isinstance(answer, Likelihood)]


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
