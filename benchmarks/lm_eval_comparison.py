"""Are log-likelihoods those of lm-evaluation-harness, item by item, and are they made faster?

    pip install --no-deps --target FOLDER lm-eval==0.4.13     (and what it says is missing)
    PYTHONPATH=src:FOLDER python benchmarks/lm_eval_comparison.py --data DATA     DATA: the Parquet slices

lm-evaluation-harness runs its own tasks, by its own YAML files, on the slices (``dataset_path: parquet``);
rankdrift its own tasks of the same names on the same rows. Both have one fp32 model in one process. SST-2 is
asked as rankdrift asks it, on both sides. HellaSwag's slice holds the whole context in ``ctx``: it stands in
for ``ctx_a`` on both sides. WikiText's articles are rankdrift's (62 in the test split, as in the set that
lm-evaluation-harness reads); a window holds 1,024 tokens, so there are several. Without ``--data`` the
rows of HellaSwag and SST-2 are random words, by which speed alone is compared. The model is on a GPU where
there is one.

Speed is that from texts to log-likelihoods, encoding included, the sides in turn, each at the batch
size (token budget) that is best on a small slice. ``without sharing`` is rankdrift with every context read
again for each continuation. On a machine that does other work ``--threads 1 --clock processor`` says more.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pandas as pd
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rankdrift import files, registry
from rankdrift.models.base import context_length, load_tokenizer, resolve
from rankdrift.scoring import continuations
from rankdrift.scoring.answers import answer
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.tasks.kinds import Codec, Continuation, Likelihood

HERE = Path(__file__).resolve().parent
YAML = Path(lm_eval.__file__).parent / "tasks"
WINDOW = 1024
TOLERANCE, TARGET = 1e-4, 1.5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH_SIZES = {"cpu": (1, 4, 8, 16, 32), "cuda": (16, 64, 256)}[DEVICE]
CLOCKS = ("wall", "processor")
TOKEN_BUDGETS = {"cpu": (512, 1024, 2048, 4096), "cuda": (8192, 32768, 131072)}[DEVICE]
JUDGED = 10  # requests of a task that are computed in fp64 as well


@dataclass(frozen=True)
class Source:
    """A task: its slice, its YAML file, how many rows are compared, and what is changed in the file."""

    folder: str
    split: str
    yaml: str
    rows: int
    changes: Mapping[str, Any] = field(default_factory=dict)


SOURCES = {
    "hellaswag": Source("hellaswag", "validation", "hellaswag/hellaswag.yaml", 100),
    "arc_easy": Source("ai2_arc_easy", "test", "arc/arc_easy.yaml", 100),
    "arc_challenge": Source("ai2_arc_challenge", "test", "arc/arc_challenge.yaml", 100),
    "winogrande": Source("winogrande", "validation", "winogrande/default.yaml", 100),
    "sst2": Source(
        "glue_sst2",
        "validation",
        "glue/sst2/default.yaml",
        200,
        {"doc_to_text": "Review: {{sentence.strip()}}\nSentiment:"},
    ),
    "wikitext": Source("wikitext_2_v1", "test", "wikitext/wikitext.yaml", 3),
}
TIMED = ("hellaswag", "sst2")


def made_slice(name: str, count: int) -> pd.DataFrame:
    """Return rows of random words, as many as HellaSwag's and SST-2's texts have on average."""
    generator = np.random.default_rng(0)

    def words(mean: int) -> str:
        sizes = generator.integers(2, 8, max(2, int(generator.poisson(mean))))
        return " ".join("".join(map(chr, generator.integers(97, 123, size))) for size in sizes)

    if name == "sst2":
        return pd.DataFrame({"sentence": words(19), "label": row % 2, "idx": row} for row in range(count))
    described = {"activity_label": "Making", "ctx_b": ""}
    return pd.DataFrame(
        {**described, "ctx_a": words(38), "endings": [words(20) for _ in range(4)], "label": str(row % 4)}
        for row in range(count)
    ).assign(ctx=lambda rows: rows["ctx_a"])


def slice_of(name: str, data: Path | None) -> pd.DataFrame:
    """Return a task's rows with the columns that both sides read."""
    source = SOURCES[name]
    if data is None:
        return made_slice(name, source.rows)
    table = pd.read_parquet(data / source.folder / f"{source.split}.parquet")
    if source.folder == "hellaswag":
        table["ctx_a"] = table["ctx"]
    if source.folder == "wikitext_2_v1":
        table = pd.DataFrame(registry.load("task", "wikitext").gather(table.to_dict("records")))
        table["page"] = table["text"]
    return table.head(source.rows)


