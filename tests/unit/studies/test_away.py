"""A cell on another machine: all but weights comes back, and says what is in the weights that stay there."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rankdrift import files, registry
from rankdrift.analysis.contract import Params
from rankdrift.analysis.parts import Part, content
from rankdrift.analysis.sources.elsewhere import Held, none_elsewhere
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import IntegrityError, RankError, UserError
from rankdrift.layout import StudyLayout
from rankdrift.spec import Recipe, recipe_of
from rankdrift.studies import away, carry_out, pipeline, weights
from rankdrift.studies.cells import CONFIGS, Cell, cells_of, root_of
from rankdrift.studies.executors import Begun, Outcome, Task
from rankdrift.studies.executors.processes import NODE
from rankdrift.studies.restarts import NONE
from rankdrift.studies.study_checkpoints import run_subjects, stored_steps
from rankdrift.zero_checkpoint.manifest import Manifest
from rankdrift.zero_checkpoint.manifest import Part as CheckpointPart

HOW = (True, carry_out.STAGES, NONE)
DRIVER = {"node": "vm1", "pid": 7, "began": "now"}


@dataclasses.dataclass(frozen=True)
class Places:
    """Two folders that studies are in, of one study whose path is relative."""

    here: Path
    there: Path
    recipe: Recipe
    cells: list[Cell]
    go: Callable[[Path], None]

    @property
    def cell(self) -> Cell:
        return self.cells[0]

    @property
    def root(self) -> StudyLayout:
        return root_of(self.recipe)


@pytest.fixture
def places(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    tree = {"model": {"name": "tiny"}, "data": {"tasks": ["topic"]}, "study": "s", "seeds": [1, 2]}
    recipe = recipe_of(tree | {"training": {"steps": 4}}, tmp_path)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cells = cells_of(recipe, CONFIGS / "zero2.json", 1)
    files.write_json(root_of(recipe).driver, DRIVER)
    monkeypatch.setenv(NODE, "vm2")
    return Places(tmp_path / "here", tmp_path / "there", recipe, cells, monkeypatch.chdir)


def trained(cell: Cell, *how: Any) -> None:
    """Leave what a cell leaves; numbers are made up."""
    run, study = cell.run, cell.study
    files.write_json(run.spec, cell.spec.as_dict())
    files.write_json(run.status, {"state": "finished", "step": 4, "steps": 4})
    files.write_text(run.metrics, '{"step": 4}\n')
    files.write_json(run.score(4), {"accuracy": 0.5})
    files.write_json(
        run.cell, {"state": "done", "stage": "", "digest": cell.digest, "node": "vm2", "attempts": 1}
    )
    for step in (2, 4):
        files.write_json(run.export(step) / "config.json", {})
        files.write_json(run.export(step) / "provenance.json", {"dtype": "fp32"})
        (run.export(step) / "model.safetensors").write_bytes(bytes([step]) * 1000)
    files.write_json(run.checkpoint(4) / "checkpoint.json", {"files": {}})
    files.write_text(run.root / ".lock", "")
    files.write_json(study.run("x").score(0).parent.parent / "other.json", {})
    parts = study.tables / ".parts" / "spectra"
    for name in (f"{cell.spec.run_name}-step-000004.json", "base-step-000000.json", "other-step-000004.json"):
        files.write_json(parts / name, {})
    files.write_json(study.base / "scores" / "step-000000.json", {"accuracy": 0.25})
    (study.base / "cache").mkdir()
    (study.base / "cache" / "spectra.bin").write_bytes(b"large")


def carried_out(places: Places, monkeypatch: pytest.MonkeyPatch, by: Any = trained) -> Outcome:
    """Carry the first cell out there, and be here again."""
    monkeypatch.setattr(away, "carry_out", by)
    order = away.Order.of(places.cell)
    places.go(places.there)
    value = away.carry_out_away(order, DRIVER, places.root, HOW)
    places.go(places.here)
    return Outcome(Task("a", trained), "vm2", value)


def names_in(archive: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return set(tar.getnames())


class Elsewhere:
    """An executor whose nodes are folders of this machine."""

    is_here = False

    def __init__(self, holding: dict[str, dict[str, tuple[int, int]]] | None = None) -> None:
        self.holding, self.tasks = holding or {}, list[Task]()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        assert function is away.holding
        return self.holding

    def at(self, node: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def carry_out(self, tasks: Sequence[Task], begun: Begun) -> Iterator[Outcome]:
        self.tasks += tasks
        return iter(())


def test_all_but_weights_comes_back(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = carried_out(places, monkeypatch)
    run = f"runs/{places.cell.spec.run_name}"
    assert names_in(outcome.value.archive) == {
        *(
            f"{run}/{name}"
            for name in ("spec.json", "status.json", "metrics.jsonl", "cell.json", "held.json")
        ),
        *(f"{run}/scores/step-000004.json", "base/scores/step-000000.json"),
        *(f"tables/.parts/spectra/{places.cell.spec.run_name}-step-000004.json",),
        "tables/.parts/spectra/base-step-000000.json",
    }
    told = away.arrived(outcome, places.root)
    assert (told.value, told.error, told.node) == (None, None, "vm2")
    assert files.read_json(places.cell.run.score(4)) == {"accuracy": 0.5}
    held = Held.of(places.cell.run)
    assert held is not None
    assert (held.node, Path(held.folder)) == ("vm2", places.there / places.cell.run.root)
    assert held.steps == {2: "exports/step-000002", 4: "exports/step-000004"}


def test_a_folder_that_both_see_needs_no_journey(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away, "carry_out", trained)
    brought = away.carry_out_away(away.Order.of(places.cell), DRIVER, places.root, HOW)
    assert brought == away.Brought(None)
    assert away.carry_out_away(away.Order.of(places.cells[1]), DRIVER | {"pid": 8}, places.root, HOW).archive


def test_what_the_weights_are_is_known_without_them(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that was measured there is current here, since it depends on the same."""
    away.arrived(carried_out(places, monkeypatch), places.root)
    analysis, params = registry.load("analysis", "spectra"), Params(Path("cache"))
    wanted = []
    for folder in (places.there, places.here):
        places.go(folder)
        subjects = run_subjects(places.cell.spec, places.cell.run, Path("base"))
        assert [subject.step for subject in subjects] == [2, 4]
        wanted.append([Part(analysis, subject, Path()).dependencies(params) for subject in subjects])
    assert wanted[0] == wanted[1]
    assert len({str(each) for each in wanted[0]}) == 2
    assert wanted[0][0]["inputs"]
    with (
        pytest.raises(UserError, match=r"step-000002: node vm2 holds these weights; .*gather"),
        none_elsewhere(subjects),
    ):
        pass
    places.go(places.there)
    with none_elsewhere(run_subjects(places.cell.spec, places.cell.run, Path("base"))):
        pass


