"""What a user installs: the wheel's contents, and the links that keep folders outside the package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LINKS = {
    "analysis": "../../analysis",
    "recipes": "../../launch/recipes",
    "phases": "../../launch/phases",
    "ds_configs": "../../ds_configs",
    "notebooks": "../../docs/notebooks",
}


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel built from a copy of what git tracks."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")
    subprocess.run(
        ["tar", "-C", str(root), "--null", "-T", "-", "-cf", str(source / "tree.tar")],
        input=b"\0".join(name for name in names if name and (root / name.decode()).exists()),
        check=True,
    )
    subprocess.run(["tar", "-C", str(source), "-xf", str(source / "tree.tar")], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(target), str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(next(target.glob("*.whl"))) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize(("name", "target"), LINKS.items())
def test_folders_are_linked_into_the_package(root: Path, name: str, target: str) -> None:
    link = root / "src" / "rankdrift" / name
    assert link.is_symlink()
    assert str(link.readlink()) == target
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-s", str(link)], capture_output=True, text=True, check=True
    )
    assert listed.stdout.startswith("120000 "), "the link must be committed as a link"


def test_the_wheel_holds_every_module_and_data_file(root: Path, wheel: set[str]) -> None:
    package = root / "src" / "rankdrift"
    modules = {f"rankdrift/{p.relative_to(package)}" for p in package.rglob("*.py")}
    modules |= {f"rankdrift/{p.relative_to(root)}" for p in (root / "analysis").rglob("*.py")}
    data = {f"rankdrift/recipes/{p.name}" for p in (root / "launch" / "recipes").glob("*.yaml")}
    data |= {f"rankdrift/ds_configs/{p.name}" for p in (root / "ds_configs").glob("*.json")}
    data |= {"rankdrift/py.typed", "rankdrift/data/general_text.txt"}
    data |= {"rankdrift/analysis/report/report.html.j2"}
    data |= {f"rankdrift/notebooks/{p.name}" for p in (root / "docs" / "notebooks").glob("*.py")}
    assert len(modules) > 50
    assert modules | data <= wheel


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"rankdrift"}
    assert not [name for name in wheel if "test" in name]


def test_analysis_is_not_a_top_level_package(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import analysis"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "rankdrift.analysis" in done.stderr
