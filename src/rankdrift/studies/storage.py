"""Finished cells in a folder or a bucket that all machines reach: put there by one, taken from there by any.

``<storage>/<study>/<group>/<run>/<digest>/`` is a cell: all but weights as one archive, the weights of its
analysed steps, and ``complete.json``, which comes last and states every file with its size and SHA-256.
Without it the cell is not there, so an upload that was cut does not count. Files have the beginning of their
checksum behind their names: what was put before is known by that and not put again, and two machines that
finish a cell at one time do not mix theirs, since the one ``complete.json`` names the files of one of them.

Any file system of fsspec will do. S3 is an extra (``rankdrift[storage]``), imported where it is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError
from rankdrift.spec import Spec
from rankdrift.studies.cells import Cell

MARK = "rankdrift-storage.json"
"""Says at the top of a storage what it is: to write it shows that one may write there."""
COMPLETE = "complete.json"
FORMAT = 1
"""Of ``complete.json``."""
PIECE = 2**24
"""Bytes that are copied at once into a folder."""
SHOWN = 16
"""Digits of a file's checksum that are in its name."""
Count = Callable[[int], object]
"""Takes the bytes of a file that are done."""
EXTRA = "pip install 'rankdrift[storage]'"
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 5, "read_timeout": 15}}
}
"""Of a protocol; s3fs tries five times by itself, and each of these five times over is minutes."""


@dataclass(frozen=True)
class File:
    """A file of a cell in a storage."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        """Return what a file is."""
        return cls(path.stat().st_size, files.digest_file(path))


@dataclass(frozen=True)
class Stored:
    """What ``complete.json`` says of a cell."""

    spec: dict[str, Any]
    identity: dict[str, Any]
    record: dict[str, Any]
    """What the cell said of itself (``cell.json``)."""
    steps: dict[int, str]
    contents: dict[str, str]
    """As in ``Held``."""
    files: dict[str, File]
    """Path in the run's folder, or the archive -> what it is."""

    def as_text(self) -> str:
        """Return it as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, allow_nan=False)

    @classmethod
    def of(cls, text: bytes, where: str) -> Stored | None:
        """Return what a file says, None where it was cut; raise UserError for one of another version."""
        try:
            tree = json.loads(text)
        except ValueError:
            return None
        if tree.pop("format") != FORMAT:
            raise UserError(f"{where}: of another version of rankdrift; give another storage (storage=URL)")
        steps = {int(step): path for step, path in tree["steps"].items()}
        found = {name: File(**each) for name, each in tree["files"].items()}
        return cls(**{**tree, "steps": steps, "files": found})


class Storage:
    """A place for finished cells.

    Parameters
    ----------
    url
        A folder, or a URL of any protocol that fsspec knows: ``s3://bucket/prefix``.

    Raises
    ------
    UserError
        Here for a protocol that is not known, or lacks its package; of all methods, where the place does not
        answer, is not there, or may not be used.

    """

    def __init__(self, url: str) -> None:
        self._files, root = _opened(url)
        self._root: str = root.rstrip("/")
        self.url: str = self._files.unstrip_protocol(self._root)
        """Absolute, with its protocol."""
        if url.startswith("s3://"):
            with self._answering():
                _send_at_once(self._files)

    @classmethod
    def of(cls, spec: Spec) -> Storage | None:
        """Return the storage that a run's settings name, None where they name none."""
        return cls(spec.storage) if spec.storage else None

    def require(self) -> None:
        """Raise UserError unless one may write there, and read it again."""
        with self._answering():
            self._require_folder()
            self._write(f"{self._root}/{MARK}", json.dumps({"format": FORMAT}).encode())
            self._files.cat_file(f"{self._root}/{MARK}")

    def place(self, cell: Cell) -> str:
        """Return where a cell is, as a path of the file system."""
        return f"{self._root}/{cell.spec.study}/{cell.spec.run_name}/{cell.digest}"

    def place_of(self, url: str) -> str:
        """Return the path of a URL below the storage's."""
        return self._root + url.removeprefix(self.url)

    def url_of(self, place: str) -> str:
        """Return the URL of a path."""
        return self.url + place.removeprefix(self._root)

    def find(self, place: str) -> Stored | None:
        """Return what is there of a cell, None where it is not complete."""
        with self._answering():
            try:
                text = self._files.cat_file(f"{place}/{COMPLETE}")
            except FileNotFoundError:
                return None
        return Stored.of(text, self.url_of(f"{place}/{COMPLETE}"))

    def complete(self, place: str, stored: Stored) -> None:
        """Say that a cell is complete."""
        with self._answering():
            self._write(f"{place}/{COMPLETE}", stored.as_text().encode())

    def put(self, place: str, name: str, data: bytes) -> File:
        """Put a small file of a cell there, unless it is."""
        file = File(len(data), hashlib.sha256(data).hexdigest())
        with self._answering():
            self._require_folder()
            if not self._has(place, name, file):
                self._write(_name(place, name, file), data)
        return file

    def upload(self, place: str, name: str, source: Path, count: Count) -> File:
        """Put a file of a cell there, unless it is; ``count`` takes the bytes that are done."""
        file = File.of(source)
        with self._answering():
            if not self._has(place, name, file):
                self._upload(source, _name(place, name, file), count)
        return file

    def remove(self, place: str, name: str, file: File) -> None:
        """Remove a file of a cell."""
        with self._answering():
            self._files.rm_file(_name(place, name, file))

    def read(self, place: str, name: str, file: File) -> bytes:
        """Return a small file of a cell; raise IntegrityError where it is not what was put there."""
        with self._answering(missing=_damaged(self.url_of(place), name)):
            data: bytes = self._files.cat_file(_name(place, name, file))
        if File(len(data), hashlib.sha256(data).hexdigest()) != file:
            raise _damaged(self.url_of(place), name)
        return data

    def download(self, place: str, name: str, file: File, target: Path, count: Count) -> None:
        """Copy a file of a cell; raise IntegrityError where it is not what was put there."""
        path = _name(place, name, file)
        with self._answering(missing=_damaged(self.url_of(place), name)):
            if self._is_folder:
                _copy(Path(path), target, count)
            else:
                self._files.get_file(path, str(target), callback=_callback(count))
        if File.of(target) != file:
            raise _damaged(self.url_of(place), name)

    def _has(self, place: str, name: str, file: File) -> bool:
        """Return whether a file was put there whole: its name tells its content."""
        try:
            return bool(self._files.info(_name(place, name, file))["size"] == file.size)
        except FileNotFoundError:
            return False

    def _write(self, path: str, data: bytes) -> None:
        """Write a small file; in a folder it appears whole, as all protocols of buckets have it."""
        if self._is_folder:
            with files.replacing(Path(path)) as temporary:
                temporary.write_bytes(data)
        else:
            self._files.pipe_file(path, data)

    def _upload(self, source: Path, path: str, count: Count) -> None:
        if not self._is_folder:
            self._files.put_file(str(source), path, callback=_callback(count))
            return
        with files.replacing(Path(path)) as temporary:
            _copy(source, temporary, count)

    def _require_folder(self) -> None:
        """Raise FileNotFoundError where a folder is missing: it may be one that is not mounted."""
        if self._is_folder and not Path(self._root).is_dir():
            raise FileNotFoundError(self._root)

    @property
    def _is_folder(self) -> bool:
        return bool(getattr(self._files, "local_file", False))

    @contextlib.contextmanager
    def _answering(self, missing: Exception | None = None) -> Iterator[None]:
        """Raise UserError, with a remedy, for whatever a file system raises; for what is missing another."""
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            raise missing or UserError(f"storage {self.url}: {_remedy(error)}") from None
        except Exception as error:  # of libraries without number: botocore's have no common ground
            raise UserError(f"storage {self.url}: {_remedy(error)}") from None


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    protocol = url.split("://")[0] if "://" in url else "file"
    try:
        from fsspec.core import url_to_fs

        options = {"use_listings_cache": False, **OPTIONS.get(protocol, {})}
        found: tuple[Any, str] = url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(
            f"storage {url}: this needs a package that is not installed ({error}); for S3: {EXTRA}"
        ) from None
    except ValueError as error:
        raise UserError(
            f"storage {url}: {error}; give a folder, or a URL of a protocol of fsspec: s3://BUCKET/PREFIX"
        ) from None
    return found


