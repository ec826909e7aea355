"""A study's folder as a finished study leaves it, without training: plausible random numbers in real files.

    python benchmarks/made_study.py FOLDER --runs 100 --checkpoints 20 --matrices 224

Runs have what a run writes (status, spec, metrics, probes, scores with items, exports of no weight), and
``tables/.parts`` what every analysis would have stored of them, with the fingerprints of these very files:
``rankdrift analyze --study`` finds all of it up to date and has it to join. Columns are those that the
analyses declare. Arms differ, seeds scatter; nothing else in the numbers means anything.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from rankdrift import files, registry
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.engine import PARTS
from rankdrift.analysis.mathematics.spectral.task_arithmetic import PairSums
from rankdrift.analysis.measures.checkpoint_gradients import Settings as Gradients
from rankdrift.analysis.measures.drift import Settings as Drift
from rankdrift.analysis.measures.probes import COLUMNS as PROBES
from rankdrift.analysis.measures.spectra import RANKS, Settings
from rankdrift.analysis.parts import Part, StudyPart
from rankdrift.analysis.sources.recorded_gradients import COLUMNS as GRADIENTS
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.spec import recipe_of
from rankdrift.studies.cells import CONFIGS, Cell, cells_of, write_cells
from rankdrift.studies.study_checkpoints import study_params, study_subjects

Frame = pd.DataFrame
MODULES = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "o_proj": "attention"}
MODULES |= {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}
RANK = 8
STEPS = 100
"""Optimizer steps from one checkpoint to the next, each of which is logged."""
ITEMS = 400
"""Items of a task that are scored."""
SIDES = ("left", "right")
TEXT = {"reason": "", "parameter": "", "stored_dtype": "float32"}
METRICS = {  # task -> role, metrics: higher is better, best
    "topic": ("trained", {"accuracy": (True, 1.0), "f1": (True, 1.0)}),
    "general_text": ("text", {"nll": (False, None), "perplexity": (False, None)}),
    "topic_prompts": ("text", {"nll": (False, None), "perplexity": (False, None)}),
}
for _, _metrics in (METRICS["general_text"], METRICS["topic_prompts"]):
    _metrics |= {"kl_from_base": (False, None), "kl_to_base": (False, None), "top1_agreement": (True, None)}
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How large a study is."""

    runs: int = 100
    seeds: int = 5
    """Of an arm; runs of one arm differ in nothing else."""
    checkpoints: int = 20
    matrices: int = 224
    """Seven a block."""
    width: int = 64
    """Singular values of a matrix; real ones have 576 to 4096, and a table that is as many times longer."""

    @property
    def arms(self) -> int:
        """Arms of the study."""
        return self.runs // self.seeds

    @property
    def blocks(self) -> int:
        """Blocks of the model."""
        return self.matrices // len(MODULES)


def make(root: Path, sizes: Sizes) -> StudyLayout:
    """Make the study in a folder that is empty or not there."""
    with mock.patch("os.fsync"):  # 20,000 files, which need not survive a power cut
        cells = _planned(root, sizes)
        study, generator = cells[0].study, np.random.default_rng(SEED)
        _score(RunLayout(study.base), [0], None, generator)
        for cell in cells:
            _make_run(cell, sizes, generator)
        _store_parts(study, cells[0], sizes, generator)
    return study