# ---- the two sides


class Theirs:
    """lm-evaluation-harness: a task from its YAML file, on a slice."""

    def __init__(self, name: str, source: Source, rows: pd.DataFrame, folder: Path) -> None:
        path = folder / f"{name}.parquet"
        rows.to_parquet(path)
        config = folder / f"{name}.yaml"
        split = {"training_split": None, "validation_split": None, "test_split": source.split}
        kwargs = {"data_files": {source.split: str(path)}}
        here = {
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": kwargs,
            "task": f"{name}_here",
        }
        files.write_json(config, {"include": str(YAML / source.yaml), **here, **split, **source.changes})
        self.task = TaskManager(include_defaults=False).load([str(config)])["tasks"][f"{name}_here"]
        self.task.build_all_requests(rank=0, world_size=1)
        self.instances = self.task.instances

    def metrics(self, values: Sequence[Likelihood]) -> list[dict[str, Any]]:
        """Return what it makes of each row's log-likelihoods."""
        rows: dict[int, list[tuple[float, bool]]] = {}
        docs = {}
        for instance, value in zip(self.instances, values, strict=True):
            rows.setdefault(instance.doc_id, []).append(tuple(value))
            docs[instance.doc_id] = instance.doc
        return [self.task.process_results(docs[number], found) for number, found in rows.items()]


class Ours:
    """rankdrift: a task of the same name, on the same rows."""

    def __init__(
        self,
        name: str,
        rows: pd.DataFrame,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        window: int,
    ) -> None:
        self.task, self.model = registry.load("task", name), model
        plain = json.loads(rows.to_json(orient="records"))
        self.examples = [self.task.example(row) for row in plain]
        self.texts, self.tokens = Codec(tokenizer, window), Detokenizer.of(tokenizer)

    def requests(self, count: int | None = None) -> list[list[Continuation]]:
        """Encode the first so many rows; return what is asked of each."""
        items = self.task.kind.items(self.task, self.examples[:count], self.texts)
        return [list(item.requests) for item in items]

    def likelihoods(self, token_budget: int, count: int | None = None) -> list[Likelihood]:
        """Encode and answer."""
        asked = [request for of_row in self.requests(count) for request in of_row]
        return answer(self.model, asked, self.tokens, token_budget)  # type: ignore[return-value]


def in_fp64(double: PreTrainedModel, request: Continuation) -> float:
    """Return a log-likelihood in double precision."""
    tokens, first = request.context + request.continuation, len(request.context)
    ids = torch.tensor([tokens], device=double.device)
    with torch.inference_mode():
        logits = double(input_ids=ids[:, :-1]).logits[0, first - 1 :]
    return float(logits.log_softmax(-1).gather(-1, ids[0, first:, None]).sum())


# ---- equality


