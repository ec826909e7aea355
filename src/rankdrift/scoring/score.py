"""Scores of one checkpoint: every task's metrics and general text, written as JSON, the items as Parquet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankdrift import files, registry
from rankdrift.data.general_text import load_windows, text_source
from rankdrift.data.tokens import NOTABLE
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.metrics import Metric
from rankdrift.scoring.classification import choice_log_likelihoods, class_log_likelihoods
from rankdrift.scoring.estimates import Estimate, mean_stderr, ratio_estimate
from rankdrift.scoring.generation import greedy_continuations
from rankdrift.scoring.items import TaskItems, task_items
from rankdrift.scoring.retention import GeneralText, Reference, measure_windows
from rankdrift.spec import Spec

GENERAL_TEXT = "general_text"
GENERAL_TEXT_VERSION = 2
"""Raised whenever the windows or their measures change: scores of two versions do not compare."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """What every checkpoint of an experiment is scored on; made once."""

    spec: Spec
    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[TaskItems, ...]
    text: GeneralText | None
    """None for a classification head, which predicts no text."""

    @classmethod
    def of(cls, spec: Spec, tokenizer: PreTrainedTokenizerBase) -> Workload:
        """Read and tokenise the tasks' validation examples and the general text."""
        tasks = tuple(task_items(spec, registry.load("task", name), tokenizer) for name in spec.data.tasks)
        text = None
        if spec.model.head == "lm":
            windows = load_windows(spec.data, tokenizer, spec.scoring.text_limit)
            text = GeneralText(tuple(windows), tokenizer.pad_token_id, spec.scoring.batch_size)
        return cls(spec=spec, tokenizer=tokenizer, tasks=tasks, text=text)


@dataclass(frozen=True)
class Target:
    """A model folder to score, and where its scores belong."""

    out: RunLayout
    step: int
    source: Path
    inputs: Mapping[str, str]
    """What the scores depend on, from :func:`scoring_inputs`."""
    name: str = ""
    """What progress calls it, if not by its step."""

    @property
    def title(self) -> str:
        """Its name, or its step."""
        return self.name or f"step {self.step}"


@dataclass(frozen=True)
class TaskScore:
    """The scores of one task."""

    version: int
    n: int
    """Items, or windows of text."""
    prompts_cut: int
    """Items whose prompt lost its beginning to ``data.max_length``."""
    metrics: dict[str, Estimate]


def score_checkpoint(
    workload: Workload,
    model: PreTrainedModel,
    reference: Reference | None,
    target: Target,
    progress: Progress,
) -> Path:
    """Score one checkpoint, write its per-item tables and then its JSON file; return the latter's path.

    Does nothing where :func:`is_current` says that it is done.

    Parameters
    ----------
    workload
        What to score on.
    model
        The checkpoint, in evaluation mode.
    reference
        The base model on the general text; without it nothing is compared with the base.
    target
        The checkpoint's folder, and where its scores belong.
    progress
        Called with one line a task.

    """
    out, step = target.out, target.step
    if is_current(workload.spec, target):
        return out.score(step)
    tables: dict[str, tuple[TaskScore, pd.DataFrame]] = {}
    for items in workload.tasks:
        tables[items.task.name] = score_task(workload, items, model, target.source)
    if workload.text is not None:
        tables[GENERAL_TEXT] = score_text(model, workload.text, reference)
    for name, (score, table) in tables.items():
        files.write_parquet(out.score_items(step, name), table)
        progress(f"{target.title}: {name}: {_summary(score)}")
    scores = {name: dataclasses.asdict(score) for name, (score, _) in tables.items()}
    document = {"step": step, "model": str(target.source), "inputs": dict(target.inputs), "tasks": scores}
    files.write_json(out.score(step), document)
    return out.score(step)


def scoring_inputs(spec: Spec, source: Path, base: Path) -> dict[str, str]:
    """Return what the scores of a model folder depend on; the batch size, for one, is not among it."""
    text = text_source(spec.data)
    settings = {
        "head": spec.model.head,
        "tasks": {name: registry.load("task", name).version for name in spec.data.tasks},
        "data": spec.data.model_dump(include={"max_length", "validation_limit"}),
        "slices": _slices(spec),
        "text": [GENERAL_TEXT_VERSION, text.name, files.digest_file(text)],
        "scoring": spec.scoring.model_dump(exclude={"batch_size"}),
    }
    return {
        "model": files.content_digest(source),
        "base": files.content_digest(base),
        "settings": files.digest_json(settings),
        "general_text": text.name,
    }


def _slices(spec: Spec) -> dict[str, str]:
    """Return what is in each task's folder below ``data.root``."""
    if spec.data.root is None:
        return {}
    folders = {name: registry.load("task", name).folder for name in spec.data.tasks}
    paths = {name: Path(spec.data.root) / folder for name, folder in folders.items() if folder}
    return {name: files.content_digest(path) for name, path in paths.items() if path.is_dir()}


