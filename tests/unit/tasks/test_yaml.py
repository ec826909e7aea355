"""A user's own task from a YAML file: every kind from every form of file, and every mistake named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from made_tokenizers import made_tokenizer

from rankdrift import registry
from rankdrift.data.sources import load_examples, split_of
from rankdrift.data.tokens import encode
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec, parse_spec
from rankdrift.tasks import Example, Task
from rankdrift.tasks.kinds import Codec
from rankdrift.tasks.kinds.chat import Chat
from rankdrift.tasks.kinds.generation import Generation

CONVERSATION = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "An otter."}]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# kind -> what the file says of it, a row, and the example that a reader expects
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], Example]] = {
    "classification": (
        {
            "prompt": "Review: {text}\nIt is",
            "choices": ["bad", " good"],
            "labels": ["neg", "pos"],
            "label": "y",
        },
        {"text": 'said "so, so", \nthen {left} ', "y": "pos"},
        Example('Review: said "so, so", \nthen {left}\nIt is', " good", 1),
    ),
    "multiple_choice": (
        {
            "prompt": "{q}",
            "cue": "\nAnswer:",
            "options": "of",
            "label": "key",
            "labels": ["A", "B"],
            "document": "{q}",
        },
        {"q": "Wet?", "of": ["rain", "sand"], "key": "A"},
        Example("Wet?\nAnswer:", " rain", 0, document="Wet?", choices=(" rain", " sand")),
    ),
    "generation": (
        {
            "prompt": "{a} of 007 {{x}}:",
            "target": "{a}, {b}",
            "group": "{a}",
            "stop": ["."],
            "max_new_tokens": 5,
        },
        {"a": "007", "b": "2020-01-02"},
        Example("007 of 007 {x}:", " 007, 2020-01-02", references=("007, 2020-01-02",), group="007"),
    ),
    "language_modelling": (
        {"target": "{title}\n{body}", "document": "{title}"},
        {"title": "Otter", "body": "It swims."},
        Example("", "Otter\nIt swims.", references=("Otter\nIt swims.",), document="Otter"),
    ),
    "chat": (
        {"messages": "turns"},
        {"turns": CONVERSATION},
        Example("", "An otter.", references=("An otter.",), messages=tuple(CONVERSATION)),
    ),
}
FLAT = ("classification", "generation", "language_modelling")  # CSV holds no lists


def declare(folder: Path, kind: str, files: dict[str, str] | None = None, /, **more: Any) -> Path:
    """Write a task's file; a key of None is left out."""
    files = {"train": "rows.jsonl"} if files is None else files
    tree = {"name": "mine", "kind": kind, "files": files, **KINDS[kind][0], **more}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]")


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_from_every_form_of_file(kind: str, ending: str, tmp_path: Path) -> None:
    if ending == "csv" and kind not in FLAT:
        pytest.skip("a CSV file has no lists")
    row, expected = KINDS[kind][1:]
    write_rows(tmp_path / f"rows.{ending}", [row, row])
    path = declare(tmp_path, kind, {"train": f"rows.{ending}"}, version=3)
    task: Task = registry.load("task", str(path))
    examples = load_examples(task, "train", DataSpec())
    assert examples == [expected, expected]
    assert (task.name, task.version, task.kind.name) == ("mine", 3, kind)
    assert {registry.load("metric", name).reads for name in task.metrics} <= set(task.kind.gives)
    codec = Codec(made_tokenizer("bos"), 128)
    codec.tokenizer.chat_template = TEMPLATE
    encoded, counts = encode(examples, task, codec)
    assert (counts.rows, counts.dropped) == (2, 0)
    assert codec.decoded(encoded[0].ids).endswith(expected.target)
    assert len(task.kind.items(task, examples, codec)) == 2


def test_what_the_kind_is_told_of_is_used(tmp_path: Path) -> None:
    assert registry.load("task", str(declare(tmp_path, "generation"))).kind == Generation((".",), 5)
    assert registry.load("task", str(declare(tmp_path, "chat", max_new_tokens=7))).kind == Chat(7)
    cued = registry.load("task", str(declare(tmp_path, "multiple_choice")))
    assert (cued.cue, cued.columns) == ("\nAnswer:", ("q", "key", "of"))


@pytest.mark.parametrize(
    ("labels", "stored", "expected"),
    [
        (None, 1, 1),
        (None, "1", 1),
        (["neg", "pos"], "pos", 1),
        ([-1, 1], 1, 1),
        ([5, 7], "5", 0),
        (["true", "false"], False, 1),
    ],
)
def test_labels_as_they_are_stored(
    labels: list[Any] | None, stored: object, expected: int, tmp_path: Path
) -> None:
    task = registry.load("task", str(declare(tmp_path, "classification", labels=labels)))
    assert task.example({"text": "x", "y": stored}).label == expected