def compare(theirs: Theirs, ours: Ours, lm: HFLM, double: PreTrainedModel) -> dict[str, Any]:
    """Return how far the two sides are apart on one task, and the scores of both."""
    if ours.task.name == "wikitext":
        return compare_rolling(theirs, ours, lm)
    expected = [Likelihood(*value) for value in lm.loglikelihood(theirs.instances, disable_tqdm=True)]
    found = ours.likelihoods(TOKEN_BUDGETS[1])
    scores, own = theirs.metrics(expected), theirs.metrics(found)
    requests = [request for of_row in ours.requests() for request in of_row]
    apart = sorted(range(len(found)), key=lambda n: -abs(found[n][0] - expected[n][0]))[:JUDGED]
    truth = {number: in_fp64(double, requests[number]) for number in apart}
    names = [key for key in scores[0] if key in ("acc", "acc_norm")]
    return {
        "rows": len(scores),
        "requests": len(found),
        "largest_difference": largest_difference(found, expected),
        f"largest_difference_from_fp64_of_the_{JUDGED}_most_apart": {
            "lm_eval": max(abs(expected[number].log_likelihood - value) for number, value in truth.items()),
            "rankdrift": max(abs(found[number].log_likelihood - value) for number, value in truth.items()),
        },
        "greedy_equal": all(a.greedy == b.greedy for a, b in zip(found, expected, strict=True)),
        "items_with_other_scores": sum(
            any(a[key] != b[key] for key in names) for a, b in zip(scores, own, strict=True)
        ),
        "lm_eval": {key: float(np.mean([score[key] for score in scores])) for key in names},
        "rankdrift": own_scores(ours, found),
    }


def own_scores(ours: Ours, found: Sequence[Likelihood]) -> dict[str, float]:
    """Return the metrics that rankdrift makes of the log-likelihoods."""
    told = iter(found)
    outcomes = [
        ours.task.kind.outcome(ours.task, example, [next(told) for _ in of_row])
        for example, of_row in zip(ours.examples, ours.requests(), strict=True)
    ]
    return {
        name: metric.compute(
            [outcome.predictions[metric.reads] for outcome in outcomes],
            [example.right(metric.reads) for example in ours.examples],
        )
        for name in ours.task.metrics
        for metric in [registry.load("metric", name)]
    }


def largest_difference(found: Sequence[Likelihood], expected: Sequence[Likelihood]) -> float:
    """Return the largest |difference| of log-likelihoods, in nats."""
    return max(abs(a.log_likelihood - b.log_likelihood) for a, b in zip(found, expected, strict=True))


def compare_rolling(theirs: Theirs, ours: Ours, lm: HFLM) -> dict[str, Any]:
    """Return the same for whole articles; ``relative`` is a difference over the log-likelihood."""
    expected = lm.loglikelihood_rolling(theirs.instances, disable_tqdm=True)
    windows, told = ours.requests(), iter(ours.likelihoods(TOKEN_BUDGETS[1]))
    found = [[next(told) for _ in of_row] for of_row in windows]
    sums = [sum(one.log_likelihood for one in of_row) for of_row in found]
    differences = np.abs(np.subtract(sums, expected))
    words = [len(re.split(r"\s+", instance.doc["page"])) for instance in theirs.instances]
    return {
        "rows": len(found),
        "windows": sum(map(len, windows)),
        "largest_difference": float(differences.max()),
        "largest_relative_difference": float((differences / np.abs(expected)).max()),
        "lm_eval": {"word_perplexity": float(np.exp(-sum(expected) / sum(words)))},
        "rankdrift": own_scores(ours, [one for of_row in found for one in of_row]),
    }


# ---- speed


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and the processor time of some work."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def sides(theirs: Theirs, ours: Ours, lm: HFLM) -> dict[str, Callable[[int, int], object]]:
    """Return what each side does at a batch size or token budget with the first so many rows."""
    each = len(theirs.instances) // len(ours.examples)

    def harness(size: int, rows: int) -> object:
        lm.batch_size_per_gpu = size
        return lm.loglikelihood(theirs.instances[: rows * each], disable_tqdm=True)

    def alone(budget: int, rows: int) -> object:
        kept, continuations.WORTH_SHARING = continuations.WORTH_SHARING, float("inf")
        try:
            return ours.likelihoods(budget, rows)
        finally:
            continuations.WORTH_SHARING = kept

    return {"lm_eval": harness, "rankdrift": ours.likelihoods, "rankdrift without sharing": alone}


