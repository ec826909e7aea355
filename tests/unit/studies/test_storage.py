"""Finished cells in a storage: a folder and a bucket, both of which any machine takes them from."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rankdrift import files
from rankdrift.analysis.sources.elsewhere import Held, none_elsewhere
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.data.dataset import load_rows
from rankdrift.data.identity import run_identity
from rankdrift.errors import IntegrityError, UserError
from rankdrift.layout import RunLayout
from rankdrift.models.base import load_tokenizer
from rankdrift.progress import byte_lines
from rankdrift.spec import Recipe, read_spec, recipe_of
from rankdrift.studies import away, carry_out, pipeline, storage, stored_cells, weights
from rankdrift.studies.cell_record import is_finished
from rankdrift.studies.cells import CONFIGS, Cell, cells_of, root_of
from rankdrift.studies.executors import Task
from rankdrift.studies.executors.local import Local
from rankdrift.studies.executors.processes import NODE, node
from rankdrift.studies.status import status_of, with_stored
from rankdrift.studies.storage import COMPLETE, MARK, Storage
from rankdrift.studies.stored_cells import ARCHIVE, put, take
from rankdrift.studies.study_checkpoints import run_subjects, stored_steps

BUCKET = "results"
STEPS = (2, 4)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server on this machine, with one bucket."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    serving = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    serving.start()
    host, port = serving.get_host_and_port()
    asked = urllib.request.Request(f"http://{host}:{port}/{BUCKET}", method="PUT")
    urllib.request.urlopen(asked).close()
    yield f"http://{host}:{port}"
    serving.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials of nobody, and none of this machine's user."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(server: str, credentials: None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()  # of another test's settings
    return server


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "shared").mkdir()
    return str(tmp_path / "shared")


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of its own for each test."""
    if request.param == "folder":
        return str(request.getfixturevalue("folder"))
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{tmp_path.name}"


class Stages:
    """Stages that leave what a cell leaves; numbers are made up."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self.trained, self.weights = base, list[str](), b"a"
        self.seen: list[dict[int, Path]] = []
        """The checkpoints that were here when they were measured."""
        monkeypatch.setattr(carry_out, "_train", self._train)
        monkeypatch.setattr(carry_out, "_consolidate", lambda cell, say: None)
        monkeypatch.setattr(carry_out, "score_run", self._score)
        monkeypatch.setattr(carry_out, "_measure", self._measure)

    def _train(self, cell: Cell, *how: Any) -> None:
        run = cell.run
        if is_finished(run):
            if read_spec(run.spec) != cell.spec:
                files.write_json(run.spec, cell.spec.as_dict())
            return
        files.write_json(run.spec, cell.spec.as_dict())
        self.trained.append(f"{cell.name} on {node()}")
        rows = load_rows(cell.spec, "train", load_tokenizer(self.base))
        files.write_json(run.identity, run_identity(cell.spec, rows, self.base))
        files.write_json(run.status, {"state": "finished", "step": 4, "steps": 4})
        for step in STEPS:
            files.write_json(run.export(step) / "config.json", {})
            files.write_json(run.export(step) / "provenance.json", {"dtype": "fp32"})
            (run.export(step) / "model.safetensors").write_bytes(self.weights * 1000 * step)

    def _score(self, run: RunLayout, **how: Any) -> None:
        if not run.score(4).exists():
            files.write_json(run.score(4), {"accuracy": 0.5})

    def _measure(self, cell: Cell, names: list[str], with_base: bool, record: Any, say: Any) -> None:
        steps = stored_steps(cell.run)
        self.seen.append({step: path for step, path in steps.items() if path.exists()})
        wanted = carry_out._wanted(cell, names, [0] * with_base + list(steps))
        record.tree["measured"] = record.tree.get("measured", {}) | wanted
        part = cell.study.tables / ".parts" / "spectra" / f"{cell.spec.run_name}-step-000004.json"
        if not part.exists():
            files.write_json(part, {})


@pytest.fixture
def stages(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(tiny, monkeypatch)


class Machines:
    """Machines that share nothing but a storage: each has its own folder of studies, and a name."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        self._root, self._monkeypatch, self._url = tmp_path, monkeypatch, url

    def recipe(self, name: str, *overrides: str) -> Recipe:
        tree = {"model": {"name": "tiny"}, "data": {"tasks": ["topic"], "train_limit": 6}, "study": "s"}
        tree |= {"training": {"steps": 4}, "seeds": [1, 2], "storage": self._url}
        return recipe_of(tree | {"output": str(self._root / name)}, self._root, overrides)

    def cells(self, name: str, *overrides: str) -> list[Cell]:
        """Be on a machine; return the cells of the study there."""
        self._monkeypatch.setenv(NODE, name)
        return cells_of(self.recipe(name, *overrides), CONFIGS / "zero2.json", 1)


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> Machines:
    return Machines(tmp_path, monkeypatch, url)