def is_current(spec: Spec, target: Target) -> bool:
    """Say whether a target's scores are complete and were made from its inputs."""
    names = [*spec.data.tasks, *([GENERAL_TEXT] if spec.model.head == "lm" else [])]
    scores = target.out.score(target.step)
    tables = [target.out.score_items(target.step, name) for name in names]
    complete = scores.exists() and all(table.exists() for table in tables)
    return complete and files.read_json(scores).get("inputs") == dict(target.inputs)


def score_task(
    workload: Workload, items: TaskItems, model: PreTrainedModel, source: Path
) -> tuple[TaskScore, pd.DataFrame]:
    """Return a task's scores and its table, one row an item.

    Columns for classification: ``index``, ``prompt``, ``label``, ``prediction``, ``correct`` and
    ``log_likelihoods`` (nats, one a choice); for generation: ``index``, ``prompt``, ``prediction`` and
    ``references``. Then one column a metric that is a mean over items, and ``document`` where items share
    one: their errors go together.
    """
    table = pd.DataFrame(
        {"index": [i.index for i in items.items], "prompt": [i.example.prompt for i in items.items]}
    )
    if items.task.kind == "classification":
        answers: list[Any] = [item.example.label for item in items.items]
        log_likelihoods = _log_likelihoods(workload, items, model, source)
        predictions: list[Any] = log_likelihoods.argmax(-1).tolist()
        table["label"], table["prediction"] = answers, predictions
        table["correct"] = table["label"] == table["prediction"]
        table["log_likelihoods"] = log_likelihoods.tolist()
    else:
        answers = [item.example.references for item in items.items]
        predictions = _generated(workload, items, model)
        table["prediction"], table["references"] = predictions, [list(answer) for answer in answers]
    documents = [item.example.document for item in items.items]
    if any(documents):
        table["document"] = documents
    metrics: dict[str, Estimate] = {}
    for name in items.task.metrics:
        metrics[name], values = _evaluate(
            registry.load("metric", name), predictions, answers, documents if any(documents) else None
        )
        if values is not None:
            table[name] = values
    return TaskScore(items.task.version, len(table), items.prompts_cut, metrics), table


def _log_likelihoods(
    workload: Workload, items: TaskItems, model: PreTrainedModel, source: Path
) -> np.ndarray:
    pad, batch_size = workload.tokenizer.pad_token_id, workload.spec.scoring.batch_size
    if workload.spec.model.head == "classifier":
        result = class_log_likelihoods(model, items.prompts, pad, batch_size)
    else:
        result = choice_log_likelihoods(model, items.prompts, items.choices, pad, batch_size)
    if not np.isfinite(result).all():
        raise UserError(
            f"{source}: log-likelihoods of task '{items.task.name}' are not finite numbers: the training "
            "diverged; lower training.learning_rate and train again"
        )
    return result


def _generated(workload: Workload, items: TaskItems, model: PreTrainedModel) -> list[str]:
    tokenizer, scoring = workload.tokenizer, workload.spec.scoring
    continuations = greedy_continuations(
        model,
        items.prompts,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        scoring.max_new_tokens,
        scoring.batch_size,
    )
    texts = [str(tokenizer.decode(list(tokens), skip_special_tokens=True)) for tokens in continuations]
    return [text.strip() for text in texts]


def _evaluate(
    metric: Metric, predictions: Sequence[Any], answers: Sequence[Any], documents: Sequence[str] | None
) -> tuple[Estimate, list[float] | None]:
    """Return a metric's estimate and, where it is a mean over items, the items' values."""
    value = metric.compute(predictions, answers)
    values, stderr = None, None
    if metric.per_item is not None:
        values = [metric.per_item(*pair) for pair in zip(predictions, answers, strict=True)]
        stderr = mean_stderr(values, documents)
    return Estimate(value if math.isfinite(value) else None, stderr), values


def score_text(
    model: PreTrainedModel, text: GeneralText, reference: Reference | None
) -> tuple[TaskScore, pd.DataFrame]:
    """Return the scores on general text, a token each, and the table of windows (see ``measure_windows``).

    perplexity = exp(nll), its error by the delta method.
    """
    table = measure_windows(model, text, reference)
    metrics: dict[str, Estimate] = {}
    for name in table.columns.drop(["index", "document", "words", "tokens"]):
        value, stderr = ratio_estimate(table[name], table["tokens"], table["document"])
        metrics[name] = Estimate(value, stderr, higher_is_better=name == "top1_agreement")
        if name == "nll":
            perplexity = math.exp(value)
            error = None if stderr is None else perplexity * stderr
            metrics["perplexity"] = Estimate(perplexity, error, higher_is_better=False)
    return TaskScore(GENERAL_TEXT_VERSION, len(table), 0, metrics), table


def _summary(score: TaskScore) -> str:
    parts = []
    if score.prompts_cut > NOTABLE * score.n:
        parts.append(f"{score.prompts_cut:,} of {score.n:,} prompts lost their beginning")
    for name, estimate in score.metrics.items():
        error = "" if estimate.stderr is None else f" ± {estimate.stderr:.2g}"
        parts.append(f"{name} " + ("undefined" if estimate.value is None else f"{estimate.value:.4g}{error}"))
    return ", ".join(parts)
