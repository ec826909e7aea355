"""Tables are made once, again where anything they depend on changes, and whole or not at all."""

from __future__ import annotations

import copy
import dataclasses
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from tokenized import tokenize
from transformers import PreTrainedTokenizerBase

from rankdrift import files, registry
from rankdrift.data import prepare, sources, token_table, tokens
from rankdrift.data.prepare import Preparation, prepared_folder, tokenizer_digest
from rankdrift.data.token_table import TokenTable
from rankdrift.errors import UserError
from rankdrift.spec import DataSpec
from rankdrift.tasks import Task
from rankdrift.tasks.kinds import Codec

REVIEWS = {"sentence": [f"fine {n} ." for n in range(30)], "label": [n % 2 for n in range(30)]}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKDRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root" / "glue_sst2"
    path.mkdir(parents=True)
    pd.DataFrame(REVIEWS).to_parquet(path / "train.parquet")
    return path.parent


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks whose rows were read, one after the other."""
    calls: list[str] = []
    load = sources.load_examples

    def counted(task: Task, *rest: Any) -> Any:
        calls.append(task.name)
        return load(task, *rest)

    monkeypatch.setattr(sources, "load_examples", counted)
    return calls


def _table(
    tokenizer: PreTrainedTokenizerBase, root: Path | None, name: str = "sst2", **data: Any
) -> TokenTable:
    spec = DataSpec(tasks=(name,), root=str(root) if root else None, **data)
    codec = Codec(tokenizer, spec.max_length)
    return Preparation(tokenizer, spec).table(registry.load("task", name), "train", codec)


def test_the_same_rows_are_made_once(tokenizer: PreTrainedTokenizerBase, root: Path, made: list[str]) -> None:
    tables = [_table(tokenizer, root) for _ in range(3)]
    assert made == ["sst2"]
    assert [list(table.input_ids) for table in tables] == [list(tables[0].input_ids)] * 3
    expected = tokenize(
        sources.load_examples(registry.load("task", "sst2"), "train", DataSpec(root=str(root))),
        registry.load("task", "sst2"),
        Codec(tokenizer, 128),
    )
    assert [row.input_ids.tolist() for row in tables[0]] == [row.input_ids.tolist() for row in expected.rows]
    assert [row.carries_loss.tolist() for row in tables[0]] == [
        row.carries_loss.tolist() for row in expected.rows
    ]
    assert [row.index for row in tables[0]] == [row.index for row in expected.rows]
    assert tables[0].counts == expected.counts["sst2"]


def test_a_copy_elsewhere_is_the_same(
    tokenizer: PreTrainedTokenizerBase, root: Path, made: list[str], tmp_path: Path
) -> None:
    _table(tokenizer, root)
    _table(tokenizer, root.rename(tmp_path / "moved"))
    assert made == ["sst2"]


def _rewritten(root: Path) -> None:
    changed = pd.DataFrame(REVIEWS).assign(sentence="dull .")
    changed.to_parquet(root / "glue_sst2" / "train.parquet")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: _rewritten(root),
        lambda root: {"max_length": 64},
        lambda root: {"train_limit": 9},
    ],
)
def test_what_a_table_depends_on_makes_another(
    change: Callable[[Path], Any], tokenizer: PreTrainedTokenizerBase, root: Path, made: list[str]
) -> None:
    before = _table(tokenizer, root)
    after = _table(tokenizer, root, **(change(root) or {}))
    assert made == ["sst2"] * 2
    assert (before.digest != after.digest) or len(after.input_ids) == len(before.input_ids)


def test_version_code_and_tokenizer_are_part_of_the_key(
    make_tokenizer: Callable[[str], PreTrainedTokenizerBase], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: Task = registry.load("task", "sst2")
    spec = DataSpec(root=str(root))

    def key(of: Task, adds: str = "bos", head: Any = "lm", first: int = 0) -> str:
        codec = Codec(make_tokenizer(adds), 128, head, first)
        return files.digest_json(Preparation(codec.tokenizer, spec).key(of, "train", codec))

    keys = [
        key(task),
        key(dataclasses.replace(task, version=task.version + 1)),
        key(dataclasses.replace(task, content="x")),
        key(task, "none"),
        key(task, head="classifier"),
        key(task, head="classifier", first=2),
    ]
    assert len(set(keys)) == len(keys)
    assert key(task) == keys[0]
    monkeypatch.setattr(files, "digest_file", lambda path: "another file")
    assert key(task) not in keys


def test_every_task_has_a_key(tokenizer: PreTrainedTokenizerBase) -> None:
    keys = {
        name: Preparation(tokenizer, DataSpec()).key(
            registry.load("task", name), "test", Codec(tokenizer, 128)
        )
        for name in registry.names("task")
    }
    assert len(keys) > 10
    assert keys["topic"]["source"] == "built in"
    assert keys["sst2"]["source"] == ["nyu-mll/glue", "sst2"]


def test_what_an_earlier_call_left_in_the_tokenizer_is_not_its_content(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.add_tokens(["new"])
    assert tokenizer_digest(tokenizer) != before


def test_rows_of_the_hub_stay_without_network_until_they_are_made_again(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_dict({**REVIEWS, "idx": list(range(30))})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    first = _table(tokenizer, None)

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert _table(tokenizer, None).digest == first.digest
    task, spec = registry.load("task", "sst2"), DataSpec()
    with pytest.raises(UserError, match="cannot be loaded"):
        Preparation(tokenizer, spec).table(task, "train", Codec(tokenizer, 128), again=True)
    assert _table(tokenizer, None).digest == first.digest  # what was there stays


def test_a_failure_leaves_nothing(
    tokenizer: PreTrainedTokenizerBase, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = tokens.encode
    monkeypatch.setattr(prepare, "BATCH", 10)

    def failing(examples: Any, *rest: Any) -> Any:
        if examples[0].prompt.startswith("Review: fine 1"):
            raise OSError("disk full")
        return encode(examples, *rest)

    monkeypatch.setattr(tokens, "encode", failing)
    with pytest.raises(OSError, match="disk full"):
        _table(tokenizer, root)
    assert [path for path in prepared_folder().iterdir() if path.suffix != ".lock"] == []
    assert gc.isenabled()


def test_no_row_left_leaves_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="leaves no room for a prompt of task 'topic'"):
        _table(tokenizer, None, "topic", max_length=1)
    assert [path for path in prepared_folder().iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.parquet", b"", r"train\.parquet: the file is empty; replace it"),
        ("train.parquet", b"PAR1 cut", r"train\.parquet: not a readable Parquet file .*; replace it"),
        ("train.jsonl", b'{"sentence": "\xff"}', r"train\.jsonl: line 1 is not UTF-8"),
        ("train.csv", b"sentence,label\n\xff,1\n", r"train\.csv: line 2 is not UTF-8"),
    ],
)
def test_a_bad_file_is_named_and_leaves_nothing(
    name: str, content: bytes, message: str, tokenizer: PreTrainedTokenizerBase, root: Path
) -> None:
    (root / "glue_sst2" / "train.parquet").unlink()
    (root / "glue_sst2" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        _table(tokenizer, root)
    assert [path for path in prepared_folder().iterdir() if path.suffix != ".lock"] == []


def test_a_table_that_was_cut_is_made_again(
    tokenizer: PreTrainedTokenizerBase, root: Path, made: list[str]
) -> None:
    whole = _table(tokenizer, root)
    (folder,) = (path.parent for path in prepared_folder().glob("*/input_ids"))
    (folder / "input_ids").write_bytes(b"\0\0\0\0")
    assert _table(tokenizer, root).digest == whole.digest
    assert made == ["sst2"] * 2


def test_a_killed_preparation_leaves_what_the_next_one_removes(
    tokenizer: PreTrainedTokenizerBase, root: Path, tmp_path: Path
) -> None:
    """Killed while it writes, of other rows than are asked for next."""
    code = (
        "import sys, time; from rankdrift import files; from rankdrift.data import prepare\n"
        "folder = prepare.prepared_folder() / 'k'\n"
        "with files.held(prepare._lock(folder)), prepare._appearing(folder) as temporary:\n"
        "    (temporary / 'input_ids').write_bytes(b'1'); print('writing', flush=True); time.sleep(60)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"writing\n"
    assert (prepared_folder() / ".k.tmp" / "input_ids").exists()
    _table(tokenizer, root)  # another one's work is left alone while it lives
    assert (prepared_folder() / ".k.tmp" / "input_ids").exists()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not token_table.is_whole(prepared_folder() / "k")
    _table(tokenizer, root, train_limit=3)
    assert not (prepared_folder() / ".k.tmp").exists()


def _ask(tokenizer: PreTrainedTokenizerBase, root: Path, log: Path, barrier: Any) -> None:
    load = sources.load_examples

    def slow(*arguments: Any) -> Any:
        with log.open("a") as handle:
            handle.write("made\n")
        time.sleep(0.5)
        return load(*arguments)

    sources.load_examples = slow  # type: ignore[assignment]
    barrier.wait()
    table = _table(tokenizer, root)
    with log.open("a") as handle:
        handle.write(f"{table.digest}\n")


def test_of_processes_that_ask_at_once_one_makes_it(
    tokenizer: PreTrainedTokenizerBase, root: Path, tmp_path: Path
) -> None:
    context, log = multiprocessing.get_context("fork"), tmp_path / "log"
    barrier = context.Barrier(3)
    askers = [context.Process(target=_ask, args=(tokenizer, root, log, barrier)) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    lines = log.read_text().split()
    assert [asker.exitcode for asker in askers] == [0, 0, 0]
    assert lines[0] == "made"
    assert len(lines) == 4
    assert len(set(lines[1:])) == 1


def test_progress_of_many_rows_is_told(
    tokenizer: PreTrainedTokenizerBase, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "NOTABLE", 5)
    monkeypatch.setattr(prepare, "BATCH", 10)
    told: list[tuple[str, int, int]] = []
    task, spec = registry.load("task", "sst2"), DataSpec(root=str(root))
    table = Preparation(tokenizer, spec, lambda *args: told.append(args)).table(
        task, "train", Codec(tokenizer, 128)
    )
    count = int(table.indices[-1]) + 1
    assert [done for _, done, _ in told] == [*range(10, count, 10), count]
    assert {(what, total) for what, _, total in told} == {("sst2, train: examples", count)}