def _planned(root: Path, sizes: Sizes) -> list[Cell]:
    """Write the recipe and its cells: a fifth of the arms full fine-tuning, the others LoRA."""
    full = max(1, sizes.arms // 5)
    arms: dict[str, Any] = {
        f"full-{n}": {"method": {"name": "full"}, "training": {"learning_rate": 1e-5 * (n + 1)}}
        for n in range(full)
    }
    for n in range(sizes.arms - full):
        rates = {"learning_rate": 1e-4 * (n + 1)}
        arms[f"lora-r{RANK}-{n:02d}"] = {"method": {"name": "lora", "rank": RANK}, "training": rates}
    tree = {
        "study": root.name,
        "output": str(root.parent),
        "model": {"name": "tiny"},
        "data": {"tasks": ["topic"]},
        "training": {"steps": STEPS * sizes.checkpoints, "save_every": STEPS, "probe_every": STEPS},
        "analysis": {"workers": 1},
        "arms": arms,
        "seeds": list(range(sizes.seeds)),
    }
    recipe = recipe_of(tree, Path())
    cells = cells_of(recipe, CONFIGS / "zero2.json", 1)
    write_cells(StudyLayout(root), recipe, cells)
    return cells


def _make_run(cell: Cell, sizes: Sizes, generator: np.random.Generator) -> None:
    """Write what training, export and scoring leave of a run."""
    run, spec = cell.run, cell.spec
    last = STEPS * sizes.checkpoints
    stages = {"train": 3600.0, "consolidate": 60.0, "score": 300.0, "represent": 60.0, "measure": 900.0}
    record = {"state": "done", "stage": "", "attempts": 1, "node": "elsewhere", "digest": cell.digest}
    files.write_json(run.cell, record | {"seconds": stages, "error": None, "time": files.timestamp()})
    trained = {"state": "finished", "step": last, "steps": last, "time": files.timestamp()}
    counts = {"trainable_parameters": 4_884_480, "parameters": 134_515_008, "training_seconds": 3600.0}
    files.write_json(run.status, trained | counts)
    files.write_json(run.spec, spec.as_dict())
    files.write_json(run.environment, {**files.environment(), "command": ["rankdrift", "study", "run"]})
    files.write_json(run.ds_config, files.read_json(cell.config))
    files.write_json(run.facts, {"adapted": sizes.matrices if spec.method.adapter_rank else 0, "data": {}})
    files.write_text(run.metrics, "".join(map(files.json_line, _logged(last, generator))))
    for name, table in _probed(spec.method.adapter_rank, sizes, generator).items():
        files.write_parquet(run.probe(name), table)
    effect = _effect(cell)
    _score(run, [STEPS * (n + 1) for n in range(sizes.checkpoints)], effect, generator)
    for n in range(sizes.checkpoints):
        export = run.export(STEPS * (n + 1))
        files.write_json(export / "provenance.json", {"run": spec.run_name, "dtype": "fp32"})
        files.write_json(export / "adapter_config.json", {"r": RANK, "of": [spec.run_name, n]})


def _effect(cell: Cell) -> float:
    """Return how far an arm learns and forgets, from 0.2 to 0.5: the same for all its seeds."""
    return 0.2 + 0.3 * (int(files.digest_text(cell.spec.arm)[:4], 16) / 0xFFFF)


def _logged(steps: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    drawn = generator.random((steps, 4))
    rows: list[dict[str, Any]] = [{"step": 0, "split": "validation", "loss": 2.5}]
    for step, (loss, norm, speed, wait) in enumerate(drawn.tolist(), start=1):
        done = step / steps
        value = 0.5 + 2 * (1 - done) ** 2 + 0.1 * loss
        parts = {"data": 0.001, "forward": 0.5, "backward": 0.9, "update": 0.2, "exchange": 0.05}
        rows.append(
            {"step": step, "split": "train", "loss": value, "learning_rate": 1e-4 * (1 - done)}
            | {"gradient_norm": 1 + norm, "tokens_per_second": 900 + 100 * speed, "padding": 0.0}
            | {"teraflops": 0.1, "mfu": 0.4, "memory_gib": 2.5, "seconds": 1.7 + 0.2 * wait}
            | {f"seconds_{part}": seconds for part, seconds in parts.items()}
        )
        if step % STEPS == 0:
            rows += [
                {"step": step, "split": split, "loss": value} for split in ("validation/topic", "validation")
            ]
    return rows


@functools.cache
def _places(blocks: int, factors: tuple[str, ...], parameters: bool) -> Frame:
    """Return the places of gradients and updates of one step: of matrices, cells, layers, groups and all."""
    groups = tuple(dict.fromkeys(MODULES.values()))
    rows = [("cell", layer, group, "") for layer in range(blocks) for group in groups]
    rows += [("layer", layer, "", "") for layer in range(blocks)] + [("group", -1, g, "") for g in groups]
    if parameters:
        rows += [
            ("parameter", layer, group, f"model.layers.{layer}.{module}.weight")
            for layer in range(blocks)
            for module, group in MODULES.items()
        ]
    rows = [(*row, factor) for row in rows for factor in factors]
    rows.append(("global", -1, "", "", ""))
    return Frame(rows, columns=["level", "layer", "group", "parameter", "factor"])


def _probed(rank: int, sizes: Sizes, generator: np.random.Generator) -> dict[str, Frame]:
    """Return the tables of the probes, probed at the checkpoints."""
    factors, steps = (
        (("A", "B") if rank else ("",)),
        Frame({"step": STEPS * np.arange(1, sizes.checkpoints + 1)}),
    )
    found = {}
    for name in ("gradients", "drift", "updates", "noise"):
        columns = GRADIENTS if name == "gradients" else PROBES[f"live_{name}"]
        own = ("",) if name == "drift" else factors
        keys = steps.merge(_places(sizes.blocks, own, name != "noise"), how="cross").assign(phase=0)
        declared = ["step", *dict.fromkeys(["phase", *columns])]
        found[name] = _filled(declared, keys, generator, numel=4096, micro_batches=4, targets=512)
    return found


def _filled(columns: Sequence[str], keys: Frame, generator: np.random.Generator, /, **known: Any) -> Frame:
    """Return the keys with all the columns: those that are known, texts, and random numbers near 1."""
    given = TEXT | known
    unknown = [name for name in columns if name not in keys.columns and name not in given]
    drawn = Frame(0.5 + generator.random((len(keys), len(unknown))), columns=unknown, index=keys.index)
    fixed = Frame({name: given[name] for name in columns if name in given and name not in keys}, keys.index)
    return pd.concat([keys, fixed, drawn], axis=1)[list(columns)]


def _score(
    run: RunLayout, steps: Sequence[int], effect: float | None, generator: np.random.Generator
) -> None:
    """Write scores of every step, and the items of the last one, which are what is compared."""
    luck = 0.02 * generator.standard_normal()
    for step in steps:
        done = 0.0 if effect is None else (effect + luck) * step / steps[-1]
        tasks = {task: _result(task, done) for task in METRICS}
        files.write_json(run.score(step), {"step": step, "split": "test", "tasks": tasks, "environment": {}})
    right = (generator.random(ITEMS) < 0.4 + done).astype(float)
    items = {"topic": {"accuracy": right, "f1": right, "prompt_digest": [f"{n:016x}" for n in range(ITEMS)]}}
    for text in ("general_text", "topic_prompts"):
        drawn = generator.random((4, ITEMS // 8))
        sums = {"nll": 300 + drawn[0], "kl_from_base": drawn[1], "kl_to_base": drawn[2]}
        items[text] = sums | {"top1_agreement": 90 + drawn[3], "tokens": [100] * (ITEMS // 8)}
    for task, columns in items.items():
        table = Frame(columns).rename_axis("index").reset_index()
        files.write_parquet(run.score_items(steps[-1], task), table)


def _result(task: str, done: float) -> dict[str, Any]:
    role, metrics = METRICS[task]
    values = {
        "nll": 3.1 + 0.1 * done,
        "perplexity": float(np.exp(3.1 + 0.1 * done)),
        "top1_agreement": 1 - done,
    }
    values |= dict.fromkeys(("kl_from_base", "kl_to_base"), 0.1 * done)
    return {
        "role": role,
        "n": ITEMS,
        "metrics": {
            metric: {"value": values.get(metric, 0.4 + done), "stderr": 0.02}
            | {"higher_is_better": higher, "best": best}
            for metric, (higher, best) in metrics.items()
        },
    }


def _store_parts(study: StudyLayout, cell: Cell, sizes: Sizes, generator: np.random.Generator) -> None:
    """Store what every analysis has of every checkpoint and run, and of pairs of runs."""
    subjects = study_subjects(study)
    params = study_params(study, cell.spec, subjects[0].base)
    analyses: list[Analysis] = [registry.load("analysis", name) for name in registry.names("analysis")]
    for analysis in analyses:
        folder = study.tables / PARTS / analysis.name
        if analysis.per == "study":
            if analysis.split:
                part = StudyPart(analysis, tuple(subjects), folder)
                part.store({"sums": _pair_sums(sizes, generator)}, part.dependencies(params))
            continue
        first = {subject.run: subject for subject in reversed(subjects)}  # whose step a run's part names
        for subject in subjects if analysis.per == "checkpoint" else first.values():
            part = Part(analysis, subject, folder)
            part.store(_rows(part, params, sizes, generator), part.dependencies(params))


def _rows(part: Part, params: Params, sizes: Sizes, generator: np.random.Generator) -> dict[str, Frame]:
    """Return the rows of one part: of a run those that its files give, of a checkpoint made ones."""
    analysis = part.analysis
    if analysis.per == "run":
        assert analysis.compute is not None
        return analysis.compute(part.subject, params)
    return MADE[analysis.name](analysis, part.subject, sizes, generator)


@functools.cache
def _matrices(sizes: Sizes) -> Frame:
    places = itertools.product(range(sizes.blocks), MODULES)
    return Frame(places, columns=["layer", "module"])


@functools.cache
def _crossed(sizes: Sizes, **values: Sequence[Any]) -> Frame:
    return _matrices(sizes).merge(
        Frame(itertools.product(*values.values()), columns=list(values)), how="cross"
    )


def _spectra(
    analysis: Analysis, subject: Subject, sizes: Sizes, generator: np.random.Generator
) -> dict[str, Frame]:
    grid, width = Settings(), sizes.width
    if subject.tuned is None:
        keys = _crossed(sizes, matrix=("base",), index=tuple(range(width)))
        return {"singular_values": _values(keys, generator)}
    update = RANK if subject.rank else width
    places = (*(("tuned", n) for n in range(width)), *(("update", n) for n in range(update)))
    of_values = _crossed(sizes, place=places)
    matrix, index = zip(*of_values["place"], strict=True)
    counts = tuple(k for k in grid.vector_counts if k <= width)
    subspaces = _crossed(sizes, side=SIDES, k=counts)
    intruding = _crossed(sizes, side=SIDES, threshold=grid.intruder_thresholds, k=counts)
    declared = analysis.columns
    return {
        "svd_analysis_results": _of_matrices(
            list(declared["svd_analysis_results"]), subject, sizes, generator
        ),
        "singular_values": _values(of_values.assign(matrix=matrix, index=index), generator),
        "subspace_drift": _filled(list(declared["subspace_drift"]), subspaces, generator, reliable=True),
        "intruder_dimensions": _filled(
            list(declared["intruder_dimensions"]),
            intruding,
            generator,
            count=np.where(intruding["threshold"] > 0.6, 1, 0),
            count_random=intruding["k"].astype(float),
            cosine_random=0.1,
        ),
    }


def _values(keys: Frame, generator: np.random.Generator) -> Frame:
    sigma = (1 + generator.random(len(keys)) / 10) * (1 + keys["index"]) ** -0.6
    return keys.assign(sigma=sigma)[["layer", "module", "matrix", "index", "sigma"]]


def _of_matrices(columns: list[str], subject: Subject, sizes: Sizes, generator: np.random.Generator) -> Frame:
    keys, width, lora = _matrices(sizes), sizes.width, bool(subject.rank)
    done = subject.step / (STEPS * sizes.checkpoints)
    size = (0.02 if lora else 0.004) * done * (0.9 + 0.2 * generator.random(len(keys)))
    known: dict[str, Any] = dict.fromkeys(("rows", "columns", "update_rows", "update_columns"), width)
    for name, bound in (("base", width), ("tuned", width), ("update", RANK if lora else width)):
        known |= {f"{name}_{rank}": bound * (0.5 + 0.2 * generator.random(len(keys))) for rank in RANKS}
        known |= {f"{name}_{rank}_null": 0.8 * bound for rank in RANKS}
    known |= {"base_norm": 8.0, "update_norm": 8 * size, "relative_update_norm": size, "sigma1_ratio": size}
    known |= {f"intruders_{side}": int(lora) for side in SIDES}
    known |= {"bf16_floor_ratio": size / 0.0017, "noise_floor_ratio": np.inf, "spearman_sigma": 1 - size}
    known["reason"] = "dW is a product of factors: no bulk of noise to fit" if lora else ""
    return _filled(columns, keys, generator, **known)


def _drift(
    analysis: Analysis, subject: Subject, sizes: Sizes, generator: np.random.Generator
) -> dict[str, Frame]:
    if subject.tuned is None:
        return {}
    layers, done = range(sizes.blocks + 1), subject.step / (STEPS * sizes.checkpoints)
    names, features = ("mean", "last_token", "token"), ("all", "without_top")
    keys = Frame(itertools.product(layers, names, features), columns=["layer", "representation", "features"])
    pairs = Frame(itertools.product(layers, layers), columns=["base_layer", "tuned_layer"])
    change = 0.05 * done * keys["layer"] / sizes.blocks * (0.8 + 0.4 * generator.random(len(keys)))
    rows = Drift().rows
    columns = {table: list(declared) for table, declared in analysis.columns.items()}
    drift = _filled(columns["drift_metrics"], keys, generator, cka=1 - change, cka_stderr=change / 8, n=rows)
    cka = 1 - abs(pairs["base_layer"] - pairs["tuned_layer"]) / sizes.blocks
    return {
        "drift_metrics": drift,
        "layer_similarity": _filled(columns["layer_similarity"], pairs, generator, cka=cka, n=rows),
    }


def _checkpoint_gradients(
    analysis: Analysis, subject: Subject, sizes: Sizes, generator: np.random.Generator
) -> dict[str, Frame]:
    spaces = {"weight": ("",)} | ({"factor": ("A", "B"), "image": ("",)} if subject.rank else {})
    places = [_places(sizes.blocks, factors, False).assign(space=name) for name, factors in spaces.items()]
    keys = pd.concat(places, ignore_index=True).assign(task="topic", other_task="topic")
    rows = Gradients().rows
    known = {"n": rows, "n_other": rows, "shards": 8, "numel": 4096, "conflict": False}
    return {
        table: _filled(list(columns), keys, generator, **known) for table, columns in analysis.columns.items()
    }


def _vectors(
    analysis: Analysis, subject: Subject, sizes: Sizes, generator: np.random.Generator
) -> dict[str, Frame]:
    if subject.tuned is None or subject.rank:  # LoRA leaves norms as they are
        return {}
    names = [
        f"model.layers.{layer}.{norm}.weight" for layer in range(sizes.blocks) for norm in ("one", "two")
    ]
    keys = Frame({"parameter": names, "layer": np.repeat(np.arange(sizes.blocks), 2), "group": "norm"})
    declared = list(analysis.columns["vector_updates"])
    return {"vector_updates": _filled(declared, keys, generator, numel=sizes.width)}


MADE = {
    "spectra": _spectra,
    "drift": _drift,
    "vectors": _vectors,
    "checkpoint_gradients": _checkpoint_gradients,
}
"""Analysis of a checkpoint -> what makes up its tables."""


def _pair_sums(sizes: Sizes, generator: np.random.Generator) -> Frame:
    """Return the sums over every matrix of all pairs of last checkpoints, and of each run's next ones."""
    pairs = sizes.runs * (sizes.runs - 1) // 2 + sizes.runs * (sizes.checkpoints - 1)
    keys = _matrices(sizes).merge(Frame({"pair": range(pairs)}), how="cross").assign(base=0)
    names = [*("base", "layer", "module", "pair"), *PairSums.__dataclass_fields__]
    return _filled(names, keys, generator, null_variance=1e-6, shared=1000, conflicts=300)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Declare the sizes of a study as options."""
    for name, kind in (
        ("runs", "R"),
        ("seeds", "S"),
        ("checkpoints", "C"),
        ("matrices", "M"),
        ("width", "W"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(Sizes, name), metavar=kind)


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """Return the sizes that are asked for; refuse those that make no study."""
    sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__dataclass_fields__})
    if sizes.runs % sizes.seeds or sizes.arms < 2:
        raise SystemExit(
            f"--runs {sizes.runs}: give a multiple of --seeds {sizes.seeds}, of two arms or more"
        )
    if sizes.matrices % len(MODULES) or not sizes.matrices:
        raise SystemExit(f"--matrices {sizes.matrices}: give a multiple of {len(MODULES)}")
    return sizes


def main() -> None:
    """Make a study, and say how large its parts are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the study's folder, which must not be there")
    add_sizes(parser)
    arguments = parser.parse_args()
    root = arguments.folder.resolve()
    if root.exists():
        raise SystemExit(f"{root}: is there already; give a new folder")
    sizes = sizes_of(arguments)
    try:
        make(root, sizes)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)  # half a study is none
        raise
    found = [path.stat() for path in (root / "tables" / PARTS).rglob("*") if path.is_file()]
    print(json.dumps({"part_files": len(found), "part_bytes": sum(stat.st_size for stat in found)}))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
