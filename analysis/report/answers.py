"""What a report begins with: at most five sentences, each with the way to its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rankdrift import registry
from rankdrift.analysis.contract import Analysis
from rankdrift.analysis.findings import Answer
from rankdrift.analysis.report.study import Study

ORDER = ("learning", "forgetting", "equal learning", "cost", "deployment")
"""Questions in the order of the report; others follow, and no more than five are answered."""
MOST = 5


@dataclass(frozen=True)
class Answered:
    """A sentence and the topic whose rows it rests on."""

    text: str
    topic: str


def answers(study: Study) -> list[Answered]:
    """Return the sentences for which the study has the tables."""
    found = (Answered(text, answer.topic) for answer in _declared() if (text := _said(answer, study)))
    return list(found)[:MOST]


def _declared() -> list[Answer]:
    analyses: Iterator[Analysis] = (registry.load("analysis", name) for name in registry.names("analysis"))
    declared = [answer for analysis in analyses for answer in analysis.answers]
    place = {question: number for number, question in enumerate(ORDER)}
    return sorted(declared, key=lambda answer: place.get(answer.question, len(ORDER)))


def _said(answer: Answer, study: Study) -> str | None:
    needed = [study.table(name) for name in answer.reads]
    if any(table is None for table in needed):
        return None
    return answer.say(*needed, *map(study.table, answer.beside))
