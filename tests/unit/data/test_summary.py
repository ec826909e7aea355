"""What is said of prepared rows, on rows that were counted by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerBase

from rankdrift.data.dataset import load_rows
from rankdrift.data.summary import as_table, draw, summarise
from rankdrift.spec import Spec, parse_spec


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    folder = tmp_path / "rte"
    folder.mkdir()
    rows = {"sentence1": ["a", "b b", "c"], "sentence2": ["d", "e", "f"], "label": [0, 1, 1]}
    for split in ("train", "validation", "test"):
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    declared = (
        "name: own\nkind: classification\nmetrics: [accuracy]\nprompt: '{sentence1} {sentence2} ->'\n"
        "choices: [' no', ' yes']\nfiles: {train: rte/train.parquet, validation: rte/validation.parquet}\n"
    )
    (tmp_path / "own.yaml").write_text(declared)
    return parse_spec({"data": {"tasks": [str(tmp_path / "own.yaml")]}})


def test_rows_lengths_and_labels_are_counted(spec: Spec, tokenizer: PreTrainedTokenizerBase) -> None:
    tables = {"train": load_rows(spec, "train", tokenizer)}
    (of,) = summarise(spec, tables)  # type: ignore[arg-type]
    texts = ["a d -> no", "b b e -> yes", "c f -> yes"]
    lengths = sorted(len(tokenizer(text).input_ids) for text in texts)  # with BOS
    assert (of.task, of.split, of.rows, of.dropped) == ("own", "train", 3, 0)
    assert of.tokens == sum(lengths)
    assert (of.lengths["shortest"], of.lengths["median"], of.lengths["longest"]) == tuple(lengths)
    assert of.labels == {"no": pytest.approx(1 / 3), "yes": pytest.approx(2 / 3)}
    answers = [len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in ("no", "yes")]
    assert of.carry_loss == answers[0] + 2 * answers[1]


def test_cut_rows_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    tree = {"model": {"head": "classifier"}, "data": {"tasks": ["topic"], "max_length": 30, "train_limit": 8}}
    spec = parse_spec(tree)
    (of,) = summarise(spec, {"train": load_rows(spec, "train", tokenizer)})
    assert (of.prompts_cut, of.carry_loss) == (8, 0)


def test_classes_behind_those_of_another_task_have_their_names(
    spec: Spec, tokenizer: PreTrainedTokenizerBase
) -> None:
    tasks = ["topic", *spec.data.tasks]
    both = parse_spec({"model": {"head": "classifier", "heads": "per_task"}, "data": {"tasks": tasks}})
    rows = load_rows(both, "train", tokenizer)
    assert set(rows.tables[1].labels.tolist()) == {4, 5}
    found = summarise(both, {"train": rows})
    assert found[0].labels == dict.fromkeys(("business", "health", "nature", "sports"), 0.25)
    assert found[1].labels == {"no": pytest.approx(1 / 3), "yes": pytest.approx(2 / 3)}


def test_a_task_of_texts_has_no_labels_and_both_are_drawn(
    spec: Spec, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    both = parse_spec({"data": {"tasks": [*spec.data.tasks, "describe"]}})
    tables = {split: load_rows(both, split, tokenizer) for split in ("train", "validation")}  # type: ignore[arg-type]
    found = summarise(both, tables)  # type: ignore[arg-type]
    assert [(of.task, of.split) for of in found] == [
        (task, split) for split in ("train", "validation") for task in ("own", "describe")
    ]
    assert found[1].labels == {}
    assert as_table(found).row_count == 4
    draw(tmp_path / "picture.png", found, tables)  # type: ignore[arg-type]
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
