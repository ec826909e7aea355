"""Run ``rankdrift check`` with planted defects, each in a fork of one process: Python starts once.

Called with a JSON file: {"cases": [{"name", "defect" (a function below, or none), "arguments"}], "folder"}.
What a case prints goes to ``<folder>/<name>.out`` and ``.err``, its exit code to ``<name>.code``. A case has
one rank, forked as well, so that what is planted is in force there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.data.dataset import TrainingData
from rankdrift.data.token_table import TaskTables, TokenTable
from rankdrift.methods import full, lora
from rankdrift.sanity import examination, loaded_rows, reloaded_export, trying
from rankdrift.sanity.rank import be_a_rank
from rankdrift.training import engine, journal, run

DEFECTS: dict[str, Callable[[], None]] = {}
"""Name -> what plants it."""


def defect(plant: Callable[[], None]) -> Callable[[], None]:
    DEFECTS[plant.__name__] = plant
    return plant


def changed_method(module: Any, **changes: Any) -> None:
    module.METHOD = dataclasses.replace(module.METHOD, **changes)


@defect
def norms_train_as_well() -> None:
    def prepare(*given: Any) -> Any:
        model = lora.prepare(*given)
        for name, param in model.named_parameters():
            param.requires_grad_(param.requires_grad or "layernorm" in name)
        return model

    changed_method(lora, prepare=prepare)


@defect
def rank_pattern_is_ignored() -> None:
    def prepare(model: Any, settings: Any, base: Path) -> Any:
        return lora.prepare(model, settings.model_copy(update={"rank_pattern": {}}), base)

    changed_method(lora, prepare=prepare)


def with_tables(change: Callable[[TokenTable], TokenTable]) -> None:
    load = loaded_rows.load_training_data

    def changed(*given: Any) -> TrainingData:
        data = load(*given)
        return dataclasses.replace(data, train=TaskTables([change(table) for table in data.train.tables]))

    loaded_rows.load_training_data = changed


def at(values: np.ndarray, index: int, value: int) -> np.ndarray:
    changed = np.array(values)
    changed[index] = value
    return changed


@defect
def foreign_token() -> None:
    # the second row's first token
    with_tables(lambda t: dataclasses.replace(t, input_ids=at(t.input_ids, int(t.offsets[1]), 258)))


@defect
def label_out_of_range() -> None:
    with_tables(lambda t: dataclasses.replace(t, labels=at(t.labels, 3, 4)))


@defect
def no_target() -> None:
    with_tables(lambda t: dataclasses.replace(t, targets=at(t.targets, 5, 0)))


@defect
def wrong_label() -> None:
    with_tables(lambda t: dataclasses.replace(t, labels=(np.array(t.labels) + 1) % 4))


def with_model(change: Callable[[Any], None]) -> None:
    """Change the model that is trained, which the check of the method does not see."""
    prepare = run.prepared_model

    def prepared(setup: Any) -> Any:
        model = prepare(setup)
        change(model)
        return model

    run.prepared_model = prepared


def projection(model: Any) -> torch.nn.Module:
    return next(module for name, module in model.named_modules() if name.endswith("layers.1.mlp.up_proj"))


@defect
def projection_is_cut_off() -> None:
    with_model(lambda m: projection(m).register_forward_hook(lambda module, given, out: out.detach()))


@defect
def gradient_is_infinite() -> None:
    def make_infinite(model: Any) -> None:
        param = next(param for param in projection(model).parameters() if param.requires_grad)
        param.register_hook(lambda gradient: gradient * torch.inf)

    with_model(make_infinite)


@defect
def frozen_gets_a_gradient() -> None:
    begin = engine.Engine.__init__

    def changed(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        for name, param in self.module.named_parameters():
            param.requires_grad_(param.requires_grad or name.endswith("model.norm.weight"))

    engine.Engine.__init__ = changed


@defect
def forward_fails() -> None:
    def fail(module: Any, given: Any, out: Any) -> None:
        raise RuntimeError("no kernel for this")

    with_model(lambda m: projection(m).register_forward_hook(fail) if hasattr(m, "peft_config") else None)


@defect
def rank_is_killed() -> None:
    def kill(module: Any, given: Any, out: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with_model(lambda m: projection(m).register_forward_hook(kill) if hasattr(m, "peft_config") else None)


@defect
def loss_is_not_told_to_tensorboard() -> None:
    show = journal.Journal._show

    def all_but_losses(self: Any, step: int, values: dict[str, float]) -> None:
        show(self, step, {name: value for name, value in values.items() if not name.endswith("/loss")})

    journal.Journal._show = all_but_losses  # type: ignore[method-assign,assignment]


@defect
def a_line_is_lost() -> None:
    append = files.append_jsonl

    def changed(handle: Any, row: Any) -> None:
        if row.get("split") != "train" or row["step"] != 2:
            append(handle, row)

    files.append_jsonl = changed


@defect
def another_loss_is_logged() -> None:
    append = files.append_jsonl

    def changed(handle: Any, row: Any) -> None:
        append(handle, {**row, "loss": row["loss"] * (1 + 1e-12)} if row.get("split") == "train" else row)

    files.append_jsonl = changed


@defect
def adapter_is_drawn_without_the_seed() -> None:
    def prepare(*given: Any) -> Any:
        torch.seed()
        return lora.prepare(*given)

    changed_method(lora, prepare=prepare)


@defect
def seed_is_ignored() -> None:
    train = examination.train

    def changed(spec: Any, *given: Any, **named: Any) -> Any:
        return train(spec.model_copy(update={"seed": 7}), *given, **named)

    examination.train = changed
    examination._layout = lambda spec: LAYOUT(spec.model_copy(update={"seed": 7}))


LAYOUT = examination._layout


@defect
def other_alpha_is_exported() -> None:
    def save_config(model: Any, folder: Path) -> None:
        lora.save_config(model, folder)
        config = files.read_json(folder / "adapter_config.json")
        files.write_json(folder / "adapter_config.json", {**config, "lora_alpha": config["lora_alpha"] / 2})

    changed_method(lora, save_config=save_config)


@defect
def export_is_cut() -> None:
    consolidate = reloaded_export.consolidate

    def changed(*given: Any) -> Path:
        folder = consolidate(*given)
        weights = next(folder.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
        return folder

    reloaded_export.consolidate = changed


@defect
def another_weight_is_trained_than_exported() -> None:
    def save_config(model: Any, folder: Path) -> None:
        full.METHOD_SAVE(model, folder)
        config = files.read_json(folder / "config.json")
        files.write_json(folder / "config.json", {**config, "rms_norm_eps": 0.1})

    full.METHOD_SAVE = full.METHOD.save_config  # type: ignore[attr-defined]
    changed_method(full, save_config=save_config)


def one_rank_here(ranks: int, command: Sequence[str]) -> int:
    """Stand in for ``launcher.run_ranks``: fork a rank, and wait for it."""
    child = os.fork()
    if child == 0:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT="0")
        os._exit(be_a_rank(Path(command[-1])))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_case(case: dict[str, Any], folder: Path) -> None:
    """Run one case in a fork of this process."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        for number, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{case['name']}.{ending}", os.O_WRONLY | os.O_CREAT), number)
        trying.run_ranks = one_rank_here
        if case.get("defect"):
            DEFECTS[case["defect"]]()
        status = main(["check", "--json", *case["arguments"]])
        sys.stdout.flush()
        (folder / f"{case['name']}.code").write_text(str(status))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    for each in job["cases"]:
        run_case(each, Path(job["folder"]))