@pytest.fixture
def sharing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> Machines:
    """Machines whose storage is a folder, for what is the same with any."""
    return Machines(tmp_path, monkeypatch, folder)


def subjects_of(cell: Cell) -> list[Subject]:
    return run_subjects(cell.spec, cell.run, Path("base"))


def objects(url: str) -> dict[str, bytes]:
    """Return what is in a storage."""
    opened = Storage(url)
    found = [name for name in opened._files.find(opened._root) if not name.endswith(MARK)]
    return {name.removeprefix(opened._root): opened._files.cat_file(name) for name in found}


def found_in(storage: Storage, cell: Cell) -> Any:
    return storage.find(storage.place(cell))


def write(url: str, name: str, data: bytes) -> None:
    opened = Storage(url)
    opened._files.pipe_file(opened._root + name, data)


def test_what_one_machine_has_done_another_takes(url: str, machines: Machines, stages: Stages) -> None:
    cell = machines.cells("vm1")[0]
    said: list[str] = []
    assert carry_out.carry_out(cell, True, say=said.append) is None
    place = f"/s/{cell.spec.run_name}/{cell.digest}"
    assert {name.rsplit(".", 1)[0] for name in objects(url)} == {
        f"{place}/{name}"
        for name in (
            "complete",
            ARCHIVE,
            *(
                f"exports/step-00000{step}/{file}"
                for step in STEPS
                for file in ("config.json", "model.safetensors", "provenance.json")
            ),
        )
    }
    assert said[-1].strip().startswith("stored in")
    (here,) = machines.cells("vm2")[:1]
    assert carry_out.carry_out(here, True, say=said.append) is None
    assert said[-2:] == [
        f"  {here.name}: taken from {Storage(url).url}{place}",
        "  done before, by another machine",
    ]
    assert stages.trained == [f"{cell.name} on vm1"]
    assert files.read_json(here.run.score(4)) == {"accuracy": 0.5}
    assert list((here.study.tables / ".parts").glob("*/*.json"))
    assert not here.run.exports.exists()
    held = Held.of(here.run)
    assert held is not None
    assert (held.node, held.folder) == (Storage(url).url, Storage(url).url + place)
    assert list(stored_steps(here.run)) == list(STEPS)
    assert carry_out.needs_nothing(here, with_base=True)
    with pytest.raises(UserError, match="these weights are in"), none_elsewhere(subjects_of(here)):
        pass


def test_a_cell_that_a_storage_has_is_shown_as_done(folder: str, sharing: Machines, stages: Stages) -> None:
    carry_out.carry_out(sharing.cells("vm1")[0], True)
    cells = sharing.cells("vm2")
    before = [status_of(cell) for cell in cells]
    found = with_stored(cells, before)
    assert [each.state for each in before] == ["waiting", "waiting"]
    assert [(each.state, each.step, each.node) for each in found] == [
        ("done", 4, Storage(folder).url),
        ("waiting", 0, ""),
    ]


def test_weights_are_here_for_as_long_as_they_are_needed(
    url: str, machines: Machines, stages: Stages
) -> None:
    carry_out.carry_out(machines.cells("vm1")[0], True)
    cell = machines.cells("vm2")[0]
    carry_out.take_done([cell])
    said: list[str] = []
    with weights.brought(subjects_of(cell), None, said.append):
        for step, path in stored_steps(cell.run).items():
            assert (path / "model.safetensors").read_bytes() == b"a" * 1000 * step
    assert said == [f"{cell.run.export(step)} from {Storage(url).url}" for step in STEPS]
    assert not list(cell.run.exports.glob("*"))
    assert len(stored_steps(cell.run)) == 2


