"""Cards: the README.md of what is on the hub, which says what it is and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankdrift import __version__, files
from rankdrift.data.summary import Summary
from rankdrift.hub.artifact import ADAPTER_CONFIG, META
from rankdrift.spec import Spec


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
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    base = ""
    if is_adapter:
        base = str(files.read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    named = "" if not base or Path(base).is_absolute() else f"base_model: {base}\n"
    library = "peft" if is_adapter else "transformers"
    facts = [f"- {key}: {value}" for key, value in account.items() if isinstance(value, str | int | float)]
    what = "adapter" if is_adapter else "model"
    return (
        f"---\nlibrary_name: {library}\ntags: [rankdrift]\n{named}---\n\n# An {what} trained by rankdrift\n\n"
        "The base model's licence applies, and those of the data it was trained on.\n\n" + "\n".join(facts)
    ).replace("# An model", "# A model") + "\n"


def tables_card(folder: Path) -> str:
    """Return the card of a study's tables, of what their metadata say."""
    names = sorted(path.name.removesuffix(META) for path in folder.glob(f"*{META}"))
    configs = [line for name in names for line in (f"- config_name: {name}", f"  data_files: {name}.parquet")]
    rows = [f"| {name} | {files.read_json(folder / (name + META)).get('rows', '')} |" for name in names]
    return "\n".join(
        [
            *("---", "tags: [rankdrift]", "configs:", *configs, "---", ""),
            *("# Tables of a study by rankdrift", ""),
            f"What full fine-tuning and LoRA did to a model; `*{META}` beside each table says what its "
            "columns mean and what it was made from.",
            *("", "| table | rows |", "|---|---:|", *rows, ""),
        ]
    )
