"""Measure what it costs to serve the models of a study, or any tuned folders against their base.

  rankdrift deploy STUDY                          every arm's last checkpoint, of its first seed
  rankdrift deploy --base A --tuned B [--tuned C] any models or adapters; results go to --output

Served are the base model, whole tuned models, adapters merged and beside the base model, and --adapters of
them in one batch, a row each. Outputs are compared first: a model that does not say what it should is not
timed. What was measured is in STUDY/deployment and the table deployment_benchmark_summary; 'rankdrift
report' shows it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.cli._arguments import at_least, positive
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.progress import say
from rankdrift.spec import DataSpec, ModelSpec, read_spec

if TYPE_CHECKING:
    from rankdrift.serving.bank import Place
    from rankdrift.serving.benchmark import Asked
    from rankdrift.serving.deployed import Tuned

OUTPUT = Path("outputs/deployment")
ON_CPU: dict[str, tuple[int, ...]] = {"batches": (1, 8), "prompts": (32,)}
ON_GPU: dict[str, tuple[int, ...]] = {"batches": (1, 8, 32), "prompts": (128, 1024)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("study", nargs="?", type=Path, metavar="STUDY", help="its folder")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="these alone (default: all)")
    folders = parser.add_argument_group("of folders from anywhere")
    folders.add_argument("--base", metavar="A", help="base model: a folder, a hub id or a known name")
    folders.add_argument(
        "--tuned",
        type=Path,
        action="append",
        metavar="B",
        help="folder of a model or an adapter; once for each",
    )
    folders.add_argument("--output", type=Path, default=OUTPUT, help=f"where results go (default: {OUTPUT})")
    asked = parser.add_argument_group("what is asked of each model")
    asked.add_argument(
        "--batches", nargs="+", type=positive, metavar="N", help="rows at once (1 8; on a GPU 1 8 32)"
    )
    asked.add_argument(
        "--prompts", nargs="+", type=positive, metavar="N", help="tokens of a prompt (32; on a GPU 128 1024)"
    )
    asked.add_argument("--tokens", type=positive, default=8, help="tokens of an answer (8)")
    asked.add_argument(
        "--rounds", type=positive, default=20, help="requests of every size to each model (20)"
    )
    asked.add_argument("--warm-ups", type=positive, default=10, help="further ones before, not timed (10)")
    asked.add_argument("--loads", type=positive, default=3, help="how often each is loaded from the disk (3)")
    asked.add_argument("--adapters", type=_at_least_two, default=4, metavar="K", help="in one batch (4)")
    asked.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32; on a GPU bf16")
    asked.add_argument("--seed", type=int, default=0, help="of the order (0)")


def run(arguments: argparse.Namespace) -> int:
    """Check, measure, write, say; return 0. Raises UserError and IntegrityError."""
    if bool(arguments.study) == bool(arguments.base and arguments.tuned):
        raise UserError("deploy: give a study's folder, or --base A and --tuned B")
    from rankdrift.data.general_text import load_windows
    from rankdrift.models.base import load_tokenizer
    from rankdrift.serving.bank import Bank
    from rankdrift.serving.benchmark import measure, served_by
    from rankdrift.serving.deployed import ways_of
    from rankdrift.serving.record import write_record
    from rankdrift.studies import deployment

    study = StudyLayout(arguments.study or arguments.output)
    place, models = _of_study(study, arguments) if arguments.study else _of_folders(arguments)
    asked = _asked(arguments, place)
    windows = load_windows(DataSpec(general_text="builtin"), load_tokenizer(place.base))
    texts = [window.input_ids for window in windows]
    ways = list(ways_of(models, mixes=place.labels == 0))
    with tempfile.TemporaryDirectory() as scratch:
        bank = Bank(place, Path(scratch), arguments.adapters)
        found = measure(bank, ways, texts, asked, say)
    write_record(study, served_by(bank, asked), found)
    if arguments.study:
        deployment.tabulate(study, say)
    else:
        deployment.tabulate_folders(study, place.base, arguments.tuned, say)
    for line in deployment.lines_of(study):
        say(line)
    return 0


def _of_study(study: StudyLayout, arguments: argparse.Namespace) -> tuple[Place, list[Tuned]]:
    from rankdrift.data.dataset import num_labels
    from rankdrift.models.base import resolve
    from rankdrift.serving.deployed import Tuned
    from rankdrift.studies.deployment import last_exports

    exports = last_exports(study, arguments.arms)
    spec = read_spec(study.run(next(iter(exports.values()))[0]).spec)
    base = resolve(spec.model.name, spec.model.revision)
    place = _place(base, spec.model, num_labels(spec), arguments)
    return place, [Tuned(arm, export) for arm, (_, export) in exports.items()]


def _of_folders(arguments: argparse.Namespace) -> tuple[Place, list[Tuned]]:
    from rankdrift.models.base import check_model_folder, resolve
    from rankdrift.serving.deployed import Tuned
    from rankdrift.studies.study_checkpoints import folder_subjects

    base = resolve(arguments.base)
    subjects = folder_subjects(base, arguments.tuned)
    models = [Tuned(subject.run, subject.tuned) for subject in subjects if subject.tuned]
    for tuned in models:
        if not tuned.is_adapter:
            check_model_folder(tuned.export)
    return _place(base, ModelSpec(name=arguments.base), 0, arguments), models


def _place(base: Path, spec: ModelSpec, labels: int, arguments: argparse.Namespace) -> Place:
    import torch

    from rankdrift.scoring.models import DTYPES
    from rankdrift.serving.bank import Place

    on_gpu = torch.cuda.is_available()
    precision = arguments.precision or ("bf16" if on_gpu else "fp32")
    return Place(base, spec, labels, DTYPES[precision], "cuda" if on_gpu else "cpu")


def _asked(arguments: argparse.Namespace, place: Place) -> Asked:
    from rankdrift.models.base import context_length
    from rankdrift.serving.benchmark import Asked

    usual = ON_GPU if place.device.startswith("cuda") else ON_CPU
    asked = Asked(
        tuple(arguments.batches or usual["batches"]),
        tuple(arguments.prompts or usual["prompts"]),
        arguments.tokens,
        arguments.rounds,
        arguments.warm_ups,
        arguments.loads,
        arguments.seed,
    )
    longest, room = max(asked.prompts) + asked.tokens, context_length(place.base)
    if longest > room:
        raise UserError(
            f"deploy: a prompt of {max(asked.prompts)} tokens and an answer of {asked.tokens} are more than "
            f"the model reads ({room}); give shorter --prompts"
        )
    return asked


def _at_least_two(text: str) -> int:
    return at_least(2, text, "a mixed batch has 2 adapters or more")
