"""Kinds: what is trained on is what is scored, in every task and by tokenizers of every make."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from golden import GOLDEN
from made_tokenizers import made_tokenizer

from rankdrift import registry
from rankdrift.data.sources import load_examples
from rankdrift.data.tokens import encode
from rankdrift.errors import UserError
from rankdrift.metrics import Answered
from rankdrift.models.base import load_tokenizer
from rankdrift.spec import DataSpec
from rankdrift.tasks import Example, Task, hellaswag, wikitext
from rankdrift.tasks.kinds import (
    Answer,
    Classes,
    Codec,
    Completion,
    Continuation,
    Encoded,
    Item,
    Likelihood,
    classification,
    multiple_choice,
)
from rankdrift.tasks.kinds.generation import Generation
from rankdrift.tasks.kinds.language_modelling import windows

NAMES = registry.names("task")
WHOLE = 1 << 16
"""A length that holds every real row."""
FORMS = ("none", "bos", "bos_eos", "pad_is_eos", "pieces")
PROMPT = "The river rose in the night.\nTopic:"
SHARED: dict[str, Any] = {"version": 1, "metrics": (), "columns": (), "example": lambda row: Example("", "")}


def a_task(kind: Any, **more: Any) -> Task:
    return Task(name="rivers", kind=kind, **SHARED, **more)


RIVERS = a_task(classification.KIND, choices=(" business", " nature"))


@lru_cache
def examples_of(name: str, root: Path | None) -> tuple[Example, ...]:
    """Return real examples of a task where there are, else the golden ones."""
    task: Task = registry.load("task", name)
    row = GOLDEN[name][0]
    golden = [task.example({**row, "label": n}) for n in range(len(task.choices))] or [task.example(row)]
    if task.generate:
        return tuple(load_examples(task, "test", DataSpec())[:12])
    if root is None or name in ("boolq", "piqa", "wikisql"):
        return tuple(golden)
    split = "validation" if name in ("code_to_text", "e2e_nlg", "mrpc", "samsum") else "test"
    return tuple(load_examples(task, split, DataSpec(root=str(root)))[: 3 if name == "wikitext" else 12])


@pytest.fixture(scope="session")
def real(root: Path) -> Path | None:
    """The folder of real data, or None."""
    folder = root.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def check_trained_is_scored(task: Task, codec: Codec, row: Encoded, item: Item) -> None:
    """A row's tokens, and which of them are learned, are those that are asked for when it is scored."""
    assert len(row.ids) <= codec.max_length
    ((first, last),) = row.carries
    assert last == len(row.ids)
    if isinstance(task.kind, Generation):
        asked = item.requests[0]
        assert isinstance(asked, Completion)
        assert tuple(row.ids[:first]) == asked.prompt
        assert row.target_cut or row.ids[-1] == codec.eos
        assert len(asked.prompt) + asked.max_new_tokens <= codec.max_length
    else:
        assert row.label is not None
        right = item.requests[row.label]
        assert isinstance(right, Continuation)
        assert (tuple(row.ids[:first]), tuple(row.ids[first:])) == (right.context, right.continuation)
    assert row.prompt_cut <= item.cut


@pytest.mark.parametrize("form", [*FORMS, "tiny"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "wikitext"])
def test_what_is_trained_on_is_what_is_scored(name: str, form: str, real: Path | None, tiny: Path) -> None:
    task: Task = registry.load("task", name)
    tokenizer = load_tokenizer(tiny) if form == "tiny" else made_tokenizer(form)
    examples = examples_of(name, real)
    for length in (768 if task.kind is multiple_choice.KIND else 64, WHOLE):
        codec = Codec(tokenizer, length)
        rows, items = task.kind.encode(task, examples, codec), task.kind.items(task, examples, codec)
        assert len(rows) == len(items) == len(examples)
        for row, item in zip(rows, items, strict=True):
            check_trained_is_scored(task, codec, row, item)
        if length == WHOLE:
            prompts = [e.contexts[e.label or 0] if e.contexts else e.prompt for e in examples]
            whole = codec.plain([prompt + e.target for prompt, e in zip(prompts, examples, strict=True)])
            end = [codec.eos] * task.kind.ends
            assert [row.ids for row in rows] == [codec.before + ids + end for ids in whole]
        elif name in ("cnn_dailymail", "squad_v2") and real:
            assert any(row.prompt_cut for row in rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [16, 4096])
