"""Phases: each cell on one machine, each phase says what is next; the shipped files are sound."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rankdrift.cli.phase import ALLOCATION
from rankdrift.errors import UserError
from rankdrift.spec import load_recipe
from rankdrift.studies.cells import CONFIGS, Cell, cells_of
from rankdrift.studies.phases import Allocation, cells_on, phase_of, read_allocation, what_is_next

SHIPPED = sorted(ALLOCATION.parent.glob("*.yaml"))


def cells_for(allocation: Allocation) -> list[Cell]:
    return cells_of(load_recipe(allocation.experiment), CONFIGS / "zero2.json", 1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_gives_every_cell_to_one_machine(path: Path) -> None:
    allocation = read_allocation(path)
    cells = cells_for(allocation)
    of_machines = [cells_on(allocation, machine, cells) for machine in allocation.machines]
    assert all(of_machines)
    assert sorted(cell.name for part in of_machines for cell in part) == sorted(cell.name for cell in cells)
    assert cells_on(allocation, None, cells) == cells
    deeds = [deed for phase in allocation.phases.values() for deed in phase.does]
    assert len(deeds) == len(set(deeds)) == 12


def written(tmp_path: Path, **changes: object) -> Path:
    tree = yaml.safe_load((ALLOCATION.parent / "tiny.yaml").read_text())
    tree["experiment"] = str(ALLOCATION.parents[1] / "recipes" / "tiny.yaml")
    path = tmp_path / "phases.yaml"
    path.write_text(yaml.safe_dump(tree | changes))
    return path


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ({"a": ["full-*"]}, "cell 'lora-r4-seed42' is on none"),
        ({"a": ["*"], "b": ["lora*"]}, "cell 'lora-r4-seed42' is on a and b"),
    ],
)
def test_a_cell_of_no_machine_or_of_two_is_refused(
    tmp_path: Path, machines: dict[str, list[str]], message: str
) -> None:
    allocation = read_allocation(written(tmp_path, machines=machines))
    with pytest.raises(UserError, match=message):
        cells_on(allocation, "a", cells_for(allocation))


def test_unknown_names_are_said(tmp_path: Path) -> None:
    allocation = read_allocation(written(tmp_path))
    with pytest.raises(UserError, match=r"unknown machine 'vm9': did you mean 'vm[12]'"):
        cells_on(allocation, "vm9", cells_for(allocation))
    with pytest.raises(UserError, match="unknown phase '9'"):
        phase_of(allocation, "9")
    with pytest.raises(UserError, match=r"phases\.yaml: the phases are not valid:\n.*does.*"):
        read_allocation(written(tmp_path, phases={"0": {"title": "x", "does": ["dance"]}}))


def test_what_comes_next_says_where() -> None:
    allocation = read_allocation(ALLOCATION)
    assert list(what_is_next(allocation, "2", "vm2")) == [
        "next: make phase3-vm2: consolidation, scores, representations"
    ]
    assert list(what_is_next(allocation, "0", "vm2")) == [
        "next, when phase 0 is done on vm1, vm2, vm3: on vm1",
        "  make phase1-vm1: search of learning rates",
    ]
    last = "\n".join(what_is_next(allocation, "4", "vm2"))
    assert "when phase 4 is done on vm1, vm2, vm3: on vm1" in last
    assert "rankdrift gather" in last
    assert "make phase5-vm1" in last
    assert list(what_is_next(allocation, "4", None)) == [
        "next: make phase5: comparison and report, of what was gathered"
    ]
    assert list(what_is_next(allocation, "5", "vm1")) == [
        "next: make phase4b-vm1: deployment, and the report with it"
    ]
    assert list(what_is_next(allocation, "4b", "vm1")) == ["that was the last phase"]
