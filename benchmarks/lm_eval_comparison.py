"""Are log-likelihoods those of lm-evaluation-harness, item by item, and are they made faster?

    pip install --no-deps --target FOLDER lm-eval==0.4.13     (and what it says is missing)
    PYTHONPATH=src:FOLDER python benchmarks/lm_eval_comparison.py --data DATA     DATA: the Parquet slices

lm-evaluation-harness runs its own tasks, by its own YAML files, on the slices (``dataset_path: parquet``).
rankdrift makes the same pairs of texts from the same rows by its own code (checked to be the same texts),
encodes them and answers them. Both have one fp32 model in one process. HellaSwag's slice holds the whole
context in ``ctx``: it stands in for ``ctx_a`` on both sides. WikiText's lines are joined to articles, and
lm-evaluation-harness detokenizes them for both sides; a window holds 1,024 tokens, so there are several.

Speed is that from pairs of texts to log-likelihoods, encoding included, the sides in turn, each at the batch
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

from rankdrift import files
from rankdrift.models.base import load_tokenizer, resolve
from rankdrift.scoring import continuations
from rankdrift.scoring.answers import answer
from rankdrift.scoring.codec import Codec
from rankdrift.tasks.kinds import Continuation, Likelihood, Tokens

HERE = Path(__file__).resolve().parent
YAML = Path(lm_eval.__file__).parent / "tasks"
WINDOW = 1024
TOLERANCE, TARGET = 1e-4, 1.5
BATCH_SIZES = (1, 4, 8, 16, 32)
CLOCKS = ("wall", "processor")
TOKEN_BUDGETS = (512, 1024, 2048, 4096)
JUDGED = 10  # requests of a task that are computed in fp64 as well

Row = Mapping[str, Any]
Pair = tuple[str, str]
"""Context and continuation."""


# ---- the rows as pairs of texts, by the rules of lm-evaluation-harness


def hellaswag_pairs(row: Row) -> list[Pair]:
    """Return a pair an ending, all of them cleaned of WikiHow's marks."""
    first, second = row["ctx_a"], row["ctx_b"]
    context = _without_marks(f"{row['activity_label']}: {first} {second.capitalize()}")
    return [(context, " " + _without_marks(ending)) for ending in row["endings"]]


