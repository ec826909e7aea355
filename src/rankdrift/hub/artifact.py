"""What of ours goes to the hub: prepared data, an adapter, a model, or a study's tables; told by its files.

Each has an account, ``provenance.json``, that states size and XXH3-128 of its files: an export the one that
consolidation wrote, data and tables one that is made for the upload. A model of somebody else's has none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from rankdrift import files
from rankdrift.errors import IntegrityError
from rankdrift.hub.repository import Kind
from rankdrift.tasks import SPLITS
from rankdrift.verify.checks import Progress, check_contents
from rankdrift.zero_checkpoint.checksums import StoredFile, stored_file

Sort = Literal["data", "adapter", "model", "tables"]
NAMED: dict[Sort, str] = {
    "data": "prepared data",
    "adapter": "an adapter",
    "model": "a model",
    "tables": "tables",
}
KIND: dict[Sort, Kind] = {"data": "dataset", "adapter": "model", "model": "model", "tables": "dataset"}
CARD = "README.md"
ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"
META = ".meta.json"
EXPECTED = (
    f"{ADAPTER_CONFIG} (an adapter), {MODEL_CONFIG} and *.safetensors (a model), *.parquet with *{META} "
    "(tables) or TASK/SPLIT.parquet (prepared data)"
)


def sort_of(names: Collection[str]) -> Sort | None:
    """Return what the files of a folder or repository are, by their relative names; None if nothing of ours.

    >>> sort_of(["adapter_config.json", "adapter_model.safetensors"])
    'adapter'
    """
    if ADAPTER_CONFIG in names:
        return "adapter"
    if MODEL_CONFIG in names and any(name.endswith(".safetensors") for name in names):
        return "model"
    if any(name.endswith(META) and f"{name.removesuffix(META)}.parquet" in names for name in names):
        return "tables"
    return "data" if any(_is_split(PurePosixPath(name)) for name in names) else None


def _is_split(path: PurePosixPath) -> bool:
    return len(path.parts) == 2 and path.suffix == ".parquet" and path.stem in SPLITS


def names_below(folder: Path) -> list[str]:
    """Return the relative names of the files below a folder, sorted; what is hidden is left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def write_account(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what is stated of a folder's files, but for its card, beside facts of one's own."""
    names = [name for name in names_below(folder) if name not in (files.ACCOUNT, CARD)]
    stated = {name: asdict(stored_file(folder / name)) for name in names}
    files.write_json(folder / files.ACCOUNT, {**facts, "outputs": stated})


def read_outputs(folder: Path) -> dict[str, StoredFile]:
    """Return what a folder's account states of its files, nothing where there is no account.

    Raises IntegrityError where it is there and states nothing, or files that are not below the folder.
    """
    path = folder / files.ACCOUNT
    if not path.is_file():
        return {}
    try:
        outputs = files.read_json(path)["outputs"]
        found = {name: StoredFile(stated["size"], stated["checksum"]) for name, stated in outputs.items()}
    except (KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{path}: does not state its files (outputs); make the folder again") from None
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise IntegrityError(
                f"{path}: states {name!r}, which is not in the folder; make the folder again"
            )
    return found


def check_account(folder: Path, progress: Progress) -> None:
    """Compare a folder's files with its account; ``progress`` takes the bytes read, and all there are.

    Raises IntegrityError that names the first file that is missing, cut or altered.
    """
    check_contents(folder, read_outputs(folder), progress, "make the folder, or fetch it, again")
