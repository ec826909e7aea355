"""The cells of a study: each run that it has, with the machines it asks for, told apart by content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.errors import UserError, did_you_mean, require_known
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.spec import Recipe, Spec, analysis_settings, parse_spec
from rankdrift.spec.identity import flattened, role

CONFIGS = Path(__file__).resolve().parents[1] / "ds_configs"
COUNTED = frozenset({"identity", "content", "rounding"})
"""Roles of settings that can change a weight."""


@dataclass(frozen=True)
class Cell:
    """One run of a study, and what it is started with."""

    spec: Spec
    config: Path
    """DeepSpeed JSON."""
    ranks: int
    group: str = ""
    """The group whose base model and data it has; "" in a study that is one group."""

    @property
    def name(self) -> str:
        """``<arm>-seed<seed>``, behind its group where there are several."""
        return f"{self.group}/{self.spec.run_name}" if self.group else self.spec.run_name

    @property
    def run(self) -> RunLayout:
        """Its folder."""
        return self.study.run(self.spec.run_name)

    @property
    def study(self) -> StudyLayout:
        """The folder of its group: what it is compared with."""
        return StudyLayout(self.spec.study_root)

    @property
    def digest(self) -> str:
        """SHA-256 of what can change a weight: settings as they are given, DeepSpeed's, the ranks."""
        settings = {key: value for key, value in flattened(self.spec).items() if role(key) in COUNTED}
        settings |= {f"method.{key}": value for key, value in self.spec.method.in_force().items()}
        return files.digest_json([settings, files.read_json(self.config), self.ranks])

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "name": self.name,
            "group": self.group,
            "run": self.spec.run_name,
            "digest": self.digest,
            "config": str(self.config),
            "ranks": self.ranks,
            "experiment": self.spec.as_dict(),
        }

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Cell:
        """Return the cell of ``as_dict``."""
        return cls(parse_spec(tree["experiment"]), Path(tree["config"]), tree["ranks"], tree["group"])


def cells_of(recipe: Recipe, config: Path, ranks: int) -> list[Cell]:
    """Return the cells of a study, group by group; what an arm does not say is as it is given here.

    Raises UserError where two cells are one: by name, or by all that can change a weight.
    """
    cells = list(_expanded(recipe, config, ranks))
    _refuse_one_name(cells)
    _refuse_equal(cells)
    for cell in cells:
        analysis_settings(cell.spec.analysis)
    return cells


def root_of(recipe: Recipe) -> StudyLayout:
    """Return the folder of a whole study, its groups' folders in it."""
    group = next(iter(recipe.groups))
    root = recipe.spec(group=group).study_root
    return StudyLayout(root.parent if group else root)


def named(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """Return the cells of these names, all of no names; raise UserError for one that is not there."""
    known = [cell.name for cell in cells]
    for name in names:
        require_known("cell", name, known)
    return [cell for cell in cells if not names or cell.name in names]


def write_cells(root: StudyLayout, recipe: Recipe, cells: Sequence[Cell]) -> None:
    """Write the recipe and its cells; raise UserError where the folder holds another study's.

    What is unchanged is left as it is: the report depends on the recipe.
    """
    if root.cells.exists():
        before = {tree["name"] for tree in files.read_json(root.cells)}
        if not before & {cell.name for cell in cells}:
            raise UserError(
                f"{root.root}: holds another study, of the cells {', '.join(sorted(before))}; choose another "
                "name (study=NAME), or delete the folder"
            )
    _write(root.spec, recipe.model_dump(mode="json"))
    _write(root.cells, [cell.as_dict() for cell in cells])


def read_cells(root: StudyLayout) -> list[Cell]:
    """Return the cells that a study's folder states; raise UserError where there is no study."""
    if not root.cells.exists():
        raise UserError(
            f"{root.root}: no study there ({root.cells.name} is missing); give the folder that 'rankdrift "
            "study run' made, with its groups in it"
        )
    return [Cell.of(tree) for tree in files.read_json(root.cells)]


def groups_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return the cells by group, in order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.group, []).append(cell)
    return found


def _expanded(recipe: Recipe, config: Path, ranks: int) -> Iterator[Cell]:
    for group in recipe.groups:
        for spec in recipe.runs(group):
            systems = recipe.systems.get(spec.arm)
            own = _config(systems.config) if systems and systems.config else config
            yield Cell(spec, own, (systems.ranks if systems else None) or ranks, group)


def _config(given: str) -> Path:
    """Return the DeepSpeed JSON of a path, or of a name that comes with rankdrift."""
    path, shipped = Path(given), CONFIGS / Path(given).with_suffix(".json").name
    if path.exists():
        return path
    if shipped.exists() and path.parent == Path():
        return shipped
    names = [each.stem for each in CONFIGS.glob("*.json")]
    raise UserError(f"config: {given}: no such DeepSpeed JSON; {did_you_mean(path.stem, names)}")


def _refuse_one_name(cells: Sequence[Cell]) -> None:
    """Raise UserError where an override gives several arms one name: they would be one run's folder."""
    names = [cell.name for cell in cells]
    for cell in cells:
        if names.count(cell.name) > 1:
            raise UserError(
                f"arm={cell.spec.arm} would give {names.count(cell.name)} runs one name; name arms in the "
                "recipe, or train one of them with launch/train.py --arm NAME"
            )


def _refuse_equal(cells: Sequence[Cell]) -> None:
    """Raise UserError where two cells would train the same: they would pass for two observations."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.digest, cell)
        if other is not cell:
            raise UserError(
                f"'{other.name}' and '{cell.name}' are the same cell: they differ in nothing that can change "
                "a weight; leave one out (what one method alone has is an axis of its own arm's grid)"
            )


def _write(path: Path, value: Any) -> None:
    if not path.exists() or files.read_json(path) != value:
        files.write_json(path, value)
