"""docs/adding.md, walked through: its example of each extension point is found by its name, and works."""

from __future__ import annotations

import importlib
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankdrift import registry
from rankdrift.analysis.contract import Params
from rankdrift.analysis.engine import run_analyses
from rankdrift.analysis.formats import MISSING, percent
from rankdrift.analysis.report.content import compose
from rankdrift.analysis.report.grids import Grid
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.sources.subjects import Subject, base_subject
from rankdrift.data.dataset import load_rows
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.models.base import load_model, load_tokenizer
from rankdrift.spec import ModelSpec, analysis_settings, parse_spec
from rankdrift.tasks import Example
from rankdrift.tasks.kinds import Codec, Likelihood

BLOCK = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)
POINTS = {
    "tasks": "task",
    "kinds": "kind",
    "metrics": "metric",
    "methods": "method",
    "probes": "probe",
    "measures": "analysis",
}
POINTS |= {"figures": "figure"}


@pytest.fixture(scope="module")
def added(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Extension point -> name, of the files in the document, which lie in a folder of their own."""
    found = {}
    paths: list[tuple[Any, str]] = []
    for number, (path, code) in enumerate(BLOCK.findall((root / "docs" / "adding.md").read_text())):
        folder = tmp_path_factory.mktemp(f"added{number}")
        (folder / Path(path).name).write_text(code)
        package = ".".join(Path(path).parent.parts).removeprefix("src.")
        package = package if package.startswith("rankdrift") else f"rankdrift.{package}"
        module = importlib.import_module(package)
        module.__path__.append(str(folder))
        paths.append((module, str(folder)))
        found[POINTS[package.rpartition(".")[2]]] = Path(path).stem
    yield found
    for module, folder in paths:
        module.__path__.remove(folder)
    for point, name in found.items():
        for package in registry.POINTS[point][1]:
            sys.modules.pop(f"{package}.{name}", None)


def test_there_is_one_of_each_and_each_is_found_by_its_name(added: dict[str, str]) -> None:
    assert set(added) == set(registry.POINTS)
    for point, name in added.items():
        assert name in registry.names(point)
        assert registry.load(point, name).name == name


def test_the_kind_asks_what_it_teaches(added: dict[str, str], tiny: Path) -> None:
    task = replace(registry.load("task", added["task"]), kind=registry.load("kind", added["kind"]))
    examples = [Example(f"Is {number} odd?", " yes", number % 2) for number in range(4)]
    codec = Codec(load_tokenizer(tiny), 32)
    rows, items = task.kind.encode(task, examples, codec), task.kind.items(task, examples, codec)
    assert [row.number for row in rows] == [1, 3]
    (asked,) = items[1].requests
    ((first, _),) = rows[0].carries
    assert (tuple(rows[0].ids[:first]), tuple(rows[0].ids[first:])) == (asked.context, asked.continuation)
    assert codec.decoded(asked.continuation) == " yes"
    said = [[Likelihood(math.log(share), False)] for share in (0.9, 0.1)]
    outcomes = [task.kind.outcome(task, examples[1], answers) for answers in said]
    assert [outcome.predictions["choice"] for outcome in outcomes] == [1, 0]


def test_the_task_trains_and_its_metric_scores(added: dict[str, str], tiny: Path) -> None:
    spec = parse_spec({"data": {"tasks": [added["task"]]}})
    rows = load_rows(spec, "train", load_tokenizer(tiny))
    assert [row.label for row in rows[:4]] == [0, 1, 0, 1]
    metric = registry.load("metric", registry.load("task", added["task"]).metrics[0])
    assert metric.compute([0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx(0.75)


def test_the_method_trains_what_it_says(added: dict[str, str], tiny: Path) -> None:
    spec = parse_spec({"method": {"name": added["method"], "final": False}})
    method = registry.load("method", added["method"])
    model = method.prepare(load_model(tiny, ModelSpec()), spec.method, tiny)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("norm" in name and ".layers." in name for name in trained)
    with pytest.raises(UserError, match=r"unknown key 'method\.finl'.*did you mean 'final'"):
        parse_spec({"method": {"name": added["method"], "finl": False}})


def test_the_probe_measures(added: dict[str, str]) -> None:
    shards = [SimpleNamespace(values=torch.ones(3)), SimpleNamespace(values=torch.ones(4))]
    trainer: Any = SimpleNamespace(engine=SimpleNamespace(gradient_shards=lambda: shards))
    sums = registry.load("probe", added["probe"])(trainer).before_update()
    assert sums.table(sums.own.numpy())["elements"].tolist() == [7]


def test_the_analysis_makes_its_table_which_the_figure_draws_and_the_report_states(
    added: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    tuned = shutil.copytree(tiny, tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][:40] += 1
    weights["model.layers.0.mlp.up_proj.weight"][:40] += 0.25
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    spec = parse_spec({"analysis": {added["analysis"]: {"threshold": 0.5}}})
    subjects = [base_subject(tiny, None), Subject("run", "full", 0, (), 1, 3, base=tiny, tuned=tuned)]
    params = Params(cache=tmp_path / "cache", settings=analysis_settings(spec.analysis))
    (path,) = run_analyses([added["analysis"]], subjects, tmp_path / "tables", params, lambda *_: None)
    table = pd.read_parquet(path)
    moved = table[table["share"] > 0]
    assert moved[["matrix", "share"]].to_numpy().tolist() == [["layer 1 up_proj", 0.25]]
    canvas = registry.load("figure", added["figure"]).render({"moved": table})
    assert len(canvas.axes[0].patches) == len(table)
    study = Study(StudyLayout(tmp_path), recipe={}, tables={"moved": table}, metas={"moved": {}}, runs=())
    content = compose(study, [], [])
    share = percent(table["share"].mean())
    assert content.last_checkpoints == Grid(
        ("run", "step", "moved"), (("base", MISSING, MISSING), ("run", "3", share))
    )
    evidence, ((topic,),) = content.evidence, [section.topics for section in content.sections]
    assert (evidence.title, topic.title) == ("Evidence", "What moved")
    headers = ("run", "matrices", "entries that moved")
    caption = "What moved, means over a run's matrices"
    assert topic.parts == (Grid(headers, (("run", str(len(table)), share),), caption),)
