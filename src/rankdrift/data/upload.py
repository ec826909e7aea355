"""Prepared data or a model's folder on the hub, with a card that says what they are and how they are made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow
import pyarrow.parquet

from rankdrift import __version__, files
from rankdrift.data.summary import Summary
from rankdrift.data.token_table import TaskTables, TokenTable
from rankdrift.errors import UserError
from rankdrift.spec import Spec
from rankdrift.tasks import Split

CARD = "README.md"
PART = 10_000
"""Rows of a row group."""


def upload_data(
    spec: Spec, tables: dict[Split, TaskTables], summaries: Sequence[Summary], repo: str, force: bool = False
) -> str:
    """Upload prepared rows as Parquet, a file a task and split; return where they are.

    Raises
    ------
    UserError
        If the repository is there already and not to be overwritten, or if the hub refuses.

    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, of_split in tables.items():
            for table in of_split.tables:
                write_parquet(folder / table.task / f"{split}.parquet", table)
        (folder / CARD).write_text(data_card(spec, summaries), encoding="utf-8")
        return _upload(folder, repo, "dataset", force)


def upload_model(folder: Path, repo: str, force: bool = False) -> str:
    """Upload a model's or adapter's folder, with a card if it has none; return where it is.

    Raises
    ------
    UserError
        If the folder holds no model, if the repository is there already and not to be overwritten, or if the
        hub refuses.

    """
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(
            f"{folder}: neither config.json nor adapter_config.json in it; name the folder of an export"
        )
    if (folder / CARD).exists():
        return _upload(folder, repo, "model", force)
    with tempfile.TemporaryDirectory() as name:
        together = Path(name)
        for path in folder.iterdir():
            if path.is_file():
                (together / path.name).symlink_to(path.resolve())
        (together / CARD).write_text(model_card(folder), encoding="utf-8")
        return _upload(together, repo, "model", force)


def write_parquet(path: Path, table: TokenTable) -> None:
    """Write a table's rows as Parquet: ``input_ids``, ``carries_loss``, ``label`` (-1: none), ``index``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema(
        {
            "input_ids": pyarrow.list_(pyarrow.int32()),
            "carries_loss": pyarrow.list_(pyarrow.bool_()),
            "label": pyarrow.int32(),
            "index": pyarrow.int64(),
        }
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, len(table), PART):
            rows = table[first : first + PART]
            columns = {
                "input_ids": [row.input_ids for row in rows],
                "carries_loss": [row.carries_loss for row in rows],
                "label": table.labels[first : first + PART],
                "index": table.indices[first : first + PART],
            }
            writer.write_table(pyarrow.table(columns, schema=schema))


def data_card(spec: Spec, summaries: Sequence[Summary]) -> str:
    """Return the card of prepared data."""
    tasks = list(dict.fromkeys(of.task for of in summaries))
    settings = files.canonical_json(spec.data.model_dump(mode="json", exclude={"root"}))
    configs = [line for task in tasks for line in _configuration(task, summaries)]
    rows = [
        f"| {of.task} | {of.split} | {of.rows:,} | {of.tokens:,} | {of.carry_loss:,} |" for of in summaries
    ]
    return "\n".join(
        [
            *("---", "tags: [rankdrift, tokenized]", "configs:", *configs, "---", ""),
            f"# Rows of {', '.join(tasks)}, in tokens of {spec.model.name}",
            "",
            f"Prepared by rankdrift {__version__} for model.head={spec.model.head}. The rows are of "
            "the tasks' own data sets, whose licences apply.",
            "",
            "| task | split | rows | tokens | carry loss |",
            *("|---|---|---:|---:|---:|", *rows, ""),
            "Columns: `input_ids`; `carries_loss`, the tokens that are learnt; `label`, the class or -1; "
            "`index`, the example of its source.",
            *("", f"Settings: `{settings}`", ""),
        ]
    )


def _configuration(task: str, summaries: Sequence[Summary]) -> list[str]:
    lines = [f"- config_name: {task}", "  data_files:"]
    for of in summaries:
        if of.task == task:
            lines += [f"  - split: {of.split}", f"    path: {task}/{of.split}.parquet"]
    return lines


def model_card(folder: Path) -> str:
    """Return the card of a model's or adapter's folder, of what its account says."""
    account: dict[str, Any] = {}
    if (folder / files.ACCOUNT).is_file():
        account = files.read_json(folder / files.ACCOUNT)
    is_adapter = (folder / "adapter_config.json").is_file()
    base = ""
    if is_adapter:
        base = str(files.read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    named = "" if not base or Path(base).is_absolute() else f"base_model: {base}\n"
    library = "peft" if is_adapter else "transformers"
    facts = [f"- {key}: {value}" for key, value in account.items() if isinstance(value, str | int | float)]
    what = "adapter" if is_adapter else "model"
    return (
        f"---\nlibrary_name: {library}\ntags: [rankdrift]\n{named}---\n\n# An {what} trained by rankdrift\n\n"
        "The base model's licence applies, and those of the data it was trained on.\n\n" + "\n".join(facts)
    ).replace("# An model", "# A model") + "\n"


def _upload(folder: Path, repo: str, kind: Literal["dataset", "model"], force: bool) -> str:
    # it takes a second to import
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # what its client raises without an answer: which library that is of changes
    no_answer = cast(type[Exception], HfHubHTTPError.__mro__[1])
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        if not force and api.repo_exists(repo, repo_type=kind):
            raise UserError(
                f"{repo}: this {kind} repository is there; use --force to write into it, or another name"
            )
        api.create_repo(repo, repo_type=kind, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type=kind, commit_message="Uploaded by rankdrift"
        )
    except UserError:
        raise
    except (OSError, ValueError, no_answer) as error:
        raise UserError(
            f"{repo}: cannot be uploaded to {api.endpoint} ({type(error).__name__}: {error}); see the name, "
            "the network, HF_ENDPOINT, and HF_TOKEN or 'hf auth login'"
        ) from None
    return str(done.commit_url)
