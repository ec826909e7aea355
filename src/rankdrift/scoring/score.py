"""Scores of one checkpoint on one split: every task's metrics and texts, as JSON, the items as Parquet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankdrift import files, registry
from rankdrift.data.general_text import text_source
from rankdrift.data.sources import local_files
from rankdrift.data.tokens import NOTABLE
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.metrics import Metric
from rankdrift.scoring.answers import answer
from rankdrift.scoring.baselines import baselines
from rankdrift.scoring.canary import check_canary
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.scoring.estimates import Estimate, jackknife_stderr, mean_stderr, ratio_estimate
from rankdrift.scoring.items import TaskItems, task_items, trained_names
from rankdrift.scoring.models import precision_of
from rankdrift.scoring.retention import GeneralText, Reference, measure_windows
from rankdrift.scoring.scored import scored_tasks
from rankdrift.scoring.shares import Shares
from rankdrift.scoring.texts import GENERAL_TEXT_VERSION, compared_texts
from rankdrift.spec import Spec
from rankdrift.tasks import Split
from rankdrift.tasks.kinds import Outcome

Progress = Callable[[str], None]
Role = Literal["trained", "retention", "text"]
"""Of what is scored: a task that was trained on, another one, a text that is only compared with the base."""
SCORES_VERSION = 2
"""Raised whenever score files say more than before: those of an older version are made anew."""
SHOWN = 240
"""Characters of a prompt's end that the table of items keeps, for a reader; the digest is of all of it."""


@dataclass(frozen=True)
class Workload:
    """What every checkpoint of an experiment is scored on in one split; made once."""

    spec: Spec
    split: Split
    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[TaskItems, ...]
    texts: Mapping[str, GeneralText]
    """Those on which it is compared with its base; none for a classification head, which predicts no text."""
    left_out: tuple[str, ...]
    """Retention tasks that there is no data for."""

    @classmethod
    def of(cls, spec: Spec, split: Split, tokenizer: PreTrainedTokenizerBase, context: int) -> Workload:
        """Read and tokenise the examples and the texts; ``context`` is what the model reads, in tokens."""
        scored = scored_tasks(spec, split)
        tasks = tuple(task_items(spec, task, split, tokenizer, context) for task in scored.tasks)
        texts: dict[str, GeneralText] = {}
        if spec.model.head == "lm" and split == "test":
            names = trained_names(spec)
            texts = compared_texts(spec, tokenizer, [items for items in tasks if items.task.name in names])
        return cls(spec, split, tokenizer, tasks, texts, scored.left_out)


@dataclass(frozen=True)
class Target:
    """A model folder to score, and where its scores belong."""

    out: RunLayout
    step: int
    source: Path
    inputs: Mapping[str, str]
    """What the scores depend on, from :func:`scoring_inputs`."""
    split: Split = "test"
    name: str = ""
    """What progress calls it, if not by its step."""

    @property
    def title(self) -> str:
        """Its name, or its step, and the split where it is not the one that reports."""
        return (self.name or f"step {self.step}") + ("" if self.split == "test" else f" ({self.split})")


@dataclass(frozen=True)
class TaskScore:
    """The scores of one task, or of one text."""

    role: Role
    version: int
    n: int
    """Items, or windows of text."""
    prompts_cut: int
    """Items whose prompt lost tokens to the maximum length."""
    metrics: dict[str, Estimate]
    parts: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Metric -> its further values, by name."""
    baselines: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Metric -> rule that needs no model -> value."""
    content: str = ""
    """Digest of a task of the user's own."""


