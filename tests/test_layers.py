"""The import rules of docs/architecture.md, read from the source: lazy and relative imports count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "rankdrift"
BASE = {"errors", "layout", "registry", "settings"}
GROUND = BASE | {"files", "spec"}
STORED = {"zero_checkpoint", "export", "verify"}

# part -> the other parts of rankdrift it may import
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "layout": set(),
    "registry": {"errors"},
    "settings": {"errors"},
    "signals": set(),
    "progress": set(),
    "files": BASE,
    "heartbeat": BASE | {"files", "signals"},
    "spec": BASE | {"files"},
    "tasks": GROUND | {"metrics"},
    "metrics": GROUND,
    "methods": GROUND | {"tasks"},
    "data": GROUND | {"progress", "tasks"},
    "models": GROUND | {"tasks"},
    "zero_checkpoint": BASE | {"files"},
    "export": BASE | {"files", "methods", "progress", "zero_checkpoint"},
    "verify": BASE | {"files", "methods", "progress", "zero_checkpoint", "export"},
    "hub": GROUND | STORED | {"progress", "tasks", "data", "models"},
    "planning": GROUND | {"data", "models"},
    "hosts": BASE | {"files", "zero_checkpoint"},
    "training": GROUND
    | STORED
    | {"signals", "hosts", "heartbeat", "tasks", "metrics", "methods", "data", "models"}
    | {"scoring", "planning"},
    "scoring": GROUND | {"tasks", "metrics", "methods", "data", "models"},
    "serving": GROUND | {"tasks", "data", "models"},
    "studies": GROUND
    | STORED
    | {"signals", "progress", "hosts", "data", "models", "scoring", "analysis", "planning", "training"},
    "analysis": BASE | {"files", "progress"},
    "doctor": BASE | {"files", "hosts"},
    "sanity": GROUND | STORED | {"methods", "data", "models", "training", "studies", "tasks"},
}
# part -> single modules of other parts it may import as well
ALLOWED_MODULES: dict[str, set[str]] = {
    "methods": {"rankdrift.models.families", "rankdrift.models.targets"},
    "analysis": {  # readers of file formats
        "rankdrift.export.adapter_update",
        "rankdrift.export.peft_names",
        "rankdrift.models.direction",
        "rankdrift.models.families",
        "rankdrift.zero_checkpoint.manifest",
        "rankdrift.zero_checkpoint.shards",
        "rankdrift.zero_checkpoint.trainer_folder",
    },
}
NO_TORCH = {"errors", "layout", "registry", "settings", "files", "signals", "heartbeat", "spec", "hosts"}
MATHEMATICS = ("spectral", "representation", "gradients", "statistics")  # of analysis/mathematics
FORBIDDEN: dict[str, set[str]] = {
    "analysis": {"deepspeed", "peft"},
    "zero_checkpoint": {"deepspeed"},
    "export": {"deepspeed"},
    "verify": {"deepspeed"},
    "scoring": {"deepspeed"},
    "serving": {"deepspeed"},
    "planning": {"deepspeed"},
    "tasks": {"deepspeed", "torch"},
    "metrics": {"deepspeed", "torch"},
}


def modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if "analysis" not in p.relative_to(SOURCE).parts) + sorted(
        (ROOT / "analysis").rglob("*.py")
    )


def part_of(path: Path) -> str:
    relative = path.relative_to(SOURCE) if path.is_relative_to(SOURCE) else path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def package_of(path: Path) -> list[str]:
    """The dotted package a module's relative imports start from."""
    if path.is_relative_to(SOURCE):
        return ["rankdrift", *path.relative_to(SOURCE).parts[:-1]]
    return ["rankdrift", *path.relative_to(ROOT).parts[:-1]]


