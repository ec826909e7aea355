"""Compare methods on tasks without a recipe: rankdrift run --tasks rte sst2+mrpc --methods lora full.

Each task is a group of its own, in which methods are compared; tasks joined by + are learnt together. It is
a study like any other: the same command goes on where it was stopped, and 'rankdrift study status' shows it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankdrift.cli.plan import add_machine
from rankdrift.cli.study import add_carrying_out, carry_out_recipe
from rankdrift.errors import UserError
from rankdrift.spec import read_tree, recipe_of

NAME = "run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help="TASK, or TASK+TASK together"
    )
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], metavar="METHOD", help="lora full")
    parser.add_argument(
        "--ranks", dest="adapter_ranks", nargs="+", default=["8"], metavar="R", help="ranks of adapters (8)"
    )
    parser.add_argument("--seeds", nargs="+", default=["42"], metavar="SEED", help="seeds (42)")
    parser.add_argument("--experiment", type=Path, help="recipe with all other settings (its arms are left)")
    add_machine(parser, "--processes")
    add_carrying_out(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Carry it out."""
    _give_back_overrides(arguments)
    tree = read_tree(arguments.experiment) if arguments.experiment else {}
    folder = arguments.experiment.parent if arguments.experiment else Path()
    recipe = recipe_of(_tree(tree, arguments), folder, arguments.overrides)
    return carry_out_recipe(recipe, arguments)


def _give_back_overrides(arguments: argparse.Namespace) -> None:
    """Take what has a = out of lists, which take whatever stands behind them, and read their numbers."""
    for name in ("tasks", "methods", "adapter_ranks", "seeds"):
        given = getattr(arguments, name)
        arguments.overrides += [word for word in given if "=" in word]
        setattr(arguments, name, [word for word in given if "=" not in word])
    for option, name in (("ranks", "adapter_ranks"), ("seeds", "seeds")):
        words = getattr(arguments, name)
        for word in words:
            if not word.isdecimal():
                raise UserError(f"--{option} {word}: not a whole number; give some, as in --{option} 4 8")
        setattr(arguments, name, [int(word) for word in words])


def _tree(tree: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of what was asked for."""
    from rankdrift import registry
    from rankdrift.spec.sections import method_section

    arms: dict[str, Any] = {}
    for name in arguments.methods:
        registry.require("method", name)
        arms[name] = {"method": {"name": name}}
        if "rank" in method_section(name).model_fields:
            arms[name]["grid"] = {"method.rank": arguments.adapter_ranks}
    tasks = [task.split("+") for task in arguments.tasks]
    data = {"data.tasks": tasks} if len(tasks) > 1 else {}
    shared = {key: value for key, value in tree.items() if key not in ("arms", "grid", "seeds", "search")}
    if len(tasks) == 1:
        shared = {**shared, "data": {**shared.get("data", {}), "tasks": tasks[0]}}
    return {"study": NAME, **shared, "arms": arms, "seeds": arguments.seeds, "grid": data}