def test_a_texts_tokens_are_each_learned_and_scored_once(form: str, size: int, real: Path | None) -> None:
    task: Task = registry.load("task", "wikitext")
    codec = Codec(made_tokenizer(form), size)
    examples = [*examples_of("wikitext", real), *(Example("", "x" * length) for length in range(1, 33))]
    items = task.kind.items(task, examples, codec)
    learned: list[list[int]] = [[] for _ in examples]
    for row in task.kind.encode(task, examples, codec):
        assert row.ids[0] == codec.tokenizer.bos_token_id
        assert (row.carries, len(row.ids) <= size) == (((1, len(row.ids)),), True)
        learned[row.number] += row.ids[1:]
    whole = codec.plain([example.target for example in examples])
    assert learned == whole
    asked = [[token for of in item.requests for token in of.continuation] for item in items]  # type: ignore[union-attr]
    assert asked == whole


def test_windows_roll_as_lm_evaluation_harness_rolls_them() -> None:
    """Figures of its get_rolling_token_windows and make_disjoint_window (0.4.13), 10 tokens, at most 4."""
    found = [(of.context, of.continuation) for of in windows(list(range(10)), 99, 4)]
    assert found == [((99,), (0, 1, 2, 3)), ((3,), (4, 5, 6, 7)), ((5, 6, 7), (8, 9))]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("count", [1, 2, 6, 7, 8, 23])
def test_windows_predict_every_token_once_with_the_most_context_that_fits(count: int, size: int) -> None:
    text, done = [99, *range(count)], 0
    for of in windows(list(range(count)), 99, size):
        new = len(of.continuation)
        assert list(of.continuation) == text[done + 1 : done + 1 + new]
        assert new == min(size, count - done)
        # a window is `size` tokens that are read and one more that is only predicted, or begins the text
        read = [*of.context, *of.continuation][:-1]
        assert read == text[: done + new][-size:]
        done += new
    assert done == count


def perfect(example: Example, item: Item) -> list[Answer]:
    """What a model says that is certain of the right answer."""
    answers: list[Answer] = []
    for number, asked in enumerate(item.requests):
        if isinstance(asked, Completion):
            answers.append(f" {example.references[0]}\n" if example.references else " Unanswerable.")
        elif isinstance(asked, Classes):
            answers.append(tuple(0.0 if n == example.label else -1.0 for n in range(asked.count)))
        elif example.label is None:
            denied = isinstance(item.requests[0], Completion)
            answers.append(Likelihood(-20.0 if denied and example.references else 0.0, True))
        else:
            answers.append(Likelihood(0.0 if number == example.label else -1e-3, True))
    return answers


