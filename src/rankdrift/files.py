"""Files that appear whole or not at all, and the facts that say where a number came from.

Every file is written under a temporary name in its own folder, flushed to the disk and renamed, so a
reader (or a killed process) never meets half of one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import xxhash
from filelock import FileLock, Timeout

from rankdrift.errors import UserError
from rankdrift.layout import cache_folder

if TYPE_CHECKING:  # pandas takes a third of a second to import, which --help and errors need not wait for
    import pandas as pd

CSV_ROWS = 2**20
"""Rows of a spreadsheet: of a longer table there is no CSV."""
CSV_FLOAT = "%.9g"
PACKAGES = ("rankdrift", "torch", "deepspeed", "transformers", "peft", "safetensors", "numpy", "scipy")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # machines that share a folder may have processes of one number, and a process has threads
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def held(lock: Path, wait: bool | float = True) -> Iterator[bool]:
    """Hold a lock file, which is left behind empty; the system releases it if the process dies.

    Yields whether it is held: without ``wait``, or after so many seconds, another process may hold it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    mine = FileLock(lock, timeout=-1 if wait is True else float(wait))
    try:
        mine.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        mine.release()


def is_held(lock: Path) -> bool:
    """Say whether another process holds a lock file, as a run does while it trains."""
    if not lock.exists():
        return False
    with held(lock, wait=False) as free:
        return not free


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. NaN and infinities are refused: null says 'undefined'."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise UserError that names the file if it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore or delete the file") from None


def json_line(row: Mapping[str, Any]) -> str:
    """Return one row as a line of a JSON-lines file, its line break included."""
    return json.dumps(row, allow_nan=False) + "\n"


def append_jsonl(handle: IO[str], row: Mapping[str, Any]) -> None:
    """Append one row to an open JSON-lines file and hand it to the operating system at once."""
    handle.write(json_line(row))
    handle.flush()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line cut short by a kill is left out, any other bad line is an error."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number}: not valid JSON; restore or delete the line") from None
    return rows


def last_jsonl(path: Path, size: int = 2**17) -> list[dict[str, Any]]:
    """Return the rows in the last ``size`` bytes of a JSON-lines file; none where there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        begin = max(0, handle.seek(0, os.SEEK_END) - size)
        handle.seek(begin)
        lines = handle.read().decode("utf-8", errors="replace").splitlines()
    whole = lines[1:] if begin else lines  # the first is cut
    if whole and not _is_json(whole[-1]):  # cut short by a kill, or being written
        whole = whole[:-1]
    return [json.loads(line) for line in whole]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write one table as Parquet, atomically."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_table(path: Path, table: pd.DataFrame, meta: Mapping[str, Any], csv: bool = True) -> None:
    """Write a tidy table as ``X.parquet``, ``X.csv`` and ``X.meta.json`` (inputs, parameters, columns).

    The metadata is written last: a table whose metadata is missing is not complete. One that no spreadsheet
    could open has no CSV.
    """
    write_parquet(path, table)
    if csv and len(table) <= CSV_ROWS:
        with replacing(path.with_suffix(".csv")) as temporary:
            table.to_csv(temporary, index=False, float_format=CSV_FLOAT)
    else:
        path.with_suffix(".csv").unlink(missing_ok=True)
    write_json(path.with_suffix(".meta.json"), {**meta, "rows": len(table), "written": timestamp()})


def join_tables(path: Path, parts: Sequence[Path], meta: Mapping[str, Any], csv: bool = True) -> bool:
    """Write the rows of several Parquet tables as one, as ``write_table`` does; say whether there are any.

    One after the other, so that the table need not fit into memory. A column has the type that holds the
    values of all parts.
    """
    import pyarrow
    import pyarrow.parquet

    schemas = {part: _schema(part) for part in parts}
    filled = [part for part, (rows, _) in schemas.items() if rows]
    if not filled:
        return False
    count = sum(schemas[part][0] for part in filled)
    schema = pyarrow.unify_schemas([schemas[part][1] for part in filled], promote_options="permissive")
    comma_separated = path.with_suffix(".csv")
    with contextlib.ExitStack() as stack:
        writer = pyarrow.parquet.ParquetWriter(stack.enter_context(replacing(path)), schema)
        stack.callback(writer.close)
        text: IO[str] | None = None
        if csv and count <= CSV_ROWS:
            temporary = stack.enter_context(replacing(comma_separated))
            text = stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
        for number, part in enumerate(filled):
            rows = _arrow(part).cast(schema)
            writer.write_table(rows)
            if text:
                rows.to_pandas().to_csv(text, header=number == 0, index=False, float_format=CSV_FLOAT)
    if text is None:
        comma_separated.unlink(missing_ok=True)
    write_json(path.with_suffix(".meta.json"), {**meta, "rows": count, "written": timestamp()})
    return True


def _schema(path: Path) -> tuple[int, Any]:
    """Return how many rows a Parquet table has, and the types of its columns."""
    import pyarrow.parquet

    with _readable(path):
        found = pyarrow.parquet.ParquetFile(path)
        return found.metadata.num_rows, found.schema_arrow.remove_metadata()


def _arrow(path: Path) -> Any:
    import pyarrow.parquet

    with _readable(path):
        return pyarrow.parquet.ParquetFile(path).read().replace_schema_metadata()


def read_table(path: Path) -> pd.DataFrame:
    """Read a Parquet table; raise UserError that names it where it is missing or unreadable."""
    import pandas as pd

    with _readable(path):
        return pd.read_parquet(path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise UserError that names a table where it is missing, or cannot be read inside."""
    if not path.exists():
        raise UserError(f"{path}: no such table; run the command that makes it")
    try:
        yield
    except Exception as error:
        raise UserError(f"{path}: not a readable Parquet table ({error}); delete it and run again") from None