def subjects_here(places: Places) -> list[Subject]:
    return run_subjects(places.cell.spec, places.cell.run, Path("base"))


def test_weights_are_here_for_as_long_as_they_are_needed(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    away.arrived(carried_out(places, monkeypatch), places.root)
    monkeypatch.setattr(weights, "PIECE", 300)
    said: list[str] = []
    run = places.cell.run
    with weights.brought(subjects_here(places), Elsewhere(), said.append):
        for step, folder in stored_steps(run).items():
            assert (folder / "model.safetensors").read_bytes() == bytes([step]) * 1000
    assert said == [f"{run.export(step)} from vm2" for step in (2, 4)]
    assert not list(run.exports.glob("*/*"))
    assert len(stored_steps(run)) == 2


def test_weights_that_have_changed_there_are_refused(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    away.arrived(carried_out(places, monkeypatch), places.root)
    run = places.cell.run
    (places.there / run.export(4) / "model.safetensors").write_bytes(b"x" * 1000)
    here = weights.brought(subjects_here(places), Elsewhere(), print)
    with pytest.raises(IntegrityError, match=f"{run.export(4)} on vm2: not what was measured there"), here:
        pass
    assert not list(run.exports.glob("*/*"))


def test_of_a_cell_that_fails_its_folder_comes_back_as_well(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(cell: Cell, *how: Any) -> None:
        files.write_json(cell.run.cell, {"state": "failed"})
        raise RankError("no memory") if cell is not None else None

    told = away.arrived(carried_out(places, monkeypatch, failing), places.root)
    assert (type(told.error), str(told.error)) == (RankError, "no memory")
    assert files.read_json(places.cell.run.cell) == {"state": "failed"}

    def faulty(cell: Cell, *how: Any) -> None:
        raise ZeroDivisionError("x")

    assert (
        str(away.arrived(carried_out(places, monkeypatch, faulty), places.root).error)
        == "ZeroDivisionError: x"
    )


def test_the_deepspeed_json_travels_by_content(places: Places, tmp_path: Path) -> None:
    own = tmp_path / "mine.json"
    files.write_json(own, {"zero_optimization": {"stage": 1}})
    order = away.Order.of(dataclasses.replace(places.cell, config=own))
    own.unlink()
    places.go(places.there)
    cell = order.here()
    assert files.read_json(cell.config) == {"zero_optimization": {"stage": 1}}
    assert cell.config.name == "mine.json"
    assert cell.digest == dataclasses.replace(places.cell, config=cell.config).digest


def test_the_node_that_is_the_farthest_goes_on(places: Places) -> None:
    asked = [(cell.name, cell.run, cell.digest) for cell in places.cells]
    trained(places.cell)
    done = away.holding(asked)
    assert list(done) == [places.cell.name]
    assert away.holding([(name, run, "another") for name, run, _ in asked]) == {}
    name = places.cell.name
    running = {name: (away.FARTHEST.index("stopped"), 2)}
    farther = {name: (away.FARTHEST.index("stopped"), 3)}
    assert away.holders({"a": running, "b": farther, "c": {}}) == {name: "b"}
    assert away.holders({"a": farther, "b": done}) == {name: "b"}


def test_what_is_done_is_not_sent_again(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = places.cells
    away.arrived(carried_out(places, monkeypatch), places.root)
    assert not carry_out.needs_nothing(first, with_base=True)  # nothing is measured
    measured = carry_out._wanted(first, registry.names("analysis"), [0, 2, 4])
    files.write_json(first.run.cell, files.read_json(first.run.cell) | {"measured": measured})
    assert carry_out.needs_nothing(first, with_base=True)
    assert not carry_out.needs_nothing(first, with_base=False)
    other = dataclasses.replace(first, spec=first.spec.model_copy(update={"seed": 9}))
    assert not carry_out.needs_nothing(other, with_base=True)
    monkeypatch.setattr(pipeline, "_prepare", lambda group, say: None)
    executor, said = Elsewhere({"vm3": {second.name: (3, 2)}}), list[str]()
    part = (places.root, places.recipe, places.cells, executor, places.cells)
    pipeline.run_part(*part, pipeline.Way(), said.append)
    (task,) = executor.tasks
    assert (task.name, task.node, task.function) == (second.name, "vm3", away.carry_out_away)
    order, driver, root, rest = task.arguments
    assert (order.cell, root, rest) == (second, places.root, (False, carry_out.STAGES, NONE))
    assert driver["node"] == "vm2"  # this process's
    assert "1 of 2 cells are done" in said
    pipeline.run_part(*part, pipeline.Way(again=True), said.append)
    assert [task.name for task in executor.tasks[1:]] == [first.name, second.name]


def test_content_of_what_is_nowhere(tmp_path: Path) -> None:
    assert content(tmp_path / "runs" / "a" / "exports" / "step-000002") is None


def test_a_part_of_a_checkpoint_here_is_not_taken_for_the_whole_there(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ranks of several machines have trained it, and this is one of them."""
    away.arrived(carried_out(places, monkeypatch), places.root)
    run = places.cell.run
    manifest = Manifest(4, 2, 2, "full", "fp32", "digest", "base", "digest", 0, 1)
    part = dataclasses.replace(manifest, parts=(CheckpointPart("vm1", ()), CheckpointPart("vm2", ())), here=0)
    (run.checkpoint(4)).mkdir(parents=True)
    part.keep(run.checkpoint(4))
    assert stored_steps(run) == {step: run.export(step) for step in (2, 4)}
    manifest.keep(run.checkpoint(4))
    assert stored_steps(run)[4] == run.checkpoint(4)