def _send_at_once(s3: Any) -> None:
    """Have a client of S3 send what it has without asking first: it would wait for the answer for ever."""

    def drop(params: dict[str, Any], **more: Any) -> None:
        params["headers"].pop("Expect", None)

    s3.s3.meta.events.register_last("before-call.s3", drop, unique_id="rankdrift")


def _remedy(error: Exception) -> str:
    """Return what a file system says, and what to do."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    kinds = {each.__name__ for each in type(error).__mro__}
    if isinstance(error, FileNotFoundError):
        return f"no such bucket or folder ({said}); make it first, or give another: storage=URL"
    if isinstance(error, PermissionError):
        return f"no permission ({said}); give credentials that may read and write there"
    if any("Credential" in kind or "Token" in kind for kind in kinds):
        return (
            f"no credentials ({said}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, on "
            "every machine"
        )
    if kinds & {"ConnectionError", "HTTPClientError", "TimeoutError"}:
        return f"does not answer ({said}); is the server up, and its address (AWS_ENDPOINT_URL) right?"
    return f"cannot be used ({type(error).__name__}: {said}); mend that, or give another: storage=URL"


def _damaged(url: str, name: str) -> IntegrityError:
    return IntegrityError(
        f"{url}/{name}: not what was put there; remove {url}, and run the study where the cell was carried "
        "out, which puts it there again; elsewhere remove the run's folder too, which carries it out again"
    )


def _copy(source: Path, target: Path, count: Count) -> None:
    """Copy a file piece by piece: what fsspec copies in folders it does not count."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while piece := reader.read(PIECE):
            writer.write(piece)
            count(reader.tell())


def _callback(count: Count) -> Any:
    """Return what fsspec tells the bytes of a file that are done."""
    from fsspec.callbacks import Callback

    return Callback(hooks={"count": lambda size, value, **more: count(value)})


def _name(place: str, name: str, file: File) -> str:
    return f"{place}/{name}.{file.sha256[:SHOWN]}"
