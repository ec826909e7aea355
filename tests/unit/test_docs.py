"""The documentation: its pages are built and linked, and no code block of it is left untried.

What a block needs decides how it is tried. Those of ``RUN`` are run, by the tests named there. Commands of
``PARSED`` need machines, a cluster, a server or hours: each line goes through the command's own parser, and
the files that it names are there. Settings are read as an experiment is.
"""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

from rankdrift import registry
from rankdrift.analysis.contract import Analysis
from rankdrift.analysis.sources.subjects import IDENTITY
from rankdrift.cli.main import _parser as parser_of_commands
from rankdrift.spec import parse_spec, recipe_of

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
RUN = {
    "README.md": "e2e/test_readme.py",
    "docs/analysis.md": "e2e/test_readme.py",
    "docs/checkpoints.md": "e2e/test_readme.py",
    "docs/start.md": "e2e/test_start.py",
    "docs/api.md": "e2e/test_api.py",
    "docs/adding.md": "unit/test_adding.py",
    "docs/tasks.md": "unit/tasks/test_yaml.py",
}
PARSED = [
    *("docs/cluster.md", "docs/launching.md", "docs/scale.md", "docs/serving.md", "docs/spot.md"),
    "docs/studies.md",
]
HERE = ["docs/methods.md", "docs/metrics.md", "docs/studies.md"]
"""Whose settings or Python are tried here."""


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [code for found, code in BLOCK.findall(text) if found == language]


def commands() -> Iterator[tuple[str, str]]:
    for name in PARSED:
        for block in blocks(name, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if command := line.split("  #")[0].strip():
                    yield name, command


def test_every_document_with_code_is_tried_somewhere() -> None:
    with_code = {
        str(path.relative_to(ROOT))
        for path in documents()
        if any(language != "text" for language, _ in BLOCK.findall(path.read_text(encoding="utf-8")))
    }
    assert with_code == {*RUN, *PARSED, *HERE}
    for test in RUN.values():
        assert (ROOT / "tests" / test).exists()


def test_every_block_says_its_language() -> None:
    for path in documents():
        languages = {language for language, _ in BLOCK.findall(path.read_text(encoding="utf-8"))}
        assert languages <= {"sh", "python", "yaml", "text", "json"}, path.name


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_command_is_understood(document: str, command: str) -> None:
    words = shlex.split(command)
    while "=" in words[0]:  # of the environment
        words.pop(0)
    for word in words:
        if word.startswith(("launch/", "ds_configs/", "benchmarks/")):
            assert (ROOT / word).exists(), word
    program, arguments = words[0], words[1:]
    match program:
        case "rankdrift":
            own, _, of_training = " ".join(arguments).partition(" -- ")
            parsed(own.split())
            if of_training:
                parsed(["train", *of_training.split()])
        case "deepspeed" | "torchrun" | "python":
            launched(program, arguments)
        case "make":
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        case "pip":
            setup = configparser.ConfigParser()
            setup.read(ROOT / "setup.cfg")
            assert re.fullmatch(r"rankdrift\[(\w+)\]", arguments[1])[1] in setup["options.extras_require"]
        case "sbatch" | "until":
            subprocess.run(["bash", "-n", "-c", command], check=True)
        case _:
            pytest.fail(f"{document}: nothing here knows how to try '{command}'")


def parsed(arguments: list[str]) -> None:
    _, left = parser_of_commands().parse_known_args(arguments)
    assert not left


def launched(program: str, arguments: list[str]) -> None:
    """The launcher's own parser finds the script, and training's the rest."""
    if arguments[0].startswith("benchmarks/"):
        options = {word for word in arguments if word.startswith("--")}
        shown = subprocess.run(
            [sys.executable, arguments[0], "--help"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        assert options <= set(re.findall(r"--[\w-]+", shown))
        return
    if program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        found = parse_args(arguments)
        script, rest = found.user_script, found.user_args
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        found = get_args_parser().parse_args(arguments)
        assert found.module
        script, rest = found.training_script, found.training_script_args
    else:
        script, rest = arguments[0], arguments[1:]
    assert script in ("launch/train.py", "rankdrift.cli.train")
    parsed(["train", *rest])


def test_methods_are_settings() -> None:
    [block] = blocks("docs/methods.md", "yaml")
    methods = ["method:" + part for part in re.split(r"^method:", block, flags=re.MULTILINE)[1:]]
    assert len(methods) == 3
    for method in methods:
        parse_spec({**yaml.safe_load(method), "training": {"steps": 600}})


def test_recipes_are_recipes(tmp_path: Path) -> None:
    study, search = (yaml.safe_load(block) for block in blocks("docs/studies.md", "yaml"))
    recipe = recipe_of(study, tmp_path)
    assert len(recipe.runs()) == 2 * 2 * (1 + 5) * 3
    assert set(recipe_of({**study, **search}, tmp_path).ranges) == {"full", "lora"}


def test_metrics_of_evaluate() -> None:
    [block] = blocks("docs/metrics.md", "python")
    setup, _, last = block.strip().rpartition("\n")
    call, _, result = last.partition("  # ")
    known: dict = {}
    exec(setup, known)  # our own documentation
    assert eval(call, known) == pytest.approx(eval(result))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # raises where a link, an anchor or a page of the navigation leads nowhere
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "benchmarks", "changelog"}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_a_page_asks_for_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="(https?://[^"]+)"', text)
        assert not loaded, page.name


def test_lists_are_lists(site: Path) -> None:
    """Python-Markdown wants an empty line before a list, where other readers of Markdown do not."""
    for page in site.glob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"^(?:- |\| ).*", text, flags=re.MULTILINE), page.name


def test_names_of_outputs_are_those_that_are_written() -> None:
    text = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    analyses: list[Analysis] = [registry.load("analysis", name) for name in registry.names("analysis")]
    tables = {table for analysis in analyses for table in analysis.tables}
    for row in rows(sections["Tables"]):
        assert set(re.findall(r"`([\w]+)`", row)) & tables, row
    for row in rows(sections["Figures"]):
        named = re.findall(r"`(\w+)`", row)
        assert named, row
        assert set(named) <= set(registry.names("figure")), row
    columns = {c for analysis in analyses for of in analysis.columns.values() for c in of} | set(IDENTITY)
    for row in rows(sections["Columns"]):
        for name in re.findall(r"`([\w*]+)`", row):
            pattern = re.compile(name.replace("*", r"\w+"))
            assert any(map(pattern.fullmatch, columns | tables)), name


def rows(section: str) -> list[str]:
    """The right-hand cells of a section's table."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 3
    return [line.split("|")[2] for line in lines[2:]]