def test_what_is_measured_otherwise_now_is_measured_on_the_weights(sharing: Machines, stages: Stages) -> None:
    carry_out.carry_out(sharing.cells("vm1")[0], True)
    cell = sharing.cells("vm2", "analysis.drift.rows=7")[0]
    stages.seen.clear()
    carry_out.carry_out(cell, True)
    assert stages.trained == ["lora-r8-seed1 on vm1"]
    assert stages.seen[-1] == {step: cell.run.export(step) for step in STEPS}
    assert not list(cell.run.exports.glob("*"))
    assert carry_out.needs_nothing(cell, with_base=True)


def test_an_upload_that_was_cut_does_not_count_and_goes_on(
    url: str, machines: Machines, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, uploaded = Storage._upload, list[str]()

    def cut(self: Storage, source: Path, *how: Any) -> None:
        if len(uploaded) == 2:
            raise ConnectionResetError("the link is gone")
        uploaded.append(source.name)
        upload(self, source, *how)

    def counted(self: Storage, source: Path, *how: Any) -> None:
        uploaded.append(source.name)
        upload(self, source, *how)

    cell = machines.cells("vm1")[0]
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "_upload", cut)
        said: list[str] = []
        left = carry_out.carry_out(cell, True, say=said.append)
    assert left is not None
    assert "does not answer (the link is gone)" in left
    assert f"    not stored: {left}" in said
    assert status_of(cell).state == "done"
    assert found_in(Storage(url), cell) is None
    assert not take(Storage(url), machines.cells("vm2")[0], print)
    machines.cells("vm1")
    (half,) = (name for name in objects(url) if "step-000002/config.json" in name)
    write(url, half, b"")  # as a file system without renaming would leave it
    uploaded.clear()
    monkeypatch.setattr(Storage, "_upload", counted)
    assert carry_out.carry_out(cell, True) is None
    one = ["config.json", "model.safetensors", "provenance.json"]
    assert uploaded == ["config.json", "provenance.json", *one]
    assert stages.trained == [f"{cell.name} on vm1"]
    stored = found_in(Storage(url), cell)
    assert stored is not None
    assert {f"{name}.{file.sha256[:16]}": file.size for name, file in stored.files.items()} == {
        name.split(cell.digest + "/")[1]: len(data)
        for name, data in objects(url).items()
        if not name.endswith(COMPLETE)
    }


def test_a_list_of_files_that_was_cut_does_not_count(sharing: Machines, folder: str, stages: Stages) -> None:
    cell = sharing.cells("vm1")[0]
    carry_out.carry_out(cell, True)
    (name,) = (name for name in objects(folder) if name.endswith(COMPLETE))
    write(folder, name, objects(folder)[name][:100])
    assert found_in(Storage(folder), cell) is None
    carry_out.carry_out(cell, True)
    assert found_in(Storage(folder), cell) is not None


@pytest.mark.parametrize(
    ("url", "how"), [("folder", "altered"), ("folder", "removed"), ("s3", "altered")], indirect=["url"]
)
def test_what_is_not_what_was_put_there_is_refused(
    url: str, machines: Machines, stages: Stages, how: str
) -> None:
    carry_out.carry_out(machines.cells("vm1")[0], True)
    cell = machines.cells("vm2")[0]

    def damage(what: str) -> None:
        (name,) = (name for name in objects(url) if what in name)
        if how == "removed":
            opened = Storage(url)
            opened._files.rm_file(opened._root + name)
        else:
            write(url, name, b"x" * len(objects(url)[name]))

    carry_out.take_done([cell])
    damage("step-000004/model.safetensors")
    with (
        pytest.raises(IntegrityError, match=r"exports/step-000004/model.safetensors: not what was put there"),
        weights.brought(subjects_of(cell), None, print),
    ):
        pass
    assert not [path for path in cell.run.exports.rglob("*") if path.is_file()]
    damage(ARCHIVE)
    other = machines.cells("vm3")[0]
    with pytest.raises(IntegrityError, match=rf"{ARCHIVE}: not what was put there; remove .*{cell.digest}"):
        carry_out.carry_out(other, True)
    assert stages.trained == [f"{cell.name} on vm1"]
    assert not other.run.cell.exists()


