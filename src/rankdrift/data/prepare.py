"""Rows tokenised once: tables below the cache folder, made by the first that asks while others wait.

A table's name is the digest of all it depends on: the bytes of the source files, the tokenizer's content, the
task's version and code, lengths and limits. What was read from the hub has no bytes here to look at: it stays
as it was prepared, also without network, until it is prepared again.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rankdrift import files
from rankdrift.data import files_of_rows, sources, token_table, tokens
from rankdrift.data.token_table import TokenTable
from rankdrift.layout import cache_folder
from rankdrift.progress import Progress
from rankdrift.spec import DataSpec
from rankdrift.tasks import Example, Split, Task
from rankdrift.tasks.kinds import Codec

FORMAT = 1
"""Raised when tables are written in another way."""
BATCH = 4096
"""Examples that are tokenised at once."""
NOTABLE = 20_000
"""Examples of a split from which on progress is told of."""


def prepared_folder() -> Path:
    """Return the folder of all prepared tables."""
    return cache_folder() / "data"


class Preparation:
    """Prepares tables of one experiment.

    Parameters
    ----------
    tokenizer
        Of the base model.
    data
        Where rows come from, and their longest length.
    progress
        Told of what takes long.

    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, data: DataSpec, progress: Progress | None = None
    ) -> None:
        self.tokenizer, self.data, self.progress = tokenizer, data, progress

    def table(self, task: Task, split: Split, codec: Codec, again: bool = False) -> TokenTable:
        """Return the rows of a split of a task; they are made if they are not there, or ``again``.

        Raises
        ------
        UserError
            If the data cannot be used.

        """
        key = self.key(task, split, codec)
        folder = prepared_folder() / files.digest_json(key)[:32]
        if again or not token_table.is_whole(folder):
            with files.held(_lock(folder)):
                if again or not token_table.is_whole(folder):
                    with _appearing(folder) as temporary:
                        self._make(temporary, task, split, codec, key)
        return token_table.read(folder)

    def key(self, task: Task, split: Split, codec: Codec) -> dict[str, Any]:
        """Return all that a table depends on, by name; raise UserError where there is no such split."""
        data = self.data
        theirs, carved = sources.split_of(task, split, data)
        return {
            "format": FORMAT,
            "task": task.name,
            "version": task.version,
            "content": task.content,
            "code": _code_digest(task),
            "source": _source(task, split, data),
            "split": [split, theirs, carved],
            "limit": {"train": data.train_limit, "validation": data.validation_limit}.get(split),
            "max_length": codec.max_length,
            "head": [codec.head, codec.first_class],
            "tokenizer": self._tokenizer_digest,
        }

    @functools.cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.tokenizer)

    def _make(self, folder: Path, task: Task, split: Split, codec: Codec, key: dict[str, Any]) -> None:
        with _no_garbage_collection():
            examples = sources.load_examples(task, split, self.data)
            token_table.write(folder, self._batches(task, split, examples, codec), {"key": key})
        tokens.require_rows(task, token_table.read(folder).counts, codec.max_length)

    def _batches(
        self, task: Task, split: Split, examples: Sequence[Example], codec: Codec
    ) -> Iterator[TokenTable]:
        offset = codec.first_class if codec.head == "classifier" else 0
        for first in range(0, len(examples), BATCH):
            part = examples[first : first + BATCH]
            kept, counts = tokens.encode(part, task, codec)
            yield TokenTable.of_encoded(task.name, kept, counts, first, offset)
            if self.progress and len(examples) >= NOTABLE:
                self.progress(f"{task.name}, {split}: examples", first + len(part), len(examples))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what decides a text's tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # left over from an earlier call, they would be part of the content
        backend.no_padding()
    content = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    facts = [type(tokenizer).__name__, content, tokenizer.special_tokens_map, tokenizer.chat_template]
    return files.digest_json(facts)


def _code_digest(task: Task) -> str:
    """Return the digest of the source files that make rows of a source's rows."""
    folders = {Path(inspect.getfile(Task)).parent}
    with contextlib.suppress(TypeError):  # of a partial function the package alone is known
        folders.add(Path(inspect.getfile(task.example)).parent)
    code = [path for folder in sorted(folders) for path in sorted(folder.rglob("*.py"))]
    code += [Path(inspect.getfile(module)) for module in (files_of_rows, sources, tokens)]
    return files.digest_json([[path.name, files.digest_file(path)] for path in code])


def _source(task: Task, split: Split, data: DataSpec) -> Any:
    """Return the identity of a split's source: content where there are files, else a name."""
    if paths := sources.local_files(task, split, data):
        return [files.content_digest(path) for path in paths if path.is_file()]
    if task.generate is not None:
        return "built in"
    assert task.source is not None
    return [task.source.hub, task.source.configuration]


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Look for no cycles meanwhile: rows have none, and going through them takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` on success, and is gone on failure.

    Whoever calls it holds the lock. What killed processes left of other tables goes too.
    """
    _remove_leftovers(folder.parent)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files.sync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        files.sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    for temporary in parent.glob(".*.tmp"):
        if not files.is_held(_lock(parent / temporary.name[1:-4])):
            shutil.rmtree(temporary, ignore_errors=True)