def digest_text(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def canonical_json(value: Any) -> str:
    """Return a value's canonical JSON: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return digest_text(canonical_json(value))


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def weights_digest(folder: Path) -> str:
    """Return the identity of a model folder's weights: the names and SHA-256 of its safetensors files.

    They hold gigabytes, so the digest is kept in the cache and made anew only where sizes or times of change
    differ.
    """
    return _kept_digest(
        [str(folder), fingerprint(folder)],
        lambda: {file.name: digest_file(file) for file in sorted(folder.glob("*.safetensors"))},
    )


ACCOUNT = "provenance.json"


def content_digest(path: Path) -> str:
    """Return the identity of a file's bytes, or of all files below a folder with their relative names.

    Where it lies and when it was written do not matter, so that an export's account of these
    (``provenance.json``) is left out. What was read once is not read again while names, sizes and times of
    change stay the same; XXH3-128 takes about as long as reading does.
    """
    return _kept_digest(
        ["content", str(path.resolve()), fingerprint(path)],
        lambda: {_relative(f, path): _xxh3(f) for f in _files_below(path) if f.name != ACCOUNT},
    )


def _kept_digest(stamp: list[str], found: Callable[[], dict[str, str]]) -> str:
    """Return the digest of what is found, which is not looked for again while the stamp stays the same."""
    kept = cache_folder() / "digests" / f"{digest_json(stamp)[:32]}.json"
    if not kept.exists():
        write_json(kept, digest_json(found()))
    return str(read_json(kept))


def _xxh3(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as handle:
        while chunk := handle.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def _files_below(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _relative(file: Path, path: Path) -> str:
    return str(file.relative_to(path))


def fingerprint(path: Path) -> str:
    """Return a cheap identity of a file, or of all files below a folder: names, sizes, times of change.

    It decides whether outputs are up to date; it is not a checksum.
    """
    stats = [(_relative(p, path), p.stat().st_size, p.stat().st_mtime_ns) for p in _files_below(path)]
    return digest_json(stats)


def timestamp() -> str:
    """Return the time now, UTC, to the second, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def environment() -> dict[str, Any]:
    """Return what a number depends on outside the spec: versions, machine, commit, command."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        "git": _git_commit(),
        "command": sys.argv,
        "time": timestamp(),
    }


@functools.cache
def version(package: str) -> str | None:
    """Return the installed version of a package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache  # what runs is what was there when it was first asked for
def _git_commit() -> dict[str, Any] | None:
    """Return the commit of the source tree and whether it has changes; None outside a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