TABLE = {
    "header": ["Year", "City"],
    "types": ["real", "text"],
    "rows": [["1952", "Oslo"], ["1994", "Bergen"]],
    "id": "1-7",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_model_is_best_by_every_metric(name: str, real: Path | None) -> None:
    task: Task = registry.load("task", name)
    examples = list(examples_of(name, real))
    if name == "wikisql":
        row = dict(GOLDEN[name][0])
        examples = [task.example({**row, "table": TABLE})]
        said: list[list[Answer]] = [[examples[0].target]]
    else:
        items = task.kind.items(task, examples, Codec(made_tokenizer("bos"), WHOLE))
        said = [perfect(*pair) for pair in zip(examples, items, strict=True)]
    outcomes = [task.kind.outcome(task, *pair) for pair in zip(examples, said, strict=True)]
    for name_of_metric in task.metrics:
        metric = registry.load("metric", name_of_metric)
        answers = [example.right(metric.reads) for example in examples]
        value = metric.compute([outcome.predictions[metric.reads] for outcome in outcomes], answers)
        assert value == pytest.approx(metric.best), name_of_metric


def test_the_label_is_chosen_by_all_of_its_tokens_and_by_characters(real: Path | None) -> None:
    """lm-evaluation-harness's acc and acc_norm: -6 / 12 characters is more than -4 / 4, and -4 than -6."""
    example = Example("Q:", " rain", 1, choices=(" rain", " much of snow"))
    said = [Likelihood(-4.0, False), Likelihood(-6.0, False)]
    outcome = multiple_choice.KIND.outcome(a_task(multiple_choice.KIND), example, said)
    assert outcome.predictions == {"choice": 0, "normalised_choice": 1}
    assert outcome.columns["log_likelihoods"] == [-4.0, -6.0]
    even = multiple_choice.KIND.outcome(a_task(multiple_choice.KIND), example, [said[0], said[0]])
    assert even.predictions["choice"] == 0


def test_labels_of_many_tokens_that_start_alike_are_scored_whole() -> None:
    tokenizer = made_tokenizer("bos")
    task = a_task(classification.KIND, choices=(" boat", " boat mill", " boat made of zinc"))
    codec = Codec(tokenizer, 128)
    (item,) = classification.KIND.items(task, [Example(PROMPT, " boat", 0)], codec)
    asked = [of for of in item.requests if isinstance(of, Continuation)]
    assert [tokenizer.decode(of.continuation) for of in asked] == list(task.choices)
    assert len(asked[2].continuation) > len(asked[1].continuation) > len(asked[0].continuation)
    assert len({of.context for of in asked}) == 1


def test_label_words_with_the_same_tokens_are_an_error_in_training_and_in_scoring() -> None:
    codec = Codec(made_tokenizer("words"), 128)
    task = a_task(classification.KIND, choices=(" zinc", " copper"))
    example = [Example("The river", " zinc", 0)]
    for work in (task.kind.encode, task.kind.items):
        with pytest.raises(UserError, match=r"'rivers'.*cannot tell its choices apart.*head=classifier"):
            work(task, example, codec)


def test_winogrande_scores_one_ending_behind_each_name() -> None:
    task: Task = registry.load("task", "winogrande")
    tokenizer = made_tokenizer("bos")
    (item,) = task.kind.items(task, [GOLDEN["winogrande"][1]], Codec(tokenizer, 128))
    asked = [of for of in item.requests if isinstance(of, Continuation)]
    assert [tokenizer.decode(of.context) for of in asked] == ["<s>Ann met Bo as Ann", "<s>Ann met Bo as Bo"]
    assert [tokenizer.decode(of.continuation) for of in asked] == [" was lost."] * 2


@pytest.mark.parametrize("form", FORMS)
def test_eos_is_learned_also_where_it_is_the_padding_token(form: str) -> None:
    codec = Codec(made_tokenizer(form), 128)
    task = a_task(Generation())
    ((row,), _) = encode([Example("name: Otter Way\nDescription:", " Otter Way runs.")], task, codec)
    ((first, last),) = row.carries
    assert row.ids[last - 1 :] == [codec.tokenizer.eos_token_id]
    assert codec.tokenizer.eos_token_id not in row.ids[first : last - 1]
    assert (codec.tokenizer.pad_token_id == codec.eos) == (form == "pad_is_eos")
    assert codec.tokenizer.decode(row.ids[first : last - 1]).strip() == "Otter Way runs."
    assert row.ids.count(codec.tokenizer.bos_token_id) == (form not in ("none", "pad_is_eos"))


@pytest.mark.parametrize("form", FORMS)
def test_a_border_has_the_tokens_of_the_whole_text(form: str) -> None:
    """White space at a prompt's end goes with the answer, as a model meets it in running text."""
    codec = Codec(made_tokenizer(form), 128)
    for prompt, target in ((PROMPT, " nature"), (f"{PROMPT} ", "nature"), (f"{PROMPT}\n", "nature")):
        ((before, after),) = codec.joined([prompt], [target])
        assert before == codec.before + codec.plain([PROMPT])[0]
        assert before + after == codec.before + codec.plain([prompt + target])[0]


def test_a_token_over_the_border_is_scored_and_never_an_empty_answer() -> None:
    """lm-evaluation-harness: the answer's tokens are those of the whole behind as many as the prompt has."""
    codec = Codec(made_tokenizer("words"), 128)
    river, old, unknown = codec.plain(["river"])[0] + codec.plain(["old"])[0] + codec.plain(["riverold"])[0]
    assert codec.joined(["river"], [" old"]) == [([river], [old])]
    assert codec.joined(["river"], ["old old"]) == [([river], [old])]  # "riverold old": one token is left
    assert codec.joined(["river"], ["old"]) == [([river], [old])]  # none is left: the answer by itself
    assert unknown == codec.tokenizer.unk_token_id


@pytest.mark.parametrize("form", FORMS)
def test_a_long_prompt_is_cut_in_the_same_place_whatever_the_answer_and_keeps_its_cue(form: str) -> None:
    cue = "\nTopic:"
    codec, long = Codec(made_tokenizer(form), 40), "The river rose in the night. " * 9
    task = a_task(classification.KIND, choices=RIVERS.choices, cue=cue)
    examples = [Example(f"{long}{cue}", choice, label) for label, choice in enumerate(task.choices)]
    rows, items = task.kind.encode(task, examples, codec), task.kind.items(task, examples, codec)
    assert items[0] == items[1]
    longest = max(len(ids) for ids in codec.plain(task.choices))
    begin = codec.before + codec.plain([long])[0]
    for row, item in zip(rows, items, strict=True):
        check_trained_is_scored(task, codec, row, item)
        ((first, _),) = row.carries
        assert (row.prompt_cut, item.cut, first) == (True, True, 40 - longest)
        kept = first - len(codec.plain([cue])[0])
        assert row.ids[:kept] == begin[:kept]  # an article keeps its beginning, where a cue is given
        assert codec.tokenizer.decode(row.ids[kept:first]).endswith("Topic:")


@pytest.mark.parametrize("text", ["unanswerable", " Unanswerable.", "", "  \n"])
def test_saying_that_there_is_no_answer_is_the_empty_answer(text: str) -> None:
    task: Task = registry.load("task", "squad_v2")
    asked = Example("Passage: x\nAnswer:", " unanswerable")
    outcome = task.kind.outcome(task, asked, [text, Likelihood(math.log(0.25), False)])
    answer = outcome.predictions["answer"]
    assert answer == Answered("", pytest.approx(0.25))
    assert outcome.columns["no_answer_probability"] == pytest.approx(0.25)
    for metric in ("squad_v2", "squad_v2_exact"):
        assert registry.load("metric", metric).compute([answer], [asked.right("answer")]) == 100
    other = task.kind.outcome(task, asked, ["unanswerable so far", Likelihood(-1.0, False)])
    assert other.predictions["answer"].text == "unanswerable so far"


def test_no_answer_is_asked_for_behind_the_same_prompt() -> None:
    task: Task = registry.load("task", "squad_v2")
    codec = Codec(made_tokenizer("bos"), 128)
    (item,) = task.kind.items(task, [GOLDEN["squad_v2"][1]], codec)
    wrote, denied = item.requests
    assert isinstance(wrote, Completion)
    assert isinstance(denied, Continuation)
    assert denied.context == wrote.prompt
    assert codec.tokenizer.decode(denied.continuation) == " unanswerable"


@pytest.mark.parametrize(
    ("written", "clean"),
    [
        (
            "[header] How to dye [title] Choose it. [step] Use a mirror.",
            " How to dye. Choose it. Use a mirror.",
        ),
        ("  then he  runs ", "then he runs"),
        ("[substeps] Mix [two] or three.", " Mix or three."),
    ],
)
def test_hellaswag_is_cleaned_up(written: str, clean: str) -> None:
    """Expected values: ``preprocess`` of lm-evaluation-harness's HellaSwag (0.4.13)."""
    row = {**GOLDEN["hellaswag"][0], "ctx_a": "", "ctx": written, "endings": [written, "b", "c", "d"]}
    example = hellaswag.TASK.example(row)
    assert (example.prompt, example.choices[0]) == (clean, f" {clean}")


@pytest.mark.parametrize(
    ("spaced", "plain"),
    [
        ("a guest @-@ starring role of 1 @,@ 000 @.@ 5", "a guest-starring role of 1,000.5"),
        ('" Drum " ( in [ old ] { x } town ) : so ; he , ran', '"Drum" (in [old] {x} town): so; he, ran'),
        ("Ann 's boats ' end at 9 ° north N of it", "Ann's boats' end at 9°north 1 of it"),
        ("= = = 2000 = = = \n Next ! \n", "=== 2000 ===\nNext!\n"),
    ],
)
def test_wikitext_is_read_without_the_spaces_of_its_tokens(spaced: str, plain: str) -> None:
    """Expected values: ``wikitext_detokenizer`` of lm-evaluation-harness (0.4.13)."""
    assert wikitext.plain_text(spaced) == plain


def test_a_text_is_measured_in_what_is_stored() -> None:
    task, example = wikitext.TASK, GOLDEN["wikitext"][1]
    said = [Likelihood(-2.0, False), Likelihood(-3.5, False)]
    scored = task.kind.outcome(task, example, said).predictions["text_likelihood"]
    # words as lm-evaluation-harness counts them: pieces between white space, the empty ones at both ends too
    assert scored == (-5.5, 22, 78)


def test_wikitext_2_has_its_articles(shared_data: Path) -> None:
    """62 documents in test, as lm-evaluation-harness has them; 60 in validation."""
    data = DataSpec(root=str(shared_data))
    counts = {split: len(load_examples(wikitext.TASK, split, data)) for split in ("validation", "test")}  # type: ignore[arg-type]
    assert counts == {"validation": 60, "test": 62}


def test_articles_begin_at_titles_and_not_at_sections() -> None:
    lines = ["", " = Otter = \n", " Otters . \n", " = = Food = = \n", "", " = Bear = \n", " Bears . \n"]
    assert wikitext.TASK.gather is not None
    articles = wikitext.TASK.gather([{"text": line} for line in lines])
    assert [article["text"] for article in articles] == [
        " = Otter = \n Otters . \n = = Food = = \n ",
        " = Bear = \n Bears . ",
    ]


def test_guesses_are_the_most_frequent_answer_and_any() -> None:
    choices = [Example("p", " nature", label=label) for label in (1, 1, 0)]
    guesses = RIVERS.kind.guesses(RIVERS, choices, [], Random(0))
    assert [of["choice"] for of in guesses["majority"]] == [1, 1, 1]
    assert {of["choice"] for of in guesses["random"]} <= {0, 1}
    squad: Task = registry.load("task", "squad_v2")
    texts = [Example("p", " x", references=given) for given in ((), ("a",), ())]
    guesses = squad.kind.guesses(squad, texts, [], Random(0))
    assert [of["answer"] for of in guesses["majority"]] == [Answered("", 1.0)] * 3
    assert guesses["random"][1]["text"] == ""  # another item's answer: both others have none


def test_a_classification_head_sees_the_prompt_alone() -> None:
    codec = Codec(made_tokenizer("bos"), 128, "classifier", first_class=3)
    example = Example(PROMPT, " nature", 1)
    (row,) = RIVERS.kind.encode(RIVERS, [example], codec)
    (item,) = RIVERS.kind.items(RIVERS, [example], codec)
    assert item.requests == (Classes(tuple(row.ids), 3, 2),)
    assert codec.tokenizer.decode(row.ids) == f"<s>{PROMPT}"
    assert (row.label, row.carries) == (1, ())
    assert RIVERS.kind.outcome(RIVERS, example, [(-2.0, -0.1)]).predictions["choice"] == 1
