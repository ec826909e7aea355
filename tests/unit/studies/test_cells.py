"""Cells: told apart by content, written and read again; two studies do not share a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.spec import recipe_of
from rankdrift.studies.cells import (
    CONFIGS,
    Cell,
    cells_of,
    groups_of,
    named,
    read_cells,
    root_of,
    write_cells,
)

ZERO2 = CONFIGS / "zero2.json"
ARMS = {"full": {"method": {"name": "full"}}, "lora": {"method": {"name": "lora"}}}


def tree(**more: Any) -> dict[str, Any]:
    return {"model": {"name": "tiny"}, "data": {"tasks": ["topic"]}, "arms": ARMS, "seeds": [1]} | more


def cells(**more: Any) -> list[Cell]:
    return cells_of(recipe_of(tree(**more), Path()), ZERO2, 2)


def test_a_digest_is_of_what_can_change_a_weight() -> None:
    first = cells()
    assert first[0].digest != first[1].digest
    for alike in ({"study": "other"}, {"scoring": {"limit": 3}}, {"training": {"save_every": 7}}):
        assert [cell.digest for cell in cells(**alike)] == [cell.digest for cell in first]
    for other in ({"training": {"clip": 0.5}}, {"seeds": [2]}, {"config": "zero3"}, {"ranks": 1}):
        assert not {cell.digest for cell in cells(**other)} & {cell.digest for cell in first}


def test_an_arm_has_its_own_deepspeed_json_and_ranks() -> None:
    arms = ARMS | {"full": ARMS["full"] | {"config": "zero3", "ranks": 4}}
    full, lora = cells(arms=arms)
    assert (full.config.name, full.ranks, lora.config.name, lora.ranks) == ("zero3.json", 4, "zero2.json", 2)
    with pytest.raises(UserError, match=r"config: zero9: no such DeepSpeed JSON; did you mean 'zero[0-3]'"):
        cells(config="zero9")


def test_equal_cells_are_refused() -> None:
    """LoRA's rank is nothing to full fine-tuning: two arms of it would train the same."""
    with pytest.raises(UserError, match=r"'full-r4-seed1' and 'full-r8-seed1' are the same cell"):
        cells(grid={"method.rank": [4, 8]})


def test_cells_are_read_as_they_were_written(tmp_path: Path) -> None:
    recipe = recipe_of(
        tree(study="s", output=str(tmp_path), grid={"data.tasks": {"a": ["topic"], "b": ["describe"]}}),
        Path(),
    )
    found = cells_of(recipe, ZERO2, 2)
    root = root_of(recipe)
    assert root.root == tmp_path / "s"
    assert [cell.name for cell in found] == ["a/full-seed1", "a/lora-seed1", "b/full-seed1", "b/lora-seed1"]
    assert found[2].run.root == tmp_path / "s" / "b" / "runs" / "full-seed1"
    write_cells(root, recipe, found)
    assert read_cells(root) == found
    assert [list(groups_of(found)), named(found, ["b/full-seed1"])] == [["a", "b"], [found[2]]]
    with pytest.raises(UserError, match="unknown cell 'b/full': did you mean 'b/full-seed1'"):
        named(found, ["b/full"])


def test_another_study_in_the_folder_is_refused(tmp_path: Path) -> None:
    first = recipe_of(tree(study="s", output=str(tmp_path)), Path())
    write_cells(root_of(first), first, cells_of(first, ZERO2, 2))
    more = recipe_of(tree(study="s", output=str(tmp_path), seeds=[1, 2]), Path())
    write_cells(root_of(more), more, cells_of(more, ZERO2, 2))  # more seeds are the same study
    before = files.read_json(root_of(first).cells)
    other = recipe_of(tree(study="s", output=str(tmp_path), seeds=[9]), Path())
    with pytest.raises(UserError, match="holds another study, of the cells full-seed1"):
        write_cells(root_of(other), other, cells_of(other, ZERO2, 2))
    assert files.read_json(root_of(first).cells) == before
    with pytest.raises(UserError, match="no study there"):
        read_cells(StudyLayout(tmp_path))