def measure(theirs: Theirs, ours: Ours, lm: HFLM, arguments: argparse.Namespace) -> dict[str, Any]:
    """Find each side's best size on a tenth of the rows; then time all of them, in turn."""
    work = sides(theirs, ours, lm)
    count = min(len(ours.examples), arguments.timed)
    clock = CLOCKS.index(arguments.clock)
    tried = {
        side: {size: seconds(lambda: work[side](size, count // 10))[clock] for size in sizes}  # noqa: B023
        for side, sizes in (("lm_eval", BATCH_SIZES), ("rankdrift", TOKEN_BUDGETS))
    }
    best = {side: min(times, key=times.__getitem__) for side, times in tried.items()}
    print(f"best sizes: {best}", flush=True)
    names = list(work)
    runs: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(arguments.repeats):
        for name in names if repeat % 2 == 0 else names[::-1]:
            size = best["lm_eval" if name == "lm_eval" else "rankdrift"]
            runs[name].append(seconds(lambda: work[name](size, count))[clock])  # noqa: B023
            print(f"{repeat + 1}/{arguments.repeats} {name}: {runs[name][-1]:.2f} s", flush=True)
    medians = {name: statistics.median(times) for name, times in runs.items()}
    return {
        "rows": count,
        "clock": arguments.clock,
        "load_average_after": os.getloadavg(),
        "seconds_by_size_on_a_tenth": tried,
        "size": best,
        "seconds": runs,
        "median_seconds": medians,
        "ratio_to_lm_eval": medians["lm_eval"] / medians["rankdrift"],
        "gain_of_sharing": medians["rankdrift without sharing"] / medians["rankdrift"],
    }


def main(arguments: argparse.Namespace, folder: Path) -> None:
    """Compare, measure, write."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    path = resolve(arguments.model)
    tokenizer = load_tokenizer(path)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.precision]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().to(DEVICE)
    window = min(WINDOW, context_length(path))
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=window)
    double = model if arguments.speed_alone else copy.deepcopy(model).double()
    result: dict[str, Any] = {
        "claim": f"log-likelihoods within {TOLERANCE} of lm-evaluation-harness, accuracy equal to the item, "
        f"{TARGET} times as fast",
        "model": Path(arguments.model).name,
        "precision": arguments.precision,
        "rows": "random words" if arguments.data is None else "slices of the data sets",
        "threads": torch.get_num_threads(),
        "versions": {"lm_eval": version("lm_eval")},
        "equality": {},
        "speed": {},
    }
    tables = {name: slice_of(name, arguments.data) for name in arguments.tasks}
    theirs = {name: Theirs(name, SOURCES[name], tables[name], folder) for name in arguments.tasks}
    ours = {name: Ours(name, tables[name], model, tokenizer, window) for name in arguments.tasks}
    for name in [] if arguments.speed_alone else arguments.tasks:
        result["equality"][name] = compare(theirs[name], ours[name], lm, double)
        print(name, json.dumps(result["equality"][name]), flush=True)
    for name in [task for task in TIMED if task in arguments.tasks and arguments.repeats]:
        result["speed"][name] = measure(theirs[name], ours[name], lm, arguments)
        print(name, json.dumps(result["speed"][name]), flush=True)
    files.write_json(arguments.output, result | {"environment": files.environment()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the Parquet slices")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tasks", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--repeats", type=int, default=3, help="0: equality alone")
    parser.add_argument("--speed-alone", action="store_true")
    parser.add_argument("--timed", type=int, default=100, help="rows of a task that are timed")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--clock", choices=CLOCKS, default=CLOCKS[0])
    parser.add_argument("--output", type=Path, default=HERE / "results" / "lm_eval_comparison.json")
    given = parser.parse_args()
    if given.data is None and not (given.speed_alone and set(given.tasks) <= set(TIMED)):
        parser.error(f"without --data give --speed-alone --tasks {' '.join(TIMED)}")
    with tempfile.TemporaryDirectory() as temporary:
        main(given, Path(temporary))