def _without_marks(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def arc_pairs(row: Row) -> list[Pair]:
    """Return a pair a choice."""
    return [(f"Question: {row['question']}\nAnswer:", f" {choice}") for choice in row["choices"]["text"]]


def winogrande_pairs(row: Row) -> list[Pair]:
    """Return a pair an option: what follows the gap, behind what stands before it with the option in it."""
    before, after = row["sentence"].split("_", 1)
    return [(before + row[option], " " + after.strip()) for option in ("option1", "option2")]


def sst2_pairs(row: Row) -> list[Pair]:
    """Return a pair a label."""
    context = f"{row['sentence']}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    return [(context, " negative"), (context, " positive")]


@dataclass(frozen=True)
class Source:
    """A task: its slice, its YAML file, and how many of its rows are compared."""

    folder: str
    split: str
    yaml: str
    rows: int
    pairs: Callable[[Row], list[Pair]] | None
    """None for WikiText, which has no pairs."""


SOURCES = {
    "hellaswag": Source("hellaswag", "validation", "hellaswag/hellaswag.yaml", 100, hellaswag_pairs),
    "arc_easy": Source("ai2_arc_easy", "test", "arc/arc_easy.yaml", 100, arc_pairs),
    "arc_challenge": Source("ai2_arc_challenge", "test", "arc/arc_challenge.yaml", 100, arc_pairs),
    "winogrande": Source("winogrande", "validation", "winogrande/default.yaml", 100, winogrande_pairs),
    "sst2": Source("glue_sst2", "validation", "glue/sst2/default.yaml", 200, sst2_pairs),
    "wikitext": Source("wikitext_2_v1", "test", "wikitext/wikitext.yaml", 4, None),
}
TIMED = ("hellaswag", "sst2")


def slice_of(source: Source, data: Path) -> pd.DataFrame:
    """Return a task's rows with the columns that lm-evaluation-harness reads."""
    table = pd.read_parquet(data / source.folder / f"{source.split}.parquet")
    if source.folder == "hellaswag":
        table["ctx_a"] = table["ctx"]
    if source.folder == "wikitext_2_v1":
        return pd.DataFrame({"page": list(articles(table["text"]))})
    return table


def articles(lines: Sequence[str]) -> Iterator[str]:
    """Yield WikiText's articles: each begins with a heading of one level behind a blank line."""
    article: list[str] = []
    for number, line in enumerate(lines):
        heading = re.fullmatch(r" = [^=].*[^=] = \n", line) and not lines[number - 1].strip()
        if heading and any(map(str.strip, article)):
            yield "".join(article)
            article = []
        article.append(line or " \n")
    yield "".join(article)


# ---- the two sides


class Theirs:
    """lm-evaluation-harness: a task from its YAML file, on a slice."""

    def __init__(self, name: str, source: Source, rows: pd.DataFrame, folder: Path) -> None:
        path = folder / f"{name}.parquet"
        rows.head(source.rows).to_parquet(path)
        config = folder / f"{name}.yaml"
        split = {"training_split": None, "validation_split": None, "test_split": source.split}
        kwargs = {"data_files": {source.split: str(path)}}
        here = {
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": kwargs,
            "task": f"{name}_here",
        }
        files.write_json(config, {"include": str(YAML / source.yaml), **here, **split})
        self.task = TaskManager(include_defaults=False).load([str(config)])["tasks"][f"{name}_here"]
        self.task.build_all_requests(rank=0, world_size=1)
        self.instances = self.task.instances

    def pairs(self) -> list[Pair]:
        """Return the pairs of texts that it asks."""
        return [instance.args for instance in self.instances]

    def metrics(self, values: Sequence[Likelihood]) -> list[dict[str, Any]]:
        """Return what it makes of each row's log-likelihoods."""
        rows: dict[int, list[tuple[float, bool]]] = {}
        docs = {}
        for instance, value in zip(self.instances, values, strict=True):
            rows.setdefault(instance.doc_id, []).append(tuple(value))
            docs[instance.doc_id] = instance.doc
        return [self.task.process_results(docs[number], found) for number, found in rows.items()]


class Ours:
    """rankdrift: pairs of texts encoded by the rules of lm-evaluation-harness, and answered."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer, self.codec = model, tokenizer, Codec.of(tokenizer)
        self.double: PreTrainedModel | None = None

    def requests(self, pairs: Sequence[Pair]) -> list[Continuation]:
        """Encode pairs: a context's last spaces go to the continuation, which is all behind the context."""
        cut = [context.rstrip() for context, _ in pairs]
        whole = self.tokenizer([context + continuation for context, continuation in pairs])["input_ids"]
        distinct = list(dict.fromkeys(cut))
        encoded = dict(zip(distinct, self.tokenizer(distinct)["input_ids"], strict=True))
        return [
            Continuation(tuple(tokens[: len(encoded[context])]), tuple(tokens[len(encoded[context]) :]))
            for context, tokens in zip(cut, whole, strict=True)
        ]

    def likelihoods(self, pairs: Sequence[Pair], token_budget: int) -> list[Likelihood]:
        """Encode and answer."""
        return answer(self.model, self.requests(pairs), self.codec, token_budget)  # type: ignore[return-value]

    def in_fp64(self, request: Continuation) -> float:
        """Return a log-likelihood of the same weights in double precision."""
        if self.double is None:
            self.double = copy.deepcopy(self.model).double()
        tokens, first = request.context + request.continuation, len(request.context)
        with torch.inference_mode():
            logits = self.double(input_ids=torch.tensor([tokens[:-1]])).logits[0, first - 1 :]
        return float(logits.log_softmax(-1).gather(-1, torch.tensor(tokens[first:])[:, None]).sum())

    def rolling(self, text: str, token_budget: int) -> float:
        """Return log p of a text, in windows that follow one another."""
        tokens = self.tokenizer(text)["input_ids"]
        start = self.tokenizer.bos_token_id or self.tokenizer.eos_token_id
        windows = list(rolling_windows(tuple(tokens), start))
        return sum(one.log_likelihood for one in answer(self.model, windows, self.codec, token_budget))


def rolling_windows(tokens: Tokens, start: int) -> Iterator[Continuation]:
    """Yield requests that together predict every token once, each with as much before it as a window holds.

    The last window begins so early that it is full.
    """
    everything = (start, *tokens)
    for first in range(0, len(tokens), WINDOW):
        end = min(first + WINDOW, len(tokens))
        begin = max(0, end - WINDOW) if first else 0
        yield Continuation(everything[begin : first + 1], everything[first + 1 : end + 1])


# ---- equality


def compare(name: str, theirs: Theirs, ours: Ours, lm: HFLM, rows: pd.DataFrame) -> dict[str, Any]:
    """Return how far the two sides are apart on one task, and the scores of both."""
    source = SOURCES[name]
    if source.pairs is None:
        return compare_rolling(theirs, ours, lm)
    made = [pair for row in rows.head(source.rows).to_dict("records") for pair in source.pairs(row)]
    assert made == theirs.pairs(), f"{name}: the texts differ"
    expected = [Likelihood(*value) for value in lm.loglikelihood(theirs.instances, disable_tqdm=True)]
    found = ours.likelihoods(made, TOKEN_BUDGETS[1])
    scores, own = theirs.metrics(expected), theirs.metrics(found)
    requests = ours.requests(made)
    apart = sorted(range(len(found)), key=lambda n: -abs(found[n][0] - expected[n][0]))[:JUDGED]
    truth = {number: ours.in_fp64(requests[number]) for number in apart}
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
        "rankdrift": {key: float(np.mean([score[key] for score in own])) for key in names},
    }