@pytest.mark.parametrize(
    ("url", "when"), [("folder", "before"), ("folder", "after"), ("s3", "before")], indirect=["url"]
)
def test_of_two_machines_that_finish_at_one_time_one_leaves_its_files(
    url: str, machines: Machines, stages: Stages, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The other one says that it is complete before this one does, or right after it has."""
    first = machines.cells("vm1", "storage=null")[0]
    carry_out.carry_out(first, True)
    stages.weights = b"b"
    second = machines.cells("vm2", "storage=null")[0]
    carry_out.carry_out(second, True)
    assert len(stages.trained) == 2
    theirs = Storage(url)
    upload, complete = theirs.upload, theirs.complete

    def overtaken(*given: Any) -> Any:
        if theirs.find(theirs.place(second)) is None:
            put(Storage(url), first, True, print)
        return upload(*given)

    def overwritten(place: str, mine: Any) -> None:
        put(Storage(url), first, True, print)
        other = theirs.find(place)
        assert other is not None
        complete(place, mine)
        complete(place, other)

    patched = {"before": ("upload", overtaken), "after": ("complete", overwritten)}
    monkeypatch.setattr(theirs, *patched[when])
    put(theirs, second, True, print)
    stored = found_in(theirs, second)
    assert stored is not None
    assert stored.record["node"] == "vm1"
    named = {f"{name}.{file.sha256[:16]}" for name, file in stored.files.items()}
    assert {name.split(first.digest + "/")[1] for name in objects(url)} == named | {COMPLETE}
    assert Held.of(first.run) is not None
    assert Held.of(second.run) is None  # its own weights are no less its own
    other = machines.cells("vm3")[0]
    carry_out.take_done([other])
    with weights.brought(subjects_of(other), None, print):
        assert (other.run.export(4) / "model.safetensors").read_bytes() == b"a" * 4000


def test_two_threads_at_a_time_leave_a_whole_cell(url: str, machines: Machines, stages: Stages) -> None:
    both = []
    for name, stages.weights in (("vm1", b"a"), ("vm2", b"b")):
        both.append(machines.cells(name, "storage=null")[0])
        carry_out.carry_out(both[-1], True)
    threads = [threading.Thread(target=put, args=(Storage(url), cell, True, print)) for cell in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = machines.cells("vm3")[0]
    carry_out.take_done([other])
    with weights.brought(subjects_of(other), None, print):
        found = {(other.run.export(step) / "model.safetensors").read_bytes()[:1] for step in STEPS}
    assert found in ({b"a"}, {b"b"})


def test_what_is_unfinished_here_gives_way(sharing: Machines, stages: Stages) -> None:
    carry_out.carry_out(sharing.cells("vm1")[0], True)
    cell = sharing.cells("vm2")[0]
    files.write_json(cell.run.cell, {"state": "failed", "digest": cell.digest, "node": "vm2"})
    files.write_json(cell.run.checkpoint(2) / "checkpoint.json", {"files": {}})
    files.write_text(cell.run.tensorboard / "events", "half")
    files.write_text(cell.run.cell_log, "what was said")
    carry_out.carry_out(cell, True)
    assert not cell.run.checkpoints.exists()
    assert not cell.run.tensorboard.exists()
    assert cell.run.cell_log.exists()
    assert status_of(cell).state == "done"


def test_what_is_trained_here_is_not_given_up_for_what_is_stored(sharing: Machines, stages: Stages) -> None:
    carry_out.carry_out(sharing.cells("vm1")[0], True)
    stages.weights = b"b"
    cell = sharing.cells("vm2")[0]
    stages._train(cell)
    files.write_json(cell.run.cell, {"state": "failed", "digest": cell.digest, "node": "vm2"})
    carry_out.take_done([cell])
    carry_out.carry_out(cell, True)
    assert (cell.run.export(4) / "model.safetensors").read_bytes() == b"b" * 4000
    assert status_of(cell).state == "done"


@pytest.mark.parametrize(
    ("override", "named"),
    [("training.save_every=3", "training.save_every was"), ("data.train_limit=5", None)],
)
def test_a_run_of_other_settings_is_refused(
    sharing: Machines, stages: Stages, override: str, named: str | None
) -> None:
    """What is recorded is no part of a cell's digest; other rows are another cell."""
    carry_out.carry_out(sharing.cells("vm1")[0], True)
    cell = sharing.cells("vm2", override)[0]
    if named is None:
        assert not take(Storage(str(cell.spec.storage)), cell, print)
        return
    with pytest.raises(UserError, match=rf"holds a run with other settings \({named}.*another study"):
        carry_out.take_done([cell])
    assert not cell.run.spec.exists()


def test_other_rows_under_the_same_settings_are_refused(
    sharing: Machines, folder: str, stages: Stages
) -> None:
    cell = sharing.cells("vm1")[0]
    carry_out.carry_out(cell, True)
    (name,) = (name for name in objects(folder) if name.endswith(COMPLETE))
    told = json.loads(objects(folder)[name])
    told["identity"]["training rows"] = "c" * 64
    write(folder, name, json.dumps(told).encode())
    with pytest.raises(UserError, match="training rows was cccccccccccc"):
        carry_out.take_done(sharing.cells("vm2"))
    write(folder, name, json.dumps(told | {"format": 2}).encode())
    with pytest.raises(UserError, match=r"complete.json: of another version of rankdrift"):
        carry_out.take_done(sharing.cells("vm2"))


def refused(cells: list[Cell], recipe: Recipe) -> str:
    """Return what is said of a storage that cannot be used; nothing is done before."""
    with pytest.raises(UserError) as caught:
        pipeline.run_part(root_of(recipe), recipe, cells, Local(1), cells, pipeline.Way(), say=print)
    assert not root_of(recipe).root.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere://a/b", r"storage nowhere://a/b: Protocol not known: nowhere; give a folder, or a URL"),
        ("gs://a/b", r"storage gs://a/b: this needs a package that is not installed .*gcsfs"),
        ("{tmp}/not-mounted", r"storage file://.*/not-mounted: no such bucket or folder .*make it first"),
    ],
)
def test_a_storage_that_cannot_be_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: Stages, url: str, said: str
) -> None:
    machines = Machines(tmp_path, monkeypatch, url.format(tmp=tmp_path))
    message = refused(machines.cells("vm1"), machines.recipe("vm1"))
    assert re.search(said, message)
    assert not stages.trained


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no bucket", r"storage s3://missing/x: no such bucket or folder .*make it first"),
        ("down", r"storage s3://results/x: does not answer .*AWS_ENDPOINT_URL"),
        ("silent", r"storage s3://results/x: does not answer .*AWS_ENDPOINT_URL"),
        ("no credentials", r"storage s3://results/x: no credentials .*AWS_ACCESS_KEY_ID"),
        ("not allowed", r"storage s3://results/x: no permission .*give credentials"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_refused_before_anything_is_done(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: Stages, case: str, said: str
) -> None:
    if case == "down":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    if case == "silent":
        silent = socket.create_server(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setitem(storage.OPTIONS["s3"]["config_kwargs"], "read_timeout", 0.2)
    if case == "no credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if case == "not allowed":
        require_known_users(s3, after=0)
    machines = Machines(tmp_path, monkeypatch, "s3://missing/x" if case == "no bucket" else "s3://results/x")
    try:
        message = refused(machines.cells("vm1"), machines.recipe("vm1"))
    finally:
        require_known_users(s3, after=10**9)
    assert re.search(said, message), message
    assert not stages.trained


def require_known_users(server: str, after: int) -> None:
    """Have the server refuse, after so many requests, those of nobody it knows."""
    address, plain = f"{server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    asked = urllib.request.Request(address, str(after).encode(), plain, method="POST")
    urllib.request.urlopen(asked).close()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"pip install 'rankdrift\[storage\]'"):
        Storage("s3://results/x")


def test_a_study_is_put_and_taken_whole(folder: str, sharing: Machines, stages: Stages) -> None:
    for name in ("vm1", "vm2"):
        cells, recipe, said = sharing.cells(name), sharing.recipe(name), list[str]()
        executor = Local(1)
        assert not pipeline.run_part(
            root_of(recipe), recipe, cells, executor, cells, pipeline.Way(), say=said.append
        )
        assert f"storage {folder}" in said
    assert next(line for line in said if "taken from" in line).startswith(f"{cells[0].name}: taken from")
    assert stages.trained == [f"{cell.name} on vm1" for cell in cells]
    assert [status_of(cell).state for cell in cells] == ["done", "done"]


def test_a_failing_upload_is_said_of_a_cell_that_is_done(
    sharing: Machines, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Storage, *how: Any) -> None:
        raise OSError(28, "No space left on device")

    cells, recipe, said = sharing.cells("vm1"), sharing.recipe("vm1"), list[str]()
    monkeypatch.setattr(Storage, "_upload", full)
    assert not pipeline.run_part(
        root_of(recipe), recipe, cells, Local(1), cells, pipeline.Way(), say=said.append
    )
    told = [line for line in said if line.startswith("[1/2]")][-1]
    assert "done, 0 s; not stored: storage file://" in told
    assert "No space left on device" in told


class Elsewhere:
    """An executor on other machines, which hold what it is told."""

    is_here = False

    def __init__(self, holding: dict[str, dict[str, tuple[int, int]]]) -> None:
        self.holding, self.tasks = holding, list[Task]()

    def ask(self, function: Any, *arguments: Any) -> dict[str, Any]:
        assert function is away.holding
        return self.holding

    def carry_out(self, tasks: list[Task], begun: Any) -> Iterator[Any]:
        self.tasks += tasks
        return iter(())


@pytest.mark.parametrize(("known", "sent"), [(True, ["vm2"]), (False, [])])
def test_a_done_cell_goes_once_more_to_the_node_whose_weights_are_not_stored(
    sharing: Machines, stages: Stages, monkeypatch: pytest.MonkeyPatch, known: bool, sent: list[str]
) -> None:
    cells, recipe = sharing.cells("vm1"), sharing.recipe("vm1")
    monkeypatch.setattr(carry_out, "put", lambda *given: None)
    for number, cell in enumerate(cells):
        carry_out.carry_out(cell, with_base=number == 0)
    first, second = cells
    Held("vm2", "/there", {}, {}).keep(first.run)
    Held("file:///shared", "file:///shared/s", {}, {}).keep(second.run)
    executor = Elsewhere({"vm2": {first.name: (away.FARTHEST.index("done"), 4)}} if known else {})
    pipeline.run_part(root_of(recipe), recipe, cells, executor, cells, pipeline.Way(), say=print)  # type: ignore[arg-type]
    assert [task.node for task in executor.tasks] == sent


@pytest.mark.parametrize("stored", [True, False])
def test_what_comes_back_from_a_node_says_who_holds_the_weights(
    sharing: Machines, folder: str, stages: Stages, stored: bool
) -> None:
    cell = sharing.cells("vm2")[0]
    carry_out.carry_out(cell, True)
    if not stored:
        cell.run.held.unlink()
    assert away._held(cell).node == (Storage(folder).url if stored else "vm2")
    (cell.run.export(4) / "model.safetensors").write_bytes(b"of other content")
    assert away._held(cell).node == "vm2"


def test_progress_of_long_journeys_is_said(
    machines: Machines, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_cells, "byte_lines", partial(byte_lines, pause=0.0))
    said: list[str] = []
    carry_out.carry_out(machines.cells("vm1")[0], True, say=said.append)
    cell = machines.cells("vm2")[0]
    carry_out.take_done([cell])
    assert [line for line in said if "% of 0.00 GB" in line]
    said.clear()
    with weights.brought(subjects_of(cell), None, said.append):
        assert [line for line in said if "% of 0.00 GB" in line]


def test_where_a_cell_is_kept_is_no_part_of_it(sharing: Machines) -> None:
    one, other = sharing.cells("vm1")[0], sharing.cells("vm2", "storage=null")[0]
    assert one.digest == other.digest
    assert (one.spec.storage is None, other.spec.storage) == (False, None)
