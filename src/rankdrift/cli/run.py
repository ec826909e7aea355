"""Compare methods on tasks without a recipe: rankdrift run --tasks rte sst2+mrpc --methods lora full.

Each task is a group of its own, in which methods are compared; tasks joined by + are learnt together. It is
a study like any other: the same command goes on where it was stopped, and 'rankdrift study status' shows it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankdrift.cli.study import add_carrying_out, add_machine, carry_out_recipe
from rankdrift.spec import read_tree, recipe_of

NAME = "run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help="TASK, or TASK+TASK together"
    )
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], metavar="METHOD", help="lora full")
    parser.add_argument(
        "--ranks", nargs="+", type=int, default=[8], metavar="R", help="ranks of adapters (8)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], metavar="SEED", help="seeds (42)")
    parser.add_argument("--experiment", type=Path, help="recipe with all other settings (its arms are left)")
    add_machine(parser, "--processes")
    add_carrying_out(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Carry it out."""
    tree = read_tree(arguments.experiment) if arguments.experiment else {}
    folder = arguments.experiment.parent if arguments.experiment else Path()
    recipe = recipe_of(_tree(tree, arguments), folder, arguments.overrides)
    return carry_out_recipe(recipe, arguments)


def _tree(tree: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of what was asked for."""
    from rankdrift import registry
    from rankdrift.spec.sections import method_section

    arms: dict[str, Any] = {}
    for name in arguments.methods:
        registry.require("method", name)
        arms[name] = {"method": {"name": name}}
        if "rank" in method_section(name).model_fields:
            arms[name]["grid"] = {"method.rank": arguments.ranks}
    tasks = [task.split("+") for task in arguments.tasks]
    data = {"data.tasks": tasks} if len(tasks) > 1 else {}
    shared = {key: value for key, value in tree.items() if key not in ("arms", "grid", "seeds", "search")}
    if len(tasks) == 1:
        shared = {**shared, "data": {**shared.get("data", {}), "tasks": tasks[0]}}
    return {"study": NAME, **shared, "arms": arms, "seeds": arguments.seeds, "grid": data}