def score_checkpoint(
    workload: Workload,
    model: PreTrainedModel,
    references: Mapping[str, Reference],
    target: Target,
    progress: Progress,
    shares: Shares | None = None,
) -> Path:
    """Score one checkpoint, write its per-item tables and then its JSON file; return the latter's path.

    Parameters
    ----------
    workload
        What to score on.
    model
        The checkpoint, in evaluation mode.
    references
        The base model on the texts, by their names; where one is missing nothing is compared with the base.
    target
        The checkpoint's folder, and where its scores belong.
    progress
        Called with one line a task.
    shares
        The ranks that score together; the first one writes.

    """
    out, step, split = target.out, target.step, target.split
    first = shares is None or shares.rank == 0
    scores: dict[str, TaskScore] = {}

    def keep(name: str, score: TaskScore, table: pd.DataFrame) -> None:
        scores[name] = score
        if first:
            files.write_parquet(out.score_items(step, name, split), table)
            progress(f"{target.title}: {name}: {_summary(score)}")

    for items in workload.tasks:
        keep(items.task.name, *score_task(workload, items, model, target.source, shares))
    for name, text in workload.texts.items():
        keep(name, *score_text(model, text, references.get(name), shares))
    document = {
        "step": step,
        "split": split,
        "model": str(target.source),
        "inputs": dict(target.inputs),
        "tasks": {name: dataclasses.asdict(score) for name, score in scores.items()},
        "environment": files.environment(),
    }
    if first:
        document["canary"] = dataclasses.asdict(check_canary())
        files.write_json(out.score(step, split), document)
    return out.score(step, split)


def scoring_inputs(spec: Spec, source: Path, base: Path, split: Split) -> dict[str, str]:
    """Return what the scores of a model folder depend on; how many tokens are passed at once is not of it."""
    text = text_source(spec.data)
    tasks = scored_tasks(spec, split).tasks
    settings = {
        "scores": SCORES_VERSION,
        "head": [spec.model.head, spec.model.heads],
        "tasks": {task.name: [task.version, task.content] for task in tasks},
        "trained": list(trained_names(spec)),
        "data": spec.data.model_dump(include={"max_length", "validation_limit", "carve"}),
        "files": {
            task.name: [files.content_digest(path) for path in local_files(task, split, spec.data)]
            for task in tasks
        },
        "text": [GENERAL_TEXT_VERSION, text.name, files.digest_file(text)],
        "scoring": spec.scoring.model_dump(mode="json", exclude={"batch_tokens", "splits", "tasks"}),
        "precision": precision_of(spec),
    }
    return {
        "model": files.content_digest(source),
        "base": files.content_digest(base),
        "settings": files.digest_json(settings),
        "general_text": text.name,
    }


def is_current(target: Target) -> bool:
    """Say whether a target's scores are complete and were made from its inputs."""
    path = target.out.score(target.step, target.split)
    if not path.exists():
        return False
    scores = files.read_json(path)
    tables = [target.out.score_items(target.step, name, target.split) for name in scores.get("tasks", {})]
    return all(table.exists() for table in tables) and scores.get("inputs") == dict(target.inputs)


def score_task(
    workload: Workload,
    items: TaskItems,
    model: PreTrainedModel,
    source: Path,
    shares: Shares | None = None,
) -> tuple[TaskScore, pd.DataFrame]:
    """Return a task's scores and its table, one row an item.

    Columns: ``index`` (its place in the split), ``prompt`` (its end), ``prompt_digest``, then those of the
    kind (``tasks/kinds``: label, prediction, log-likelihoods, references ...), one a metric that is a mean
    over items, and ``document`` where items share one: their errors go together.
    """
    detokenizer = Detokenizer.of(workload.tokenizer)
    outcomes = outcomes_of(items, model, detokenizer, workload.spec.scoring.batch_tokens, shares)
    table = _table(items, outcomes)
    _check_finite(table, items, source)
    documents = [example.document for example in items.examples]
    clusters = documents if any(documents) else None
    if clusters:
        table["document"] = clusters
    score = TaskScore(
        role="trained" if items.task.name in trained_names(workload.spec) else "retention",
        version=items.task.version,
        n=len(table),
        prompts_cut=items.prompts_cut,
        metrics={},
        baselines=baselines(items),
        content=items.task.content,
    )
    for name in items.task.metrics:
        _evaluate(name, _compared(items, outcomes, name), clusters, score, table)
    return score, table