def largest_difference(found: Sequence[Likelihood], expected: Sequence[Likelihood]) -> float:
    """Return the largest |difference| of log-likelihoods, in nats."""
    return max(abs(a.log_likelihood - b.log_likelihood) for a, b in zip(found, expected, strict=True))


def compare_rolling(theirs: Theirs, ours: Ours, lm: HFLM) -> dict[str, Any]:
    """Return the same for whole articles; ``relative`` is a difference over the log-likelihood."""
    expected = lm.loglikelihood_rolling(theirs.instances, disable_tqdm=True)
    found = [ours.rolling(instance.args[0], TOKEN_BUDGETS[1]) for instance in theirs.instances]
    differences = np.abs(np.subtract(found, expected))
    words = [len(re.split(r"\s+", instance.doc["page"])) for instance in theirs.instances]
    return {
        "rows": len(found),
        "largest_difference": float(differences.max()),
        "largest_relative_difference": float((differences / np.abs(expected)).max()),
        "lm_eval": {"word_perplexity": float(np.exp(-sum(expected) / sum(words)))},
        "rankdrift": {"word_perplexity": float(np.exp(-sum(found) / sum(words)))},
    }


# ---- speed


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and the processor time of some work."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def sides(theirs: Theirs, ours: Ours, lm: HFLM) -> dict[str, Callable[[int, int], object]]:
    """Return what each side does with the first so many requests at a batch size or token budget."""
    pairs = theirs.pairs()

    def harness(size: int, count: int) -> object:
        lm.batch_size_per_gpu = size
        return lm.loglikelihood(theirs.instances[:count], disable_tqdm=True)

    def alone(budget: int, count: int) -> object:
        kept, continuations.WORTH_SHARING = continuations.WORTH_SHARING, float("inf")
        try:
            return ours.likelihoods(pairs[:count], budget)
        finally:
            continuations.WORTH_SHARING = kept

    return {
        "lm_eval": harness,
        "rankdrift": lambda budget, count: ours.likelihoods(pairs[:count], budget),
        "rankdrift without sharing": alone,
    }


def measure(theirs: Theirs, ours: Ours, lm: HFLM, arguments: argparse.Namespace) -> dict[str, Any]:
    """Find each side's best size on a tenth of the requests; then time all of them, in turn."""
    work = sides(theirs, ours, lm)
    count = min(len(theirs.instances), arguments.timed)
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
        "requests": count,
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
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=WINDOW)
    ours = Ours(model, tokenizer)
    result: dict[str, Any] = {
        "claim": f"log-likelihoods within {TOLERANCE} of lm-evaluation-harness, accuracy equal to the item, "
        f"{TARGET} times as fast",
        "model": arguments.model,
        "threads": torch.get_num_threads(),
        "versions": {"lm_eval": version("lm_eval")},
        "equality": {},
        "speed": {},
    }
    tables = {name: slice_of(SOURCES[name], arguments.data) for name in arguments.tasks}
    theirs = {name: Theirs(name, SOURCES[name], tables[name], folder) for name in arguments.tasks}
    for name in [] if arguments.speed_alone else arguments.tasks:
        result["equality"][name] = compare(name, theirs[name], ours, lm, tables[name])
        print(name, json.dumps(result["equality"][name]), flush=True)
    for name in [task for task in TIMED if task in arguments.tasks and arguments.repeats]:
        result["speed"][name] = measure(theirs[name], ours, lm, arguments)
        print(name, json.dumps(result["speed"][name]), flush=True)
    files.write_json(arguments.output, result | {"environment": files.environment()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet slices")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tasks", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--repeats", type=int, default=3, help="0: equality alone")
    parser.add_argument("--speed-alone", action="store_true")
    parser.add_argument("--timed", type=int, default=400, help="requests of a task that are timed")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--clock", choices=CLOCKS, default=CLOCKS[0])
    parser.add_argument("--output", type=Path, default=HERE / "results" / "lm_eval_comparison.json")
    with tempfile.TemporaryDirectory() as temporary:
        main(parser.parse_args(), Path(temporary))
