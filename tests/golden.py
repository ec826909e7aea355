"""Golden prompts: of every task a row as its data set has it, and the example a reader of its file expects.

docs/tasks.md prints them as :func:`block` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift.tasks import Example, Task

ARC_ROW = {
    "question": "Which one falls from clouds?",
    "choices": {"text": ["sand", "rain", "ash"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
ARC = Example(
    "Question: Which one falls from clouds?\nAnswer:",
    " rain",
    label=1,
    choices=(" sand", " rain", " ash"),
)
NLI_ROW = {"premise": "A man naps. ", "hypothesis": "A man is awake.", "label": 2}
NLI = Example("Premise: A man naps.\nHypothesis: A man is awake.\nRelation:", " contradiction", 2)
CONDITIONS = {"column_index": [1], "operator_index": [0], "condition": ["Oslo"]}
SQL = {"human_readable": "SELECT  Year FROM table WHERE City = Oslo", "sel": 0, "agg": 0, "conds": CONDITIONS}
QUERY = (
    '{"sql":{"agg":0,"conds":{"column_index":[1],"condition":["Oslo"],"operator_index":[0]},'
    '"human_readable":"SELECT  Year FROM table WHERE City = Oslo","sel":0},'
    '"table":{"header":["Year","City"],"id":"1-7"}}'
)
ARTICLE = ' \n = Otter = \n \n The " European " otter ( Lutra ) eats 1 @,@ 000 g , or so . \n'

GOLDEN: dict[str, tuple[Mapping[str, Any], Example]] = {
    "arc_challenge": (ARC_ROW, ARC),
    "arc_easy": (ARC_ROW, ARC),
    "boolq": (
        {"passage": "Otters swim.", "question": "can otters swim", "label": 1},
        Example("Otters swim.\nQuestion: can otters swim?\nAnswer:", " yes", 1),
    ),
    "cnn_dailymail": (
        {"article": "The bridge is shut. It is old.", "highlights": "Bridge shut .\nIt is old ."},
        Example(
            "Article: The bridge is shut. It is old.\nHighlights:",
            " Bridge shut .\nIt is old .",
            references=("Bridge shut .\nIt is old .",),
        ),
    ),
    "code_to_text": (
        {
            "code_tokens": ["def", "f", "(", ")", ":", "return", "1"],
            "docstring_tokens": ["Return", "one", "."],
        },
        Example("Python: def f ( ) : return 1\nIt does:", " Return one .", references=("Return one .",)),
    ),
    "describe": (
        {"record": "name: Slate Loop | length: 4 km", "sentence": "Slate Loop is a walk of 4 km."},
        Example(
            "Trail | name: Slate Loop | length: 4 km\nDescription:",
            " Slate Loop is a walk of 4 km.",
            references=("Slate Loop is a walk of 4 km.",),
            group="name: Slate Loop | length: 4 km",
        ),
    ),
    "e2e_nlg": (
        {
            "meaning_representation": "name[The Mill], food[English]",
            "human_reference": "The Mill is English.",
        },
        Example(
            "Restaurant: name[The Mill], food[English]\nDescription:",
            " The Mill is English.",
            references=("The Mill is English.",),
            group="name[The Mill], food[English]",
        ),
    ),
    "hellaswag": (
        {
            "activity_label": "Baking bread",
            "ctx_a": "[header] How to bake [title] Mix the dough.",
            "ctx_b": "then she",
            "ctx": "",
            "endings": ["waits.", "[substeps] flies [title] Sing."],
            "label": "0",
        },
        Example(
            # the bracket leaves its two spaces, which become one
            "Baking bread: How to bake. Mix the dough. Then she",
            " waits.",
            label=0,
            choices=(" waits.", "  flies. Sing."),
        ),
    ),
    "mnli": (NLI_ROW, NLI),
    "mnli_mismatched": (NLI_ROW, NLI),
    "mrpc": (
        {"sentence1": "He left on Monday .", "sentence2": "On Monday he left .", "label": 1},
        Example("First: He left on Monday .\nSecond: On Monday he left .\nSame meaning:", " yes", 1),
    ),
    "piqa": (
        {"goal": "Dry a shoe.", "sol1": "Fill it with paper.", "sol2": "Fill it with water.", "label": 0},
        Example(
            "Question: Dry a shoe.\nAnswer:",
            " Fill it with paper.",
            label=0,
            choices=(" Fill it with paper.", " Fill it with water."),
        ),
    ),
    "qqp": (
        {"question1": "Why is it cold?", "question2": "Is it cold?", "label": 0},
        Example("First question: Why is it cold?\nSecond question: Is it cold?\nSame question:", " no", 0),
    ),
    "rte": (
        {"sentence1": "The dog slept on the mat.", "sentence2": "A dog was awake.", "label": 1},
        Example(
            "Text: The dog slept on the mat.\nClaim: A dog was awake.\nThe text supports the claim:", " no", 1
        ),
    ),
    "samsum": (
        {"dialogue": "Ann: Late again!\nBo: Sorry.", "summary": "Bo is late."},
        Example("Chat:\nAnn: Late again!\nBo: Sorry.\nSummary:", " Bo is late.", references=("Bo is late.",)),
    ),
    "squad_v2": (
        {
            "title": "Otter",
            "context": "Otters swim well.",
            "question": "Who swims?",
            "answers": {"text": ["Otters", "otters "], "answer_start": [0, 0]},
        },
        Example(
            "Passage: Otters swim well.\nQuestion: Who swims?\nAnswer:",
            " Otters",
            references=("Otters", "otters"),
            document="Otter/bef707b2",
        ),
    ),
    "sst2": (
        {"sentence": "a gorgeous , witty , seductive movie . ", "label": 1},
        Example("Review: a gorgeous , witty , seductive movie .\nSentiment:", " positive", 1),
    ),
    "text_to_code": (
        {"nl": "adds one . concode_field_sep int n", "code": "void add ( ) { n ++ ; }"},
        Example(
            "Description: adds one . concode_field_sep int n\nJava:",
            " void add ( ) { n ++ ; }",
            references=("void add ( ) { n ++ ; }",),
        ),
    ),
    "topic": (
        {"text": "Ruth had a tooth pulled.", "label": 1},
        Example("Ruth had a tooth pulled.\nTopic:", " health", 1),
    ),
    "wikisql": (
        {"question": "Which year?", "table": {"header": ["Year", "City"], "id": "1-7"}, "sql": SQL},
        Example(
            "Columns: Year, City\nQuestion: Which year?\nSQL:",
            " SELECT Year FROM table WHERE City = Oslo",
            references=(QUERY,),
            document="1-7",
        ),
    ),
    "wikitext": (
        {"text": ARTICLE},
        Example(
            "",
            '\n= Otter =\n\nThe "European" otter (Lutra) eats 1,000 g, or so.\n',
            references=(ARTICLE,),
        ),
    ),
    "winogrande": (
        {"sentence": "Ann met Bo as _ was lost.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        Example(
            "Ann met Bo as _ was lost.",
            " was lost.",
            label=1,
            contexts=("Ann met Bo as Ann", "Ann met Bo as Bo"),
        ),
    ),
}


def block(task: Task) -> str:
    """Return a task's golden prompt as the document has it: what is predicted stands in « »."""
    row, _ = GOLDEN[task.name]
    example = task.example(row)
    choices = example.choices or task.choices
    answer = f"«{'|'.join(choices) if choices else example.target}»"
    return "\n".join(f"{prompt}{answer}" for prompt in example.contexts or (example.prompt,))