def outcomes_of(
    items: TaskItems,
    model: PreTrainedModel,
    detokenizer: Detokenizer,
    token_budget: int,
    shares: Shares | None = None,
) -> list[Outcome]:
    """Return what a model in evaluation mode answers to every item, as the task's kind reads it."""
    answers = iter(answer(model, items.requests, detokenizer, token_budget, shares))
    return [
        items.task.kind.outcome(items.task, example, [next(answers) for _ in item.requests])
        for example, item in zip(items.examples, items.items, strict=True)
    ]


def metric_values(items: TaskItems, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the task's metrics over its items."""
    return {
        name: registry.load("metric", name).compute(*_compared(items, outcomes, name))
        for name in items.task.metrics
    }


def _compared(items: TaskItems, outcomes: Sequence[Outcome], name: str) -> tuple[list[Any], list[Any]]:
    """Return the predictions that a metric reads, and what is right."""
    reads = registry.load("metric", name).reads
    return [o.predictions[reads] for o in outcomes], [example.right(reads) for example in items.examples]


def _table(items: TaskItems, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    prompts = [example.prompt or example.target for example in items.examples]
    return pd.DataFrame(
        {
            "index": list(items.indices),
            "prompt": [prompt[-SHOWN:] for prompt in prompts],
            "prompt_digest": [files.digest_text(prompt) for prompt in prompts],
            **{name: [outcome.columns[name] for outcome in outcomes] for name in outcomes[0].columns},
        }
    )


def _check_finite(table: pd.DataFrame, items: TaskItems, source: Path) -> None:
    columns = [name for name in ("log_likelihood", "no_answer_probability") if name in table]
    values = [value for name in columns for value in table[name]]
    if "log_likelihoods" in table:
        values += [value for row in table["log_likelihoods"] for value in row]
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"{source}: log-likelihoods of task '{items.task.name}' are not finite numbers: the training "
            "diverged; lower training.learning_rate and train again"
        )


def _evaluate(
    name: str,
    compared: tuple[list[Any], list[Any]],
    documents: Sequence[str] | None,
    score: TaskScore,
    table: pd.DataFrame,
) -> None:
    """Put a metric's estimate into the score, and items' values into the table where it is their mean."""
    metric: Metric = registry.load("metric", name)
    predictions, answers = compared
    value = metric.compute(predictions, answers)
    if metric.per_item is not None:
        values = [metric.per_item(*pair) for pair in zip(predictions, answers, strict=True)]
        table[name] = values
        stderr = mean_stderr(values, documents) if math.isfinite(value) else None
    else:
        stderr = jackknife_stderr(metric.compute, predictions, answers, documents)
    score.metrics[name] = Estimate(_finite(value), stderr, metric.higher_is_better, _finite(metric.best))
    if metric.parts is not None:
        parts = metric.parts(predictions, answers)
        score.parts[name] = {part: _finite(value) for part, value in parts.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def score_text(
    model: PreTrainedModel, text: GeneralText, reference: Reference | None, shares: Shares | None = None
) -> tuple[TaskScore, pd.DataFrame]:
    """Return the scores on general text, a token each, and the table of windows (see ``measure_windows``).

    perplexity = exp(nll), its error by the delta method.
    """
    table = measure_windows(model, text, reference, shares)
    metrics: dict[str, Estimate] = {}
    for name in table.columns.drop(["index", "document", "words", "tokens"]):
        value, stderr = ratio_estimate(table[name], table["tokens"], table["document"])
        metrics[name] = Estimate(value, stderr, higher_is_better=name == "top1_agreement")
        if name == "nll":
            perplexity = math.exp(value)
            error = None if stderr is None else perplexity * stderr
            metrics["perplexity"] = Estimate(perplexity, error, higher_is_better=False)
    return TaskScore("text", GENERAL_TEXT_VERSION, len(table), 0, metrics), table


def _summary(score: TaskScore) -> str:
    parts = []
    if score.prompts_cut > NOTABLE * score.n:
        parts.append(f"{score.prompts_cut:,} of {score.n:,} prompts lost tokens")
    for name, estimate in score.metrics.items():
        error = "" if estimate.stderr is None else f" ± {estimate.stderr:.2g}"
        parts.append(f"{name} " + ("undefined" if estimate.value is None else f"{estimate.value:.4g}{error}"))
    return ", ".join(parts)
