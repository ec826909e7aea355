"""Put load on a server of OpenAI's protocol (vLLM or another) and measure what its models take.

  rankdrift load STUDY --vllm --rate 4        starts vLLM here with the study's adapters (extra: vllm)
  rankdrift load STUDY --url http://host:8000 --base NAME --adapters lora-r8 lora-r16 --clients 8

With --rate requests come at random times, so many a second (users do not wait for each other); with
--clients so many are in flight. First each adapter is asked the same prompts: one that says what the base
model says has not been applied, and nothing is timed. Results are as those of 'rankdrift deploy'.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.cli._arguments import positive
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.progress import say
from rankdrift.spec import DataSpec

if TYPE_CHECKING:
    from rankdrift.serving.endpoint.load import Load

WORDS = 24
"""Words of a prompt, the beginning of a paragraph."""
NAMED = {
    "--adapters": "adapters' names there, and the study's arms where these are others",
    "--merged": "of adapters that are merged in there, each a whole model",
    "--full": "of models that are tuned whole",
}
CHECKED = 4
"""Prompts that each adapter is asked first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="its folder, where results go")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="of a server that runs")
    where.add_argument(
        "--vllm", action="store_true", help="start vLLM here, with the last adapter of each arm"
    )
    parser.add_argument("--base", default="base", metavar="NAME", help="the base model's name there (base)")
    for option, what in NAMED.items():
        parser.add_argument(option, nargs="*", type=_named, default=[], metavar="[ARM=]NAME", help=what)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, metavar="N", help="requests a second, at random times (open loop)")
    how.add_argument("--clients", type=positive, metavar="N", help="requests in flight (closed loop)")
    parser.add_argument("--requests", type=positive, default=50, help="to each model in each round (50)")
    parser.add_argument("--rounds", type=positive, default=10, help="how often each model is measured (10)")
    parser.add_argument("--tokens", type=positive, default=32, help="tokens of an answer (32)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a request (120)")
    parser.add_argument("--port", type=int, default=8000, help="of the vLLM that is started (8000)")
    parser.add_argument("--vllm-option", action="append", default=[], metavar="OPTION", help="for vllm serve")


def run(arguments: argparse.Namespace) -> int:
    """Check the adapters, measure, write; return 0. Raises UserError and IntegrityError."""
    if arguments.rate is not None and arguments.rate <= 0:
        raise UserError(f"load: --rate {arguments.rate:g} requests a second; give a positive rate")
    from rankdrift.data.general_text import paragraphs
    from rankdrift.serving.endpoint.adapters import require_adapters
    from rankdrift.serving.endpoint.benchmark import measure
    from rankdrift.serving.endpoint.load import Load, in_its_words
    from rankdrift.serving.record import write_record
    from rankdrift.studies import deployment

    study = StudyLayout(arguments.study)
    prompts = [" ".join(text.split()[:WORDS]) for text in paragraphs(DataSpec(general_text="builtin"))]
    load = Load(arguments.requests, arguments.rate, arguments.clients, arguments.timeout)
    with _server(study, arguments) as (url, adapters):
        load = in_its_words(url, arguments.base, load)
        if not load.ignore_eos:
            say("the server does not know ignore_eos: answers may end before their last token")
        whole = [name for _, name in (*arguments.merged, *arguments.full)]
        groups = [list(adapters.values()), whole]
        require_adapters(url, arguments.base, groups, prompts[:CHECKED], load)
        models = _models(arguments, adapters)
        found = measure(url, models, prompts, arguments.tokens, load, arguments.rounds, say)
    engine = {"engine": "vllm" if arguments.vllm else "endpoint", "device": url, "dtype": "its own"}
    write_record(study, {**engine, "asked": _described(load, arguments)}, found)
    deployment.tabulate(study, say)
    for line in deployment.lines_of(study):
        say(line)
    return 0


@contextlib.contextmanager
def _server(study: StudyLayout, arguments: argparse.Namespace) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Give the server's address, and arm -> its adapter's name there."""
    if not arguments.vllm:
        yield arguments.url, dict(arguments.adapters)
        return
    from rankdrift.models.base import resolve
    from rankdrift.serving.deployed import Tuned
    from rankdrift.serving.endpoint import vllm
    from rankdrift.spec import read_spec
    from rankdrift.studies.deployment import last_exports

    exports = last_exports(study)
    spec = read_spec(study.run(next(iter(exports.values()))[0]).spec)
    models = [Tuned(arm, export) for arm, (_, export) in exports.items()]
    adapters = [tuned for tuned in models if tuned.is_adapter]
    base = resolve(spec.model.name, spec.model.revision)
    asked = vllm.command(base, adapters, arguments.port, tuple(arguments.vllm_option))
    log = study.deployment.with_name("vllm.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    say(" ".join(asked))
    with vllm.serving(asked, arguments.port, log) as url:
        yield url, {adapter.arm: adapter.arm for adapter in adapters}


def _named(text: str) -> tuple[str, str]:
    """Return an arm and its model's name at the server; they are the same where one is given."""
    arm, _, name = text.partition("=")
    return arm, name or arm


def _models(arguments: argparse.Namespace, adapters: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """Return what is measured: the base model, each tuned one, and all adapters in turn."""
    ways = {"unmerged": adapters.items(), "merged": arguments.merged, "full": arguments.full}
    found = {("base", "base"): [arguments.base]}
    found |= {(arm, way): [name] for way, models in ways.items() for arm, name in models}
    return found | ({("all adapters", "mixed"): list(adapters.values())} if len(adapters) > 1 else {})


def _described(load: Load, arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "rate": load.rate,
        "clients": load.clients,
        "requests": load.requests,
        "rounds": arguments.rounds,
        "tokens": arguments.tokens,
        "timeout": load.timeout,
        "ignore_eos": load.ignore_eos,
    }