def imports(path: Path) -> set[str]:
    """Every module a file names in an import statement, at any depth, relative ones made absolute.

    Imports that only type checkers see count as well: they tie the same parts together.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            prefix = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            # "from rankdrift import records" names the module rankdrift.files
            package_is_named = module.startswith("rankdrift") and file_of(module).with_suffix("").is_dir()
            found |= {f"{module}.{a.name}" for a in node.names} if package_is_named else {module}
    return found


def file_of(module: str) -> Path:
    """The file of one of our modules, if it is one."""
    return SOURCE.parent.joinpath(*module.split(".")).with_suffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_part_may(path: Path) -> None:
    part = part_of(path)
    if part in ("api", "cli", "__init__", "__main__"):
        return
    names = imports(path) - ALLOWED_MODULES.get(part, set())
    ours = {name.split(".")[1] for name in names if name.startswith("rankdrift.")} - {part, "__version__"}
    outside = {name.split(".")[0] for name in names}
    assert ours <= ALLOWED[part], f"{part} must not import {sorted(ours - ALLOWED[part])}"
    assert not outside & FORBIDDEN.get(part, set()), f"{part} imports {outside & FORBIDDEN[part]}"
    if part in NO_TORCH:
        assert not outside & {"torch", "transformers", "peft", "deepspeed"}


@pytest.mark.parametrize("part", ALLOWED_MODULES)
def test_single_modules_bring_in_nothing_that_their_importer_may_not_have(part: str) -> None:
    new, found = set(ALLOWED_MODULES[part]), set()
    while new:
        found |= new
        new = set().union(*(imports(file_of(module)) for module in found if file_of(module).exists())) - found
    reached = {name.split(".")[1] for name in found if name.startswith("rankdrift.")}
    assert reached - {name.split(".")[1] for name in ALLOWED_MODULES[part]} <= ALLOWED[part]
    assert not {name.split(".")[0] for name in found} & FORBIDDEN.get(part, set())


@pytest.mark.parametrize("subject", MATHEMATICS)
def test_mathematics_of_the_analysis_knows_no_other_subject_and_no_files(subject: str) -> None:
    names = set().union(
        *(imports(path) for path in (ROOT / "analysis" / "mathematics" / subject).glob("*.py"))
    )
    ours = {name for name in names if name.startswith("rankdrift.")}
    assert names
    assert {name for name in ours if not name.startswith(f"rankdrift.analysis.mathematics.{subject}")} <= {
        "rankdrift.errors",
        "rankdrift.models.families",  # tables and names alone
    }
    assert not {name.split(".")[0] for name in names} & {
        "pathlib",
        "os",
        "json",
        "safetensors",
        "transformers",
    }


def test_deepspeed_is_imported_by_two_modules_alone() -> None:
    importers = {p for p in modules() if any(n.split(".")[0] == "deepspeed" for n in imports(p))}
    assert importers == {SOURCE / "training" / name for name in ("collectives.py", "engine.py")}


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_launch_scripts_are_thin(script: Path) -> None:
    ours = {name for name in imports(script) if name.startswith("rankdrift")}
    assert ours == {"rankdrift.cli.main"}
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 25


def test_every_part_has_a_rule() -> None:
    parts = {part_of(path) for path in modules()} - {"api", "cli", "__init__", "__main__"}
    assert parts == set(ALLOWED)


def test_the_rules_see_lazy_and_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "analysis" / "sources"
    package.mkdir(parents=True)
    module = package / "weights.py"
    lines = ["def f():", "import peft.tuners", "from ..report import build", "from rankdrift import training"]
    module.write_text("\n    ".join(lines) + "\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert imports(module) == {"peft.tuners", "rankdrift.analysis.report.build", "rankdrift.training"}


def test_what_is_loaded_is_what_is_needed() -> None:
    """In one process, one after the other: what third parties load counts as well."""
    topics = "rankdrift.analysis.report.topics"
    without = {
        "rankdrift.cli.analyze": "torch",  # its help does not wait
        "rankdrift.zero_checkpoint.manifest": "torch",  # a launcher may ask
        "rankdrift.analysis.report.build": "transformers",  # no model is asked
        f"{topics}; {topics}.declared()": "transformers",  # nor by what all analyses declare
        "rankdrift.export.consolidate": "deepspeed",
    }
    checks = [
        f"import sys, {module}; assert {absent!r} not in sys.modules" for module, absent in without.items()
    ]
    subprocess.run([sys.executable, "-c", "\n".join(checks)], check=True)
