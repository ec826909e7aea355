"""A finished cell on its way into a storage, and out of it into a study's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.analysis.sources.elsewhere import Held
from rankdrift.errors import IntegrityError
from rankdrift.layout import RunLayout
from rankdrift.progress import Say, byte_lines
from rankdrift.spec import Spec, parse_spec, read_spec
from rankdrift.spec.identity import flattened, role
from rankdrift.studies.cells import Cell
from rankdrift.studies.clean import empty
from rankdrift.studies.packing import held_of, packed, unpack
from rankdrift.studies.same_run import refuse_other
from rankdrift.studies.storage import Storage, Stored

ARCHIVE = "cell.tar"
"""All of a cell but weights."""


def take(storage: Storage, cell: Cell, say: Say) -> bool:
    """Unpack a complete cell into its study's folder, where its weights are known without being there.

    What is here of an unfinished one gives way. Returns whether there is one. Raises UserError where it is of
    another experiment, and IntegrityError where it is not what was put there.
    """
    place = storage.place(cell)
    stored = storage.find(place)
    if stored is None:
        return False
    url, before = storage.url_of(place), parse_spec(stored.spec)
    refuse_other(url, stored.identity, before, cell.spec)
    archive = storage.read(place, ARCHIVE, stored.files[ARCHIVE])
    empty(cell.run)
    unpack(archive, cell.study)
    Held(storage.url, url, stored.steps, stored.contents).keep(cell.run)
    if _but_its_place(before, cell.spec) == _but_its_place(cell.spec, cell.spec):
        files.write_json(cell.run.spec, cell.spec.as_dict())
    say(f"{cell.name}: taken from {url}")
    return True


def put(storage: Storage, cell: Cell, with_base: bool, say: Say) -> None:
    """Put a cell that is done into a storage, unless it is there; an upload that was cut goes on.

    Of two machines that do so at one time, the files of one are removed again.
    """
    place = storage.place(cell)
    held = held_of(cell, storage.url, storage.url_of(place))
    there = storage.find(place)
    if there is None:
        mine = _put_files(storage, place, cell, packed(cell, with_base, cell.study, held), held, say)
        there = _finish(storage, place, mine)
        say(f"stored in {storage.url_of(place)}")
    if there.contents == held.contents:
        held.keep(cell.run)


def fetch(held: Held, name: str, target: Path, say: Say) -> None:
    """Bring a folder of a cell's weights; raise IntegrityError where it is not what was put there."""
    storage = Storage(held.node)
    place = storage.place_of(held.folder)
    stored = storage.find(place)
    if stored is None:
        raise IntegrityError(
            f"{held.folder}: is not there any more; run the study where the cell was carried out, which "
            "puts it there again, or remove the run's folder, which carries it out again"
        )
    wanted = {path: file for path, file in stored.files.items() if Path(path).is_relative_to(name)}
    count = _Count(byte_lines(say, held.folder), sum(file.size for file in wanted.values()))
    for path, file in wanted.items():
        here = target / Path(path).relative_to(name)
        here.parent.mkdir(parents=True, exist_ok=True)
        storage.download(place, path, file, here, count)
        count.add(file.size)


def _put_files(storage: Storage, place: str, cell: Cell, archive: bytes, held: Held, say: Say) -> Stored:
    """Put an archive and weights that are not there yet; return what is to be said of them."""
    weights = _weights(cell.run, held)
    total = sum(path.stat().st_size for path in weights.values())
    count = _Count(byte_lines(say, f"{cell.name} to {storage.url}"), total)
    found = {ARCHIVE: storage.put(place, ARCHIVE, archive)}
    for name, path in weights.items():
        found[name] = storage.upload(place, name, path, count)
        count.add(found[name].size)
    return Stored(
        spec=read_spec(cell.run.spec).as_dict(),
        identity=files.read_json(cell.run.identity),
        record=files.read_json(cell.run.cell),
        steps=held.steps,
        contents=held.contents,
        files=found,
    )


def _finish(storage: Storage, place: str, mine: Stored) -> Stored:
    """Say that a cell is complete, unless another machine has; of two, remove the files of this one."""
    if storage.find(place) is None:
        storage.complete(place, mine)
    there = storage.find(place) or mine
    for name, file in mine.files.items():
        if there.files.get(name) != file:
            storage.remove(place, name, file)
    return there


class _Count:
    """The bytes of several files that are done."""

    def __init__(self, told: Callable[[int, int], None], total: int) -> None:
        self._told, self._total, self._before = told, total, 0

    def __call__(self, size: int) -> None:
        """Take the bytes of the file under way."""
        self._told(self._before + size, self._total)

    def add(self, size: int) -> None:
        """Take the size of a file that is done."""
        self._before += size


def _weights(run: RunLayout, held: Held) -> dict[str, Path]:
    """Return the files of a cell's weights, by their paths in the run's folder."""
    roots = [run.root / name for name in held.contents]
    found = {path for root in roots for path in [root, *root.rglob("*")] if path.is_file()}
    return {str(path.relative_to(run.root)): path for path in sorted(found)}


def _but_its_place(spec: Spec, asked: Spec) -> dict[str, Any]:
    """Return the settings that do not say where a run is kept; of one whose steps are open, not those."""
    flat = {key: value for key, value in flattened(spec).items() if role(key) != "place"}
    left_out = {"training.steps"} if asked.training.is_open else set()
    return {key: value for key, value in flat.items() if key not in left_out}