def every(of: dict[str, list[tuple[dict[str, Any], str]]]) -> list[tuple[str, dict[str, Any], str]]:
    return [(kind, given, message) for kind, cases in of.items() for given, message in cases]


MISTAKES: dict[str, list[tuple[dict[str, Any], str]]] = {
    "classification": [
        ({"labells": [1]}, r"unknown key 'labells' \(value \[1\]\): did you mean 'label"),
        ({"kind": "regression"}, "kind='regression': .*'classification', 'multiple_choice'"),
        ({"name": "Mine!"}, "name='Mine!'"),
        ({"name": "sst2"}, "name='sst2' is a task of rankdrift's own; choose another"),
        ({"name": "glue"}, "name='glue' is a task of rankdrift's own; choose another"),
        ({"version": 0}, "version=0: .*greater than or equal to 1"),
        ({"prompt": None}, "a classification task needs prompt"),
        ({"prompt": 5}, "prompt=5: .*string"),
        ({"choices": None, "labels": None}, "a classification task needs choices"),
        ({"choices": ["one"]}, r"choices=\['one'\] must be two or more"),
        ({"choices": ["a", "a"]}, "must be two or more, each another"),
        ({"choices": [False, True]}, "choices: .*reads no and yes: put words in quotes"),
        ({"labels": [False, True]}, "labels: .*reads no and yes: put words in quotes"),
        ({"labels": [1, 2, 3]}, "labels names 3 values for 2 choices"),
        ({"prompt": "{text}\n"}, "prompt ends with white space .*prompt: |-"),
        ({"prompt": "{text"}, r"template '\{text': .*write \{\{ and \}\} for braces"),
        ({"prompt": "{}"}, r"'\{\}' is no column; write \{column\}"),
        ({"prompt": "{a.b}"}, r"'\{a.b\}' is no column"),
        ({"prompt": "{a!r}"}, r"'\{a\}' is no column"),
        ({"stop": ["."]}, "a classification task has no stop: remove it"),
        ({"metrics": ["acuracy"]}, "unknown metric 'acuracy': did you mean 'accuracy'"),
        ({"metrics": ["bleu"]}, "a classification task has no bleu, .*; choose of accuracy, f1"),
    ],
    "chat": [
        ({"prompt": "x", "cue": "y"}, "a chat task has no cue and no prompt: remove it"),
    ],
    "generation": [
        ({"metrics": ["rouge_l", "f1"]}, "a generation task has no f1, which reads choice"),
        ({"target": "{a} "}, "target='{a} ' has white space around it"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: .*greater than or equal to 1"),
        ({"hub": "a/b"}, "give either files or a hub id"),
        ({"files": None}, "give either files or a hub id"),
        ({"files": {"dev": "rows.csv"}}, "files.dev.*: .*'train', 'validation' or 'test'"),
        ({"splits": {"test": "dev"}}, "splits are a hub id's: remove them"),
        ({"carved": 1.0}, "carved=1.0: .*less than 1"),
        ({"carved": 0.1, "files": {"train": "a", "validation": "b"}}, "carved=0.1 makes"),
        ({"carved": 0.1, "files": {"test": "b.csv"}}, "carved=0.1 makes the validation split"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "message"), every(MISTAKES))
def test_a_mistake_is_named_with_its_file(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = declare(tmp_path, kind, **changes)
    with pytest.raises(UserError, match=rf"^{path}: (?s:.*){message}"):
        registry.load("task", str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [", "no task can be read from it"),
        (b"name: \xff", "no task can be read from it"),
        (b"- a", "a task is a mapping of keys, got list"),
        (b"", "a task is a mapping of keys, got NoneType"),
        (None, "no task can be read from it .*No such file"),
    ],
)
def test_a_file_that_is_no_task_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: (?s:.*){message}"):
        registry.load("task", str(path))


WRONG_ROWS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "classification": [
        ({"text": "x", "y": "bad"}, "row 0: column 'y' is 'bad', expected one of neg, pos"),
        ({"text": " ", "y": "pos"}, "row 0: column 'text' is empty"),
        ({"words": "x", "y": "pos"}, "row 0: task 'mine' needs the column 'text'; found 'words'"),
    ],
    "multiple_choice": [
        ({"q": "a", "of": "rain", "key": "A"}, "'of' must hold a list of texts, got 'rain'"),
        ({"q": "a", "of": ["rain"], "key": "B"}, "right answer is number 1 of 1 choices"),
        ({"q": "a", "of": [], "key": "A"}, "'of' must hold a list of texts"),
    ],
    "chat": [
        ({"turns": CONVERSATION[:1]}, "must end with a turn of the assistant's, got 'user'"),
        ({"turns": CONVERSATION[1:]}, "begins with a turn of the assistant's"),
        ({"turns": [*CONVERSATION[:1], {"role": "assistant", "content": " "}]}, "must end with a turn"),
        ({"turns": [{"role": "user"}]}, "must hold turns with role and content"),
        ({"turns": "Who?"}, "must hold turns with role and content, got 'Who\\?'"),
        ({"turns": []}, "must hold turns with role and content"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "message"), every(WRONG_ROWS))
def test_a_wrong_row_is_named(kind: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [row])
    task = registry.load("task", str(declare(tmp_path, kind)))
    with pytest.raises(UserError, match=f"^{tmp_path / 'rows.jsonl'}: .*{message}"):
        load_examples(task, "train", DataSpec())


def test_splits_of_ones_own_files_are_carved_on_request(tmp_path: Path) -> None:
    path = declare(tmp_path, "generation", {"train": "a.jsonl", "test": "b.jsonl"}, carved=0.25)
    rows = [{"a": f"otter {number}", "b": "swims"} for number in range(400)]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", rows[:3])
    task = registry.load("task", str(path))
    found = {split: load_examples(task, split, DataSpec()) for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert len(found["test"]) == 3
    assert len(found["train"]) + len(found["validation"]) == 400
    assert 70 <= len(found["validation"]) <= 130  # 100, and 3.5 standard deviations of a binomial share


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    task = registry.load("task", str(declare(tmp_path, "generation", {"test": "b.jsonl"})))
    with pytest.raises(UserError, match=r"task 'mine' has no split 'train', only test"):
        load_examples(task, "train", DataSpec())
    with pytest.raises(UserError, match=rf"^{tmp_path / 'b.jsonl'}: no such file"):
        load_examples(task, "test", DataSpec())


def test_a_hub_id_has_configuration_and_splits(tmp_path: Path) -> None:
    source = {"hub": "me/rows", "configuration": "small", "splits": {"test": "dev"}}
    path = declare(tmp_path, "generation", **source, files=None)
    task = registry.load("task", str(path))
    assert (task.source.hub, task.source.configuration) == ("me/rows", "small")
    assert split_of(task, "test", DataSpec()) == ("dev", 0)


def test_a_file_is_a_name_of_a_task_in_a_recipe(tmp_path: Path) -> None:
    path = str(declare(tmp_path, "generation"))
    assert parse_spec({"data": {"tasks": ["similar", path]}}).data.tasks == ("sst2", "mnli", "qqp", path)
    Path(path).write_text("name: mine")
    with pytest.raises(UserError, match=f"{path}: the task is not valid"):
        parse_spec({"data": {"tasks": [path]}})


def test_a_files_task_goes_by_the_name_in_it(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path, other = (str(declare(folder, "generation")) for folder in (tmp_path, tmp_path / "other"))
    spec = parse_spec({"data": {"tasks": [path], "carve": ["mine"]}})
    task = registry.load("task", path)
    assert split_of(task, "train", spec.data) == split_of(task, "validation", spec.data) == ("train", 0.1)
    with pytest.raises(UserError, match="two files of tasks have the name 'mine'"):
        parse_spec({"data": {"tasks": [path]}, "scoring": {"tasks": [other]}})
    with pytest.raises(UserError, match=f"data.carve={path}: give the name that is in the file"):
        parse_spec({"data": {"tasks": [path], "carve": [path]}})


def test_content_changes_with_the_file(tmp_path: Path) -> None:
    contents = {
        registry.load("task", str(declare(tmp_path, "chat", max_new_tokens=n))).content for n in (5, 6)
    }
    assert len(contents) == 2
    assert registry.load("task", "sst2").content == ""


def test_the_examples_of_the_document_are_valid(root: Path, tmp_path: Path) -> None:
    blocks = (root / "docs" / "tasks.md").read_text().split("```yaml\n")[1:]
    kinds = []
    for block in blocks:
        path = tmp_path / "of_document.yaml"
        path.write_text(block.split("```")[0])
        kinds.append(registry.load("task", str(path)).kind.name)
    assert sorted(kinds) == sorted(KINDS)
