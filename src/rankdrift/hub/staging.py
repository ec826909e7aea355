"""What goes to the hub, as it will lie there: links to files, and the card and account that they lack."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rankdrift import files
from rankdrift.data.parquet_rows import write_parquet
from rankdrift.data.summary import Summary
from rankdrift.data.token_table import TaskTables
from rankdrift.errors import UserError
from rankdrift.hub.artifact import (
    ADAPTER_CONFIG,
    CARD,
    EXPECTED,
    KIND,
    META,
    Sort,
    check_account,
    read_outputs,
    sort_of,
    write_account,
)
from rankdrift.hub.cards import data_card, model_card, tables_card
from rankdrift.hub.repository import Kind
from rankdrift.layout import StudyLayout
from rankdrift.spec import Spec
from rankdrift.tasks import Split
from rankdrift.verify.checks import Progress
from rankdrift.zero_checkpoint.checksums import stored_file

CACHED = re.compile(r"/models--([^/]+)--([^/]+)/snapshots/")
"""A folder of the hub's library, which says what model of the hub it holds."""


@dataclass(frozen=True)
class Staged:
    """A folder that is ready to go."""

    folder: Path
    sort: Sort

    @property
    def kind(self) -> Kind:
        """Kind of the repository that it goes to."""
        return KIND[self.sort]


@contextlib.contextmanager
def staged_data(
    spec: Spec, tables: dict[Split, TaskTables], summaries: Sequence[Summary]
) -> Iterator[Staged]:
    """Yield prepared rows as Parquet, a file a task and split; the account has the rows' own digests too."""
    with tempfile.TemporaryDirectory() as name:
        folder, digests = Path(name), {}
        for split, of_split in tables.items():
            for table in of_split.tables:
                path = f"{table.task}/{split}.parquet"
                write_parquet(folder / path, table)
                digests[path] = table.digest
        write_account(folder, {"model": spec.model.name, "rows": digests})
        (folder / CARD).write_text(data_card(spec, summaries), encoding="utf-8")
        yield Staged(folder, "data")


@contextlib.contextmanager
def staged_folder(folder: Path, progress: Progress) -> Iterator[Staged]:
    """Yield the folder of an adapter or model, of tables, or of a study, whose tables are meant.

    Raises
    ------
    UserError
        If the folder is none of these.
    IntegrityError
        If a file is not what the folder's own account states.

    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name an export, a model, an adapter or a study's tables")
    if StudyLayout(folder).spec.is_file():
        folder = StudyLayout(folder).tables
    sort = sort_of([path.name for path in folder.glob("*") if path.is_file()])
    if sort is None:
        raise UserError(f"{folder}: holds nothing to upload: none of {EXPECTED}")
    check_account(folder, progress)
    with tempfile.TemporaryDirectory() as name:
        together = Path(name)
        for path in _belonging(folder, sort):
            (together / path).parent.mkdir(parents=True, exist_ok=True)
            (together / path).symlink_to((folder / path).resolve())
        _complete(together, sort)
        yield Staged(together, sort)


def _belonging(folder: Path, sort: Sort) -> list[str]:
    """Return the names of the files that belong to it: those of its account, or all in the folder."""
    if sort == "tables":  # whose folder keeps parts of unfinished ones as well
        stems = [path.name.removesuffix(META) for path in folder.glob(f"*{META}")]
        names = [f"{stem}{end}" for stem in stems for end in (".parquet", ".csv", META)]
    elif outputs := read_outputs(folder):
        names = [*outputs, files.ACCOUNT, CARD]
    else:
        names = [path.name for path in folder.glob("*") if not path.name.startswith(".")]
    return sorted(name for name in names if (folder / name).is_file())


def _complete(folder: Path, sort: Sort) -> None:
    """Add what is missing: a base that others can have, an account, a card."""
    if sort == "adapter":
        _name_base(folder)
    if sort == "tables":
        write_account(folder, {})
    if not (folder / CARD).exists():
        card = tables_card(folder) if sort == "tables" else model_card(folder)
        (folder / CARD).write_text(card, encoding="utf-8")


def _name_base(folder: Path) -> None:
    """Let an adapter name its base by the hub's name where it names a folder of the hub's library."""
    path = folder / ADAPTER_CONFIG
    config = files.read_json(path)
    cached = CACHED.search(str(config.get("base_model_name_or_path") or ""))
    if cached is None:
        return
    files.write_json(path, {**config, "base_model_name_or_path": "/".join(cached.groups())})
    account = folder / files.ACCOUNT
    if account.is_file():
        stated = files.read_json(account)
        stated["outputs"][ADAPTER_CONFIG] = asdict(stored_file(path))
        files.write_json(account, stated)
